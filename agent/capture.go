package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/iptables"
)

// captureLimit bounds how long the daemon waits for rules to come in or go out: a lock held by a stranger must not hang it.
const captureLimit = 20 * time.Second

// captureFacts are what the level of capture depends on beside the settings.
type captureFacts struct {
	joined  bool // now or in an earlier run
	leaving bool
	envoy   bool // Envoy takes this machine's traffic
	down    bool // it does not, for longer than a restart takes
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
	// names says that systemd-resolved is to know the mesh's names.
	names bool
	// Traffic of that direction goes past an Envoy that is down, by the settings.
	openInbound, openOutbound bool
}

// decideCapture decides how much is captured. It is pure.
//
// Never what was never joined, never more than what somebody serves: TCP without Envoy would be refused, so it is DNS alone then, and
// nothing at all when this process's own queries would come back to itself.
func decideCapture(c bootstrap.Capture, f captureFacts) decision {
	d := decision{hands: !c.CustomTables, names: c.DNSByResolved && c.Level != "none" && f.joined && !f.leaving}
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
		switch {
		case c.DNSByResolved:
			d.level = iptables.LevelNone
		case !c.DNS:
			d.level, d.why = iptables.LevelNone, "there is no Envoy here to take traffic, and DNS capture is off: nothing is captured"
		}
	case d.wanted == iptables.LevelAll && f.down:
		d.openInbound, d.openOutbound = c.OpenInbound, c.OpenOutbound
		if open := openDirections(d); open != "" {
			d.why = "Envoy is down, and by the settings " + open + " traffic goes past it: no mutual TLS, no policy"
		}
	}
	return d
}

// openDirections names them for people.
func openDirections(d decision) string {
	switch {
	case d.openInbound && d.openOutbound:
		return "all"
	case d.openInbound:
		return "inbound"
	case d.openOutbound:
		return "outbound"
	}
	return ""
}

// capture keeps the rules as the settings and the facts want them. Where there are any, iptables.Keeper does: it follows resolv.conf and the machine's
// addresses, and puts back what others take out. Where there are none, nothing of this machine is touched.
type capture struct {
	log     *slog.Logger
	applier *iptables.Applier
	decide  func() captureWish
	plan    func(ctx context.Context, w captureWish) (iptables.Rules, bootRules, error)
	changed func()             // status shows something new
	news    chan chan struct{} // ask for another look; the channel is closed once it was acted on

	mu     sync.Mutex // guards everything below
	wish   captureWish
	keeper *iptables.Keeper // nil while nothing is kept
	broken string           // why rules could not be taken out
}

// captureWish is a decision with what it was made from.
type captureWish struct {
	decision
	cfg     *bootstrap.Config
	joined  bool
	leaving bool
}

// captureNames are the levels as operators know them, in the order of the metric.
var captureNames = []string{"none", "dns", "ports", "all"}

// name is a level's, under the settings of a wish: the rules of some ports are of the kernel's level all.
func (w captureWish) name(l iptables.Level) string {
	if l == iptables.LevelAll && w.cfg != nil && w.cfg.Capture.Level == "ports" {
		return "ports"
	}
	return l.String()
}

func newCapture(log *slog.Logger, applier *iptables.Applier, r prometheus.Registerer, decide func() captureWish, changed func()) *capture {
	c := &capture{log: log, applier: applier, decide: decide, plan: planCapture, changed: changed, news: make(chan chan struct{})}
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricCaptureLevel,
		Help: "What is captured now: 0 nothing, 1 DNS, 2 DNS and inbound connections to some ports, 3 all."}, func() float64 {
		return float64(slices.Index(captureNames, c.wished().name(c.level())))
	}))
	return c
}

// metricCaptureLevel is what is captured now.
const metricCaptureLevel = "wingman_capture_level"

