package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever the environment and "go env -w" say, what is shipped is built with the same settings; where they cannot be taken back, not at all.
func TestGoIsSetAlikeEverywhere(t *testing.T) {
	for _, tc := range []struct {
		name, file string // what "go env -w" left
		env        []string
		refused    bool
	}{
		{"nothing set", "", nil, false},
		{"set by the environment", "", strange, false},
		{"set by go env -w", "GOAMD64=v3\nGOARM64=v8.1\nGOFIPS140=latest\nGOFLAGS=-race\nGOWORK=/nowhere/go.work\n", nil, false},
		{"experiments by go env -w", "GOEXPERIMENT=jsonv2\n", nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "env")
			if err := os.WriteFile(file, []byte(tc.file), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "sh", "-euc", ". packaging/goenv.sh; go env GOAMD64 GOARM64 GOFIPS140 GOFLAGS GOWORK GOEXPERIMENT")
			cmd.Dir = "../.."
			cmd.Env = append(append(os.Environ(), "GOENV="+file), tc.env...)
			out, err := cmd.CombinedOutput()
			if tc.refused {
				if err == nil || !strings.Contains(string(out), "go env -u GOEXPERIMENT") {
					t.Errorf("goenv.sh: %v; want a refusal that says what to do:\n%s", err, out)
				}
				return
			}
			if diff := cmp.Diff("v1\nv8.0\noff\n-mod=readonly\noff\n\n", string(out)); err != nil || diff != "" {
				t.Errorf("settings (-want +got), %v:\n%s", err, diff)
			}
		})
	}
}

// strange is the environment of somebody with other habits, who has set all that packages could be made with.
var strange = []string{
	"TZ=America/St_Johns", "LC_ALL=C.UTF-8",
	"GOAMD64=v3", "GOARM64=v8.1,lse", "GOFIPS140=latest", "GOEXPERIMENT=jsonv2", "GOFLAGS=-gcflags=runtime=-l", "GOWORK=/nowhere/go.work",
	"VERSION=9.9.9", "COMMIT=none", "RELEASE=7", "KINDS=deb", "MAINTAINER=Somebody <a@b.example>", "HOMEPAGE=https://b.example", "SOURCE_DATE_EPOCH=1",
}
