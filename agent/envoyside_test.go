package agent

import (
	"slices"
	"testing"

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
