package agent

import (
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"wingman/agent/envoy/proxy"
	"wingman/bootstrap"
)

// What Envoy was started with is said to wait until its supervisor is another process.
func TestSettingsWaitForTheSupervisorsRestart(t *testing.T) {
	settings := &bootstrap.Config{Envoy: bootstrap.Envoy{Concurrency: 1}}
	e := &envoySide{cfg: func() *bootstrap.Config { return settings }}
	see := func(s sighting) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.seen = s
		e.noteSupervisorLocked()
	}
	expect := func(when string, want ...string) {
		t.Helper()
		if got := e.waiting(); !slices.Equal(got, want) {
			t.Errorf("%s %v wait, want %v", when, got, want)
		}
	}
	expect("before a supervisor was seen")
	see(sighting{proxy: proxy.State{Supervisor: 7}})
	expect("before a reload")
	settings = &bootstrap.Config{Envoy: bootstrap.Envoy{Concurrency: 2}}
	see(sighting{proxy: proxy.State{Supervisor: 7, PID: 12}})
	expect("after a reload", "envoy.concurrency")
	see(sighting{supervisor: proxy.ErrNoProxy})
	expect("without a supervisor")
	see(sighting{proxy: proxy.State{Supervisor: 8}})
	expect("with another supervisor")
}

// The supervisor has no port of its own: what docs/metrics.md says of it is scraped from the agent.
func TestTheSupervisorsMetricsAreTold(t *testing.T) {
	cfg := &bootstrap.Config{Root: t.TempDir(), Paths: bootstrap.Paths{RunDir: t.TempDir()}}
	metrics := prometheus.NewPedanticRegistry()
	logs, err := newLogs(cfg.Log, nil, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newEnvoySide(cfg, logs, metrics, func() *bootstrap.Config { return cfg }, nil); err != nil {
		t.Fatal(err)
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(families, func(f *dto.MetricFamily) bool { return f.GetName() == "wingman_proxy_up" }) {
		t.Errorf("no wingman_proxy_up in %v", families)
	}
}
