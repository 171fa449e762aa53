package agent

import (
	"os"
	"path/filepath"
	"testing"

	"wingman/bootstrap"
)

// What settings ever had the agent put outside of its folders stays known.
func TestWhatIsPutElsewhereIsNoted(t *testing.T) {
	root := t.TempDir()
	cfg := &bootstrap.Config{Root: root, Paths: bootstrap.DefaultPaths(root)}
	if err := os.MkdirAll(cfg.Paths.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ output, log, want string }{
		{"/etc/certs", "", ""},
		{"/srv/a", "", "output /srv/a\n"},
		{"", "/srv/log with a space", "output /srv/a\nlog /srv/log with a space\n"},
		{"/srv/b\noutput /etc", "", "output /srv/a\nlog /srv/log with a space\n"},
		{"/srv/b", "/srv/log with a space", "output /srv/a\nlog /srv/log with a space\noutput /srv/b\n"},
		{"/srv/a", "", "output /srv/a\nlog /srv/log with a space\noutput /srv/b\n"},
	} {
		cfg.Paths.OutputCerts, cfg.Log.File = "", ""
		if step.output != "" {
			cfg.Paths.OutputCerts = root + step.output
		}
		if step.log != "" {
			cfg.Log.File = root + step.log
		}
		if err := NoteElsewhere(cfg); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(cfg.Paths.StateDir, elsewhereFile)); string(got) != step.want {
			t.Errorf("with %q and %q the list is %q, want %q", step.output, step.log, got, step.want)
		}
	}
}
