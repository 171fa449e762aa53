package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Versions as packages compare them, of a history with two commits.
func TestVersions(t *testing.T) {
	script, err := filepath.Abs("../../packaging/version.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, tags string // with FIRST and SECOND for the commits
		want       string // with COMMIT for twelve digits of the second; of an error: words
	}{
		{"a release", "git tag -am v1.2.3 v1.2.3 SECOND", "1.2.3"},
		{"a candidate", "git tag v1.2.3-rc.1 SECOND", "1.2.3~rc.1"},
		{"after a release", "git tag -am v1.2.3 v1.2.3 FIRST", "1.2.3+1.gCOMMIT"},
		{"after a candidate", "git tag v1.2.3-rc.1 FIRST", "1.2.3~rc.1+1.gCOMMIT"},
		{"without a tag", "git tag another", "0.0.0~20260131120000.gCOMMIT"},
		{"a light tag over a candidate that is annotated", "git tag -am rc v2.0.0-rc.1 SECOND; git tag v2.0.0 SECOND", "2.0.0"},
		{"candidates by number", "git tag v2.0.0-rc.9 SECOND; git tag v2.0.0-rc.10 SECOND", "2.0.0~rc.10"},
		{"a second dash", "git tag v1.0.0-rc-2 SECOND", "tag v1.0.0-rc-2 is none"},
		{"what a snapshot has", "git tag v1.0.0+5 FIRST", "tag v1.0.0+5 is none"},
		{"abbreviated as somebody likes it", "git config core.abbrev 40; git tag v1.2.3 FIRST", "1.2.3+1.gCOMMIT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			run := func(command string) (string, error) {
				cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b.example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b.example",
					"GIT_AUTHOR_DATE=2026-01-31T13:00:00+0100", "GIT_COMMITTER_DATE=2026-01-31T13:00:00+0100")
				out, err := cmd.CombinedOutput()
				return strings.TrimSpace(string(out)), err
			}
			tags := strings.NewReplacer("FIRST", "HEAD~1", "SECOND", "HEAD").Replace(tc.tags)
			if out, err := run("git init -q . && git commit -q --allow-empty -m one && git commit -q --allow-empty -m two; " + tags); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			commit, err := run("git rev-parse HEAD")
			if err != nil {
				t.Fatal(err)
			}
			got, err := run("sh '" + script + "'")
			want := strings.Replace(tc.want, "COMMIT", commit[:12], 1)
			if refused := strings.HasPrefix(want, "tag "); (err != nil) != refused || !refused && got != want || !strings.Contains(got, want) {
				t.Errorf("version.sh: %q, %v; want %q", got, err, want)
			}
		})
	}
}
