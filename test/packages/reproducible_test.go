package packages

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Two checkouts of one commit, in folders of different names and by people with other habits, make packages with the same bytes: program, manual,
// .deb and .rpm. What is not committed is not tested.
func TestPackagesAreReproducible(t *testing.T) {
	if os.Getenv("WINGMAN_PACKAGES") == "" {
		t.Skip("builds packages twice: WINGMAN_PACKAGES=1, make test-packages")
	}
	places := []struct {
		folder, umask string
		env           []string
	}{
		{"a", "022", []string{"TZ=Pacific/Kiritimati", "LC_ALL=C"}},
		{"a longer way/to another checkout", "077", []string{"TZ=America/St_Johns", "LC_ALL=C.UTF-8"}},
	}
	sums, errs := make([]map[string]string, len(places)), make([]error, len(places))
	var both sync.WaitGroup
	for i, p := range places {
		dir := filepath.Join(t.TempDir(), p.folder)
		both.Go(func() { sums[i], errs[i] = build(t, dir, p.umask, p.env) })
	}
	both.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for name := range sums[0] {
		kinds[filepath.Ext(name)] = true
	}
	if !kinds[".deb"] || !kinds[".rpm"] {
		t.Fatalf("the build left neither or only one kind of package: %v", sums[0])
	}
	if diff := cmp.Diff(sums[0], sums[1]); diff != "" {
		t.Errorf("SHA-256 of what two builds left (-%s +%s):\n%s", places[0].folder, places[1].folder, diff)
	}
}

// build makes the packages of HEAD for this architecture in a checkout at dir, and returns the SHA-256 of every file that was made.
func build(t *testing.T, dir, umask string, env []string) (map[string]string, error) {
	if out, err := exec.CommandContext(t.Context(), "git", "clone", "--quiet", "--no-hardlinks", "../..", dir).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("git clone: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "umask "+umask+" && exec packaging/build.sh "+runtime.GOARCH)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append(env, "DIST=dist")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("packaging/build.sh in %q: %w\n%s", dir, err, out)
	}
	sums := map[string]string{}
	dist := filepath.Join(dir, "dist")
	err := filepath.WalkDir(dist, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		sums[strings.TrimPrefix(path, dist+"/")] = hex.EncodeToString(sum[:])
		return nil
	})
	return sums, err
}
