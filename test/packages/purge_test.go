package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A purge runs as root in /etc/certs, which is the agent's user's: a link there leads it nowhere, and what is somebody's stays.
func TestAPurgeFollowsNoLinkOfTheAgents(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	groups := filepath.Join(root, "etc/certs/groups")
	copies := func(dir string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "7"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"7/key.pem", "note"} {
			if err := os.WriteFile(filepath.Join(dir, file), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for link, to := range map[string]string{"current": "7", "key.pem": "current/key.pem"} {
			if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
	}
	copies(filepath.Join(groups, "myapp"))
	copies(elsewhere)
	if err := os.Symlink(elsewhere, filepath.Join(groups, "trap")); err != nil {
		t.Fatal(err)
	}
	purge := func(root string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "../../packaging/scripts/postremove.sh", "purge")
		cmd.Env = append(os.Environ(), "DPKG_ROOT="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("purge: %v\n%s", err, out)
		}
	}
	purge(root)
	whole := t.TempDir() // the folder of all groups is a link itself
	if err := os.MkdirAll(filepath.Join(whole, "etc/certs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(elsewhere), filepath.Join(whole, "etc/certs/groups")); err != nil {
		t.Fatal(err)
	}
	purge(whole)
	for path, stays := range map[string]bool{
		filepath.Join(groups, "myapp/note"):    true,
		filepath.Join(groups, "myapp/key.pem"): false,
		filepath.Join(groups, "myapp/current"): false,
		filepath.Join(groups, "myapp/7"):       false,
		filepath.Join(elsewhere, "7/key.pem"):  true,
		filepath.Join(elsewhere, "current"):    true,
		filepath.Join(elsewhere, "key.pem"):    true,
	} {
		if _, err := os.Lstat(path); (err == nil) != stays {
			t.Errorf("%s: %v; there after the purge: want %t", path, err, stays)
		}
	}
}
