package agent

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHasUnit(t *testing.T) {
	if root := t.TempDir(); hasUnit(root, IstioUnit) {
		t.Error("a unit in an empty root")
	}
	for _, dir := range []string{"etc/systemd/system", "lib/systemd/system", "usr/lib/systemd/system", "run/systemd/transient"} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/dev/null", filepath.Join(root, dir, IstioUnit)); err != nil { // a mask, whatever runs under it
			t.Fatal(err)
		}
		if !hasUnit(root, IstioUnit) || hasUnit(root, "other.service") {
			t.Errorf("%s is not looked into, or not by name", dir)
		}
	}
}