// run keeps the rules until ctx ends, and leaves them as they are then: the next process takes over.
func (c *capture) run(ctx context.Context) error {
	var (
		keeping = newGroup(ctx, c.log)
		clean   bool // nothing of ours is in the kernel, as far as this process knows
		asked   chan struct{}
	)
	defer func() { c.halt(keeping) }()
	for {
		w := c.decide()
		c.mu.Lock()
		c.wish = w
		c.mu.Unlock()
		switch {
		case w.level != iptables.LevelNone && c.kept() == nil:
			clean = false
			c.noteOurs(w, true)
			if err := c.keep(keeping); err != nil {
				return err
			}
		case w.level != iptables.LevelNone:
			c.kept().Refresh()
		default:
			// A machine that never joined has nothing of ours; what others put there is none of our business.
			c.halt(keeping)
			keeping = newGroup(ctx, c.log)
			if w.hands && w.joined && !clean {
				clean = c.takeOut(ctx)
			}
			if clean || !w.hands {
				c.noteOurs(w, false)
			}
			if !w.leaving { // what leaves comes back with the next boot
				c.remember(w, bootRules{})
			}
		}
		c.changed()
		if asked != nil {
			close(asked)
			asked = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case asked = <-c.news:
		}
	}
}

// keep starts a Keeper.
func (c *capture) keep(g *group) error {
	k, err := iptables.NewKeeper(iptables.KeeperConfig{
		Applier: c.applier,
		Plan: func(ctx context.Context) (iptables.Rules, error) {
			w := c.wished()
			rules, from, err := c.plan(ctx, w)
			if err == nil {
				c.remember(w, from)
			}
			return rules, err
		},
		Files:    []string{c.wished().cfg.Paths.ResolvConf},
		Log:      c.log,
		OnChange: func(iptables.KeeperState) { c.changed() },
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.keeper = k
	c.mu.Unlock()
	g.start(task{name: "rules", run: k.Run})
	return nil
}

// remember notes for the next boot what rules were planned from.
func (c *capture) remember(w captureWish, from bootRules) {
	if err := saveBootRules(w.cfg, from); err != nil {
		c.log.Warn("the next boot has other rules until the agent is there", "cause", err)
	}
}

// oursFile is below the state folder while rules of ours are in the kernel, or may be. Where the agent cannot take them out when it is stopped for good,
// crash-guard does, if the file is there.
const oursFile = "rules.in"

// noteOurs says whether rules of ours may be in the kernel.
func (c *capture) noteOurs(w captureWish, in bool) {
	path := filepath.Join(w.cfg.Paths.StateDir, oursFile)
	var err error
	if in {
		err = writeFile(path, nil, 0o600)
	} else if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		c.log.Warn("a stop without a working agent is not told right whether rules are left", "cause", err)
	}
}

// halt ends the Keeper, if there is one; its rules stay.
func (c *capture) halt(g *group) {
	if err := g.stop(captureLimit); err != nil {
		c.log.Warn("the keeper of the rules does not stop", "cause", err)
	}
	c.mu.Lock()
	c.keeper = nil
	c.mu.Unlock()
}

// takeOut removes every rule of ours; it reports whether that went well.
func (c *capture) takeOut(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, captureLimit)
	defer cancel()
	err := c.applier.Remove(ctx)
	c.mu.Lock()
	c.broken = ""
	if err != nil {
		c.broken = err.Error()
	}
	c.mu.Unlock()
	if err != nil {
		c.log.Error("capture rules could not be taken out", "cause", err)
		return false
	}
	c.log.Info("capture rules are out")
	return true
}

// look has the decision made again and waits, within limits, until it was acted on.
func (c *capture) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, captureLimit)
	defer cancel()
	done := make(chan struct{})
	select {
	case c.news <- done:
	case <-ctx.Done():
		c.log.Error("rules are not as they should be: what keeps them is busy or has failed", "seconds", captureLimit.Seconds())
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
		c.log.Error("rules may not be as they should be yet", "seconds", captureLimit.Seconds())
	}
}

// ready waits, within limits, until rules that are wanted now are in place.
func (c *capture) ready(ctx context.Context) {
	k := c.kept()
	if k == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, captureLimit)
	defer cancel()
	select {
	case <-k.Ready():
	case <-ctx.Done():
	}
}

func (c *capture) kept() *iptables.Keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keeper
}

func (c *capture) wished() captureWish {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wish
}

// kernel is what is known of the rules there; its zero value where none are kept.
func (c *capture) kernel() iptables.KeeperState {
	if k := c.kept(); k != nil {
		return k.State()
	}
	return iptables.KeeperState{}
}

// level is what is captured now.
func (c *capture) level() iptables.Level { return c.kernel().Level }

// uncaptured says what the rules lack of what is decided now; empty: nothing. Rules on trial are an operator's doing. It is pure.
func uncaptured(w captureWish, s iptables.KeeperState) string {
	if !w.hands || w.level == iptables.LevelNone || s.Level == w.level && (s.InPlace || s.Trial) {
		return ""
	}
	return cmp.Or(s.Error, "the capture rules are not in place") + ": " + w.name(w.level) + " is to be captured"
}

