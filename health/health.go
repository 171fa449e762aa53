// Package health finds out whether the workload on this machine can serve, and says so once per change.
//
// It owns the probes (HTTP, HTTPS, TCP, gRPC, exec, systemd unit), their schedule and thresholds, the verdict.
// It leaves to others what a verdict is good for: agent sends it to istiod (HealthInformation), on change and on
// each new stream, keeps the history of what istiod was told, and puts reasons of its own above the workload's (no identity, Envoy dead, a drain).
//
//	probe ──result──► tally (thresholds) ─┐
//	probe ──result──► tally (thresholds) ─┴─ all ─► damping ─► verdict ──change──► OnReport
//
//	verdict:  unknown ──first success──► healthy ◄──all pass / one fails──► unhealthy ◄──first failure── unknown
//
// Goroutines: Run's own, which alone steps the verdict and calls OnReport, and per probe one that keeps its schedule and
// one for the probe in flight. A probe never overlaps itself. Files and ports: none of its own.
//
// To match: Istio pkg/istio-agent/health (defaults, thresholds, success rules) and the probe dialer of
// pilot/cmd/pilot-agent/status. Two wanted differences: the thresholds count on after a verdict (Istio compares for
// equality and can miss a change), and a verdict without a reason is reported all the same.
package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config is what a Checker is made from.
type Config struct {
	Probe Probe

	// InstanceIP is the machine's address in the mesh and the default host of probes. It may be invalid (unset) only if
	// LegacyLocalhost is set or no probe needs it.
	InstanceIP netip.Addr

	// LegacyLocalhost makes localhost the default host. Istio: REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION.
	LegacyLocalhost bool

	// Damping holds back a verdict that changes too often. The zero value never does.
	Damping Damping

	// Environ is the environment of exec probes, as of os.Environ; nil means this process's own. What systemd put there
	// for the daemon alone (NOTIFY_SOCKET, LISTEN_FDS and the like) is left out either way.
	Environ []string

	// OnReport is told of each change of the verdict, the first verdict included; nil is allowed. It is called from Run's
	// goroutine, one call at a time, and must not block.
	OnReport func(Report)

	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil registers nothing
}

// A Report is a verdict on the workload.
type Report struct {
	Healthy bool      `json:"healthy"`
	Reason  string    `json:"reason"` // what caused it, one line for a person; never empty, at most maxReason bytes
	At      time.Time `json:"at"`
}

// A Checker probes the workload and keeps the verdict.
type Checker struct {
	onReport func(Report)
	log      *slog.Logger
	metrics  *metrics
	watchers []watcher
	verdict  verdict // Run's goroutine alone uses it
}

// A watcher looks after one probe: it calls emit for each outcome until ctx ends, and returns only when nothing of it is
// left running. A nil error is a success.
type watcher interface {
	watch(ctx context.Context, emit func(error))
	kind() string   // "http", "https", "tcp", "exec", "grpc" or "unit"
	target() string // what is asked, for people: "GET http://10.99.0.2:8080/healthz"
	rule() rule
}

// New checks cfg and returns a Checker that knows nothing yet. The error names every problem of the configuration.
func New(cfg Config) (*Checker, error) {
	host := "localhost"
	if !cfg.LegacyLocalhost && cfg.InstanceIP.IsValid() {
		host = cfg.InstanceIP.WithZone("").String()
	}
	if err := errors.Join(cfg.Probe.problems("probe", !cfg.LegacyLocalhost && !cfg.InstanceIP.IsValid())...); err != nil {
		return nil, err
	}
	if err := cfg.Damping.check(); err != nil {
		return nil, err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	environ := cfg.Environ
	if environ == nil {
		environ = os.Environ()
	}
	c := &Checker{
		onReport: cfg.OnReport,
		log:      log,
	}
	for _, p := range cfg.Probe.leaves() {
		c.watchers = append(c.watchers, p.watcher(host, probeEnviron(environ), log))
	}
	var err error
	if c.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("register health metrics: %w", err)
	}
	c.verdict = newVerdict(c.watchers, cfg.Damping)
	return c, nil
}

// Run probes until ctx ends and returns nil then. It must be called once.
func (c *Checker) Run(ctx context.Context) error {
	outcomes := make(chan probed)
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for i, w := range c.watchers {
		watching.Go(func() {
			w.watch(ctx, func(err error) {
				select {
				case outcomes <- probed{i, err}:
				case <-ctx.Done():
				}
			})
		})
	}

	damped := time.NewTimer(time.Hour)
	defer damped.Stop()
	var e event = tick{} // the first step decides when there is no probe
	for {
		if wakeAt := c.step(e); wakeAt.IsZero() {
			damped.Stop()
		} else {
			damped.Reset(time.Until(wakeAt))
		}
		select {
		case <-ctx.Done():
			return nil
		case o := <-outcomes:
			c.metrics.probed(c.watchers[o.probe].kind(), o.err == nil)
			c.log.Debug("probe done", "probe", c.watchers[o.probe].target(), "cause", o.err)
			e = o
		case <-damped.C:
			e = tick{}
		}
	}
}

// step feeds e to the verdict, publishes a change, and returns when the verdict wants to be stepped again.
func (c *Checker) step(e event) (wakeAt time.Time) {
	before := c.verdict.current
	report, changed := c.verdict.step(time.Now(), e)
	wakeAt = c.verdict.wakeAt
	if !changed {
		return wakeAt
	}
	c.log.Info("health changed", "from", before.String(), "to", stateOf(report.Healthy).String(), "cause", report.Reason)
	c.metrics.changed(report.Healthy)
	if c.onReport != nil {
		c.onReport(report)
	}
	return wakeAt
}
