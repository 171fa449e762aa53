package adopt

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"wingman/bootstrap"
)

// What is left below the state folder after an undo: never a claim to rules, and an identity only where there was one before.
func TestRemoveState(t *testing.T) {
	for _, c := range []struct {
		name string
		had  bool
		want []string
	}{
		{"there was none before", false, nil},
		{"there was an identity", true, []string{"identity"}},
	} {
		dir := filepath.Join(t.TempDir(), "wingman")
		if err := os.MkdirAll(filepath.Join(dir, "identity"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"joined.json", "rules.in", "rules.json"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		m := &machine{Options: Options{host: system{}}, cfg: &bootstrap.Config{Paths: bootstrap.Paths{StateDir: dir}}, record: Record{HadState: c.had}}
		for range 2 {
			if err := m.removeState(); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		var left []string
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, c.want) {
			t.Errorf("%s: left %q, want %q", c.name, left, c.want)
		}
	}
}
