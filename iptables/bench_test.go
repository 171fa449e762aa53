package iptables

import (
	"os/exec"
	"testing"
	"time"

	"wingman/test/netns"
)

// BenchmarkApplyOnADefaultVM puts the rules of a default VM into fresh namespaces, by a process of its own as
// `wingman rules apply` is one, in turn with Istio's own tool. The figure that counts is the ratio of the times.
func BenchmarkApplyOnADefaultVM(b *testing.B) {
	tool := pilotAgent(b)
	env := readEnv(b, "testdata/capture/vm-default/env")
	for _, backend := range allBackends {
		b.Run(backend, func(b *testing.B) {
			var theirs, ours time.Duration
			for range b.N {
				inFresh(b, func() { theirs += timed(func() { runPilotAgent(b, tool, env, "nameserver 127.0.0.53\n") }) })
				inFresh(b, func() {
					ours += timed(func() {
						cmd := exec.Command(testBinary())
						cmd.Env = []string{childVar + "=apply redirect " + backend}
						if out, err := cmd.CombinedOutput(); err != nil {
							b.Errorf("apply: %v: %s", err, out)
						}
					})
				})
			}
			b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/apply")
			b.ReportMetric(float64(theirs.Milliseconds())/float64(b.N), "ms/pilot-agent")
			b.ReportMetric(float64(ours)/float64(theirs), "ratio")
		})
	}
}

// inFresh runs f in a namespace of its own with an address, without which Istio's tool does nothing.
func inFresh(b *testing.B, f func()) {
	b.Helper()
	if err := netns.Create(b).Do(func() error {
		if out, err := exec.Command(netns.Tool(b, "ip"), "addr", "add", "10.99.0.2/24", "dev", "lo").CombinedOutput(); err != nil {
			b.Errorf("%v: %s", err, out)
		}
		f()
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// BenchmarkPlan is the pure part.
func BenchmarkPlan(b *testing.B) {
	cfg, facts := vmDefault(BackendAuto)
	cfg.DualStack = true
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Plan(cfg, facts); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSecondApply is what the agent does when nothing has changed.
func BenchmarkSecondApply(b *testing.B) {
	for _, backend := range allBackends {
		b.Run(backend, func(b *testing.B) {
			netns.New(b)
			cfg, facts := vmDefault(backend)
			rules, err := Plan(cfg, facts)
			if err != nil {
				b.Fatal(err)
			}
			a := applier(b)
			for b.Loop() {
				if err := a.Apply(b.Context(), rules); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