func (c *capture) report() status.CaptureReport {
	c.mu.Lock()
	wish := c.wish
	r := status.CaptureReport{Wanted: wish.name(wish.wanted), Level: iptables.LevelNone.String(), Why: wish.why}
	k := c.keeper
	if c.broken != "" {
		r.Why = c.broken
	}
	c.mu.Unlock()
	if k == nil {
		return r
	}
	s := k.State()
	r.Level, r.InPlace, r.Repairs, r.Trial = wish.name(s.Level), s.InPlace, s.Repairs, s.Trial
	switch {
	case s.Error != "":
		r.Why = s.Error
	case s.Contested:
		r.Why = fmt.Sprintf("somebody keeps taking the rules out (%s): they are left alone until %s", cmp.Or(s.LostBy, "unknown"), s.RetryAt.Format(time.TimeOnly))
	}
	return r
}

// planCapture plans the rules of a decision for the machine as it is now, and tells what from.
func planCapture(ctx context.Context, w captureWish) (iptables.Rules, bootRules, error) {
	c, err := CaptureConfig(w.cfg, w.level)
	if err != nil {
		return iptables.Rules{}, bootRules{}, err
	}
	c.OpenInbound, c.OpenOutbound = w.openInbound, w.openOutbound
	facts, err := captureFactsOf(ctx, w.cfg)
	if err != nil {
		return iptables.Rules{}, bootRules{}, err
	}
	rules, err := iptables.Plan(c, facts)
	return rules, bootRules{Config: c, Facts: facts}, err
}

// captureFactsOf reads what rules depend on from this machine.
func captureFactsOf(ctx context.Context, cfg *bootstrap.Config) (iptables.Facts, error) {
	facts, err := iptables.GatherFacts(ctx, iptables.GatherConfig{
		ResolvConf: cfg.Paths.ResolvConf,
		Group:      cfg.Paths.Group,
		SSHDConfig: filepath.Join(cfg.Root, "etc/ssh/sshd_config"),
		SSHReport:  sshReport(cfg),
	})
	facts.AgentPorts = movedPorts(cfg)
	return facts, err
}

// movedPorts are the ports of agent and Envoy that the settings put elsewhere: the usual ones are guarded anyway.
func movedPorts(cfg *bootstrap.Config) (moved []uint16) {
	for _, p := range []struct{ port, usual uint16 }{
		{cfg.Status.Port, 15020}, {cfg.Status.ReadinessPort, 15021}, {cfg.Status.PrometheusPort, 15090},
		{cfg.Envoy.AdminPort, 15000}, {cfg.DNS.Listen.Port(), 15053},
	} {
		if p.port != p.usual && p.port != 0 {
			moved = append(moved, p.port)
		}
	}
	return moved
}

// sshReport is where the root helper of the unit says how people reach this machine: the agent cannot ask sshd itself.
func sshReport(cfg *bootstrap.Config) string { return filepath.Join(cfg.Paths.RunDir, "ssh.json") }

// WriteSSHReport is that helper.
func WriteSSHReport(ctx context.Context, root string) error {
	cfg, _ := bootstrap.Load(root)
	if cfg == nil { // broken settings: sshd is where it is
		cfg = &bootstrap.Config{Root: cmp.Or(root, "/"), Paths: bootstrap.DefaultPaths(root)}
	}
	return iptables.WriteSSHReport(ctx, sshReport(cfg), iptables.GatherConfig{SSHDConfig: filepath.Join(cfg.Root, "etc/ssh/sshd_config")})
}

// captureWish decides about capture from the daemon's state.
func (a *Agent) captureWish() captureWish {
	a.mu.Lock()
	cfg, joined, leaving := a.cfg, a.joined != nil, a.leaving
	a.mu.Unlock()
	p := a.envoy.now()
	uid, gid, err := proxyUser(cfg)
	return captureWish{cfg: cfg, joined: joined, leaving: leaving, decision: decideCapture(cfg.Capture, captureFacts{
		joined:  joined,
		leaving: leaving,
		envoy:   p.announced && p.proven,
		down:    p.down(time.Now()),
		exempt:  err == nil && (int(uid) == os.Geteuid() || int(gid) == os.Getegid()),
		user:    cfg.Capture.User,
	})}
}
