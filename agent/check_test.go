package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"wingman/bootstrap"
)

// A token file that is not there is an error only where nothing else can bring a token.
func TestCheckOfAMissingTokenFile(t *testing.T) {
	for _, tt := range []struct {
		sources []string
		member  bool
		want    string
	}{
		{nil, false, "error"},
		{[]string{"systemd", "file"}, false, "error"},
		{[]string{"systemd", "file"}, true, "warning"},
		{[]string{"file", "exec"}, false, "warning"},
		{[]string{"gce"}, false, ""},
	} {
		cfg := &bootstrap.Config{}
		cfg.Identity.Credentials = tt.sources
		cfg.Paths.Token = filepath.Join(t.TempDir(), "istio-token")
		got := ""
		for _, p := range checkToken(cfg, func() ([]byte, error) { return os.ReadFile(cfg.Paths.Token) }, tt.member, time.Now()) {
			got = map[bootstrap.Severity]string{bootstrap.Error: "error", bootstrap.Warning: "warning"}[p.Severity]
		}
		if got != tt.want {
			t.Errorf("sources %v, member %v: %q, want %q", tt.sources, tt.member, got, tt.want)
		}
	}
}
