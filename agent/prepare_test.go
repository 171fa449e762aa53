package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Broken settings keep the folders of groups from being made, and nothing else.
func TestPrepareDoesWhatItCan(t *testing.T) {
	root := t.TempDir()
	uuid := filepath.Join(root, "sys/class/dmi/id/product_uuid")
	for _, dir := range []string{filepath.Dir(uuid), filepath.Join(root, "run/wingman")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(uuid, []byte("0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(t.Context(), root); err == nil || !strings.Contains(err.Error(), "cluster.env") {
		t.Errorf("Prepare = %v, want the settings that are missing", err)
	}
	for _, made := range []string{"run/wingman/ssh.json", "run/wingman-machine/product"} {
		if _, err := os.Stat(filepath.Join(root, made)); err != nil {
			t.Error(err)
		}
	}
}
