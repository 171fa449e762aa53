package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/iptables"
)

// Timings of capture.
const (
	// captureLimit bounds one change of the rules: a lock held by a stranger must not hang the daemon.
	captureLimit = 20 * time.Second
	// captureCheck is how often resolv.conf is looked at, captureReview how often all facts are: that may start a process or two.
	captureCheck  = 2 * time.Second
	captureReview = 5 * time.Minute
)

// captureFacts are what the level of capture depends on beside the settings.
type captureFacts struct {
	joined  bool // now or in an earlier run
	leaving bool
	envoy   bool // Envoy takes this machine's traffic
	// exempt says whether the rules would leave this process's own traffic alone: only then may they be there.
	exempt bool
	user   string // whom the rules exempt
}

// decision is what decideCapture found.
type decision struct {
	wanted iptables.Level // what the settings ask for
	level  iptables.Level // what may be in place now
	why    string         // what keeps level from wanted; empty when nothing does, or when a join is all that is missing
	hands  bool           // false: the operator keeps the rules, ours touch nothing
}

// decideCapture decides how much is captured. It is pure.
//
// Never what was never joined, never more than what somebody serves: TCP without Envoy would be refused, so it is DNS alone then, and
// nothing at all when this process's own queries would come back to itself.
func decideCapture(c bootstrap.Capture, f captureFacts) decision {
	d := decision{hands: !c.CustomTables}
	switch level, explicit := captureLevels[c.Level]; {
	case c.CustomTables:
		return d
	case explicit:
		d.wanted = level
	case f.envoy:
		d.wanted = iptables.LevelAll
	default:
		d.wanted = iptables.LevelDNS
	}
	if d.wanted == iptables.LevelDNS && !c.DNS {
		d.wanted = iptables.LevelNone
	}
	d.level = d.wanted
	switch {
	case d.wanted == iptables.LevelNone:
	case f.leaving, !f.joined:
		d.level = iptables.LevelNone
	case !f.exempt:
		d.level = iptables.LevelNone
		d.why = fmt.Sprintf("this process does not run as %s, the user whose traffic the rules leave alone: its own DNS queries would come back to it", f.user)
	case d.wanted == iptables.LevelAll && !f.envoy:
		d.level, d.why = iptables.LevelDNS, "there is no Envoy here to take traffic: only DNS is captured"
		if !c.DNS {
			d.level, d.why = iptables.LevelNone, "there is no Envoy here to take traffic, and DNS capture is off: nothing is captured"
		}
	}
	return d
}

// kernel is what capture asks of package iptables; iptables.Applier is one.
type kernel interface {
	Apply(ctx context.Context, r iptables.Rules) error
	Remove(ctx context.Context) error
}

// capture keeps the rules as the settings and the facts want them.
type capture struct {
	log    *slog.Logger
	kernel kernel
	facts  func(ctx context.Context, cfg *bootstrap.Config) (iptables.Facts, error)
	gauge  prometheus.Gauge
	errors prometheus.Counter

	mu      sync.Mutex // guards everything below; held while rules change, so that changes do not overtake each other
	decided decision
	rules   *iptables.Rules // in the kernel, by this process; nil: none put in by it
	broken  string          // why the last change failed
}

// Metric names.
const (
	metricCaptureLevel  = "wingman_capture_level"
	metricCaptureErrors = "wingman_capture_errors_total"
)

func newCapture(log *slog.Logger, k kernel, facts func(context.Context, *bootstrap.Config) (iptables.Facts, error), r prometheus.Registerer) *capture {
	c := &capture{
		log:    log,
		kernel: k,
		facts:  facts,
		gauge: prometheus.NewGauge(prometheus.GaugeOpts{Name: metricCaptureLevel,
			Help: "What is captured: 0 nothing, 1 DNS, 2 all."}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{Name: metricCaptureErrors,
			Help: "Changes of the capture rules that failed."}),
	}
	r.MustRegister(c.gauge, c.errors)
	return c
}

