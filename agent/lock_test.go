package agent

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Leave takes the lock as root in a folder of the agent's user.
func TestALockBehindALinkIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "precious")
	if err := os.WriteFile(target, []byte("root's"), 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(run, lockFile)); err != nil {
		t.Fatal(err)
	}
	if f, err := takeLock(run); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("taken: %v, %v", f, err)
	}
	if b, _ := os.ReadFile(target); string(b) != "root's" {
		t.Errorf("what the link led to is %q now", b)
	}
}
