package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/status"
	"wingman/bootstrap"
)

// Whose metrics are merged follows the settings in force and the programs that are there.
func TestMergedFollowsSettings(t *testing.T) {
	program := filepath.Join(t.TempDir(), "envoy")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	logs, err := newLogs(bootstrap.Log{Level: "info", Format: "text"}, os.Stderr, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{cfg: &bootstrap.Config{}, logs: logs, metrics: prometheus.NewRegistry()}
	m := a.merged()
	apps := []bootstrap.ScrapeTarget{{Port: 8080, Path: "/metrics"}}
	for _, tc := range []struct {
		name    string
		metrics bootstrap.Metrics
		envoy   bootstrap.Envoy
		want    status.Sources
		local   bool
	}{
		{"Envoy and an application", bootstrap.Metrics{Envoy: true, Applications: apps}, bootstrap.Envoy{Enabled: "auto", Path: program}, status.Sources{Envoy: 15090, Applications: apps}, false},
		{"no program", bootstrap.Metrics{Envoy: true}, bootstrap.Envoy{Enabled: "auto", Path: program + "-gone"}, status.Sources{}, false},
		{"Envoy is switched off", bootstrap.Metrics{Envoy: true, LocalhostOnly: true}, bootstrap.Envoy{Enabled: "false", Path: program}, status.Sources{}, true},
		{"Envoy's metrics are not wanted", bootstrap.Metrics{}, bootstrap.Envoy{Enabled: "true", Path: program}, status.Sources{}, false},
	} {
		a.mu.Lock()
		a.cfg = &bootstrap.Config{Metrics: tc.metrics, Envoy: tc.envoy, Status: bootstrap.Status{PrometheusPort: 15090}}
		a.mu.Unlock()
		if diff := cmp.Diff(tc.want, m.Sources()); diff != "" || m.LocalhostOnly() != tc.local {
			t.Errorf("%s: for this machine alone %v, sources (-want +got):\n%s", tc.name, m.LocalhostOnly(), diff)
		}
	}
}