// settle makes the kernel hold what d decides. Doing it again changes nothing.
func (c *capture) settle(ctx context.Context, cfg *bootstrap.Config, d decision, joined bool) {
	ctx, cancel := context.WithTimeout(ctx, captureLimit)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := c.decided != d
	c.decided = d
	var err error
	switch {
	case !d.hands:
	case d.level == iptables.LevelNone:
		// A machine that never joined has nothing of ours; what others put there is none of our business.
		if joined && (changed || c.rules != nil || c.broken != "") {
			if err = c.kernel.Remove(ctx); err == nil {
				c.rules = nil
				c.log.Info("capture rules are out")
			}
		}
	default:
		err = c.putIn(ctx, cfg, d.level)
	}
	if err != nil {
		c.errors.Inc()
		if c.broken != err.Error() {
			c.log.Error("capture rules could not be changed", "level", d.level.String(), "cause", err)
		}
		c.broken = err.Error()
		return
	}
	c.broken = ""
	c.gauge.Set(float64(d.level))
}

// putIn plans and applies rules of that level. The kernel is only touched when the plan is another one than what is in.
func (c *capture) putIn(ctx context.Context, cfg *bootstrap.Config, level iptables.Level) error {
	ic, err := CaptureConfig(cfg, level)
	if err != nil {
		return err
	}
	facts, err := c.facts(ctx, cfg)
	if err != nil {
		return err
	}
	rules, err := iptables.Plan(ic, facts)
	if err != nil {
		return err
	}
	if c.rules != nil && c.broken == "" && reflect.DeepEqual(*c.rules, rules) {
		return nil
	}
	began := time.Now()
	if err := c.kernel.Apply(ctx, rules); err != nil {
		return err
	}
	c.log.Info("capture rules are in", "level", level.String(), "seconds", time.Since(began).Seconds())
	c.rules = &rules
	return nil
}

// failing reports whether the last change went wrong.
func (c *capture) failing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken != ""
}

func (c *capture) report() status.CaptureReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := status.CaptureReport{Wanted: c.decided.wanted.String(), Level: iptables.LevelNone.String(), Why: c.decided.why}
	if c.rules != nil {
		r.Level, r.Backend = c.rules.Level.String(), c.rules.Backend
	}
	if c.broken != "" {
		r.Why = c.broken
	}
	return r
}

// settleCapture decides again and makes it so.
func (a *Agent) settleCapture(ctx context.Context) {
	a.mu.Lock()
	cfg, joined, leaving := a.cfg, a.joined != nil, a.leaving
	a.mu.Unlock()
	uid, gid, err := proxyUser(cfg)
	d := decideCapture(cfg.Capture, captureFacts{
		joined:  joined,
		leaving: leaving,
		envoy:   false, // this agent runs no Envoy yet
		exempt:  err == nil && (int(uid) == os.Geteuid() || int(gid) == os.Getegid()),
		user:    cfg.Capture.User,
	})
	a.capture.settle(ctx, cfg, d, joined)
	a.poke()
}

// followCapture makes the rules follow the machine: at once when resolv.conf names other servers or a change had failed, and from time to
// time for everything else.
func (a *Agent) followCapture(ctx context.Context) error {
	seen, last := readQuietly(a.config().Paths.ResolvConf), time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(captureCheck):
		}
		now := readQuietly(a.config().Paths.ResolvConf)
		if bytes.Equal(now, seen) && time.Since(last) < captureReview && !a.capture.failing() {
			continue
		}
		seen, last = now, time.Now()
		a.settleCapture(ctx)
	}
}

// readQuietly returns a file's content, nil when it cannot be read: whoever needs it says so.
func readQuietly(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}

// captureFactsOf reads what rules depend on from this machine.
func captureFactsOf(ctx context.Context, cfg *bootstrap.Config) (iptables.Facts, error) {
	return iptables.GatherFacts(ctx, iptables.GatherConfig{
		ResolvConf: cfg.Paths.ResolvConf,
		Group:      cfg.Paths.Group,
		SSHDConfig: filepath.Join(cfg.Root, "etc/ssh/sshd_config"),
	})
}
