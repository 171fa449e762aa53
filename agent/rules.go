package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"wingman/bootstrap"
	"wingman/iptables"
)

// Rules makes and unmakes capture rules by hand, from the same files as the daemon and without a control plane.
type Rules struct {
	cfg     *bootstrap.Config
	facts   iptables.Facts
	plan    iptables.Rules
	auto    bool // the settings leave the level to the facts
	applier *iptables.Applier
}

// OpenRules reads the settings below root and plans their rules.
//
// The level is the settings', and all where they leave it to the facts: whoever asks by hand wants to see the whole of it. Errors of
// the settings that have nothing to do with capture (a missing root certificate) do not matter here.
func OpenRules(ctx context.Context, root string) (*Rules, error) {
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		return nil, problems.Err()
	}
	facts, err := captureFactsOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	applier, err := iptables.NewApplier(iptables.ApplierConfig{})
	if err != nil {
		return nil, err
	}
	level, known := captureLevels[cfg.Capture.Level]
	if !known {
		level = iptables.LevelAll
	}
	r := &Rules{cfg: cfg, facts: facts, auto: !known, applier: applier}
	r.plan, err = r.planAt(level)
	return r, err
}

func (r *Rules) planAt(level iptables.Level) (iptables.Rules, error) {
	c, err := CaptureConfig(r.cfg, level)
	if err != nil {
		return iptables.Rules{}, err
	}
	return iptables.Plan(c, r.facts)
}

// Plan returns what should be in the kernel.
func (r *Rules) Plan() iptables.Rules { return r.plan }

// ErrCustomRules means that the operator keeps the rules: ISTIO_CUSTOM_IP_TABLES.
var ErrCustomRules = errors.New("ISTIO_CUSTOM_IP_TABLES says that the rules of this machine are not ours to make")

// Apply puts the plan into the kernel of the current network namespace. warnings say what will not work until something listens.
func (r *Rules) Apply(ctx context.Context) (warnings []string, err error) {
	if r.cfg.Capture.CustomTables {
		return nil, ErrCustomRules
	}
	if err := r.applier.Apply(ctx, r.plan); err != nil {
		return nil, err
	}
	return r.unserved(ctx), nil
}

// Status reads the kernel back and compares it with the plan.
func (r *Rules) Status(ctx context.Context) (iptables.Status, error) {
	s, _, err := r.compare(ctx)
	return s, err
}

// Diff lists what differs between the kernel and the plan; ErrCustomRules where there is no plan of ours to keep to.
func (r *Rules) Diff(ctx context.Context) ([]iptables.Difference, error) {
	if r.cfg.Capture.CustomTables {
		return nil, ErrCustomRules
	}
	_, plan, err := r.compare(ctx)
	if err != nil {
		return nil, err
	}
	return r.applier.Diff(ctx, plan)
}

// compare finds the plan that the kernel is to be compared with. Where the settings leave the level to the facts, a daemon without Envoy has put in
// the rules for DNS alone: they are it when the kernel is nearer to them.
func (r *Rules) compare(ctx context.Context) (iptables.Status, iptables.Rules, error) {
	if r.cfg.Capture.CustomTables { // what is there is the operator's; nothing is missing
		s, err := r.applier.Status(ctx, iptables.Rules{})
		return s, iptables.Rules{}, err
	}
	s, err := r.applier.Status(ctx, r.plan)
	if err != nil || !r.auto || s.State != iptables.Partial {
		return s, r.plan, err
	}
	dns, err := r.planAt(iptables.LevelDNS)
	if err != nil || dns.Empty() {
		return s, r.plan, err
	}
	if lesser, err := r.applier.Status(ctx, dns); err == nil && len(lesser.Diff) < len(s.Diff) {
		return lesser, dns, nil
	}
	return s, r.plan, nil
}

// Try puts the plan in for d and has the former rules put back then, unless ConfirmRules is called in the meantime. That happens even if this process, its
// shell and its SSH session end: a process of its own waits for it.
func (r *Rules) Try(ctx context.Context, d time.Duration) error {
	if r.cfg.Capture.CustomTables {
		return ErrCustomRules
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	return r.applier.Try(ctx, r.plan, append(ownScope(), self, "rules", "guardian", "--for", d.String()))
}

// ownScope is the command that runs another in a cgroup of its own, where systemd can make one: it may end a session's, or a unit's, with everything in it.
// The process stays the caller's child, with its files and its network namespace.
func ownScope() []string {
	if _, err := os.Stat("/run/systemd/private"); err != nil || os.Geteuid() != 0 {
		return nil
	}
	program, err := exec.LookPath("systemd-run")
	if err != nil {
		return nil
	}
	return []string{program, "--scope", "--quiet", "--collect", fmt.Sprintf("--unit=wingman-trial-%d", os.Getpid()), "--"}
}

// GuardRules is the process that Try starts.
func GuardRules(ctx context.Context, d time.Duration, out io.Writer) error {
	applier, err := iptables.NewApplier(iptables.ApplierConfig{})
	if err != nil {
		return err
	}
	return applier.Guardian(ctx, d, out)
}

// ConfirmRules keeps the rules that are on trial.
func ConfirmRules(ctx context.Context) error { return iptables.Confirm(ctx) }

// RemoveRules takes everything of ours, and what Istio's own tool left, out of the kernel. It needs no settings: on a machine whose files are
// broken or gone this must work too. endedTrial says that rules were on trial, which is over with that.
func RemoveRules(ctx context.Context) (endedTrial bool, err error) {
	applier, err := iptables.NewApplier(iptables.ApplierConfig{})
	if err != nil {
		return false, err
	}
	if endedTrial, err = iptables.EndTrial(ctx); err != nil {
		return false, err
	}
	return endedTrial, applier.Remove(ctx)
}

// unserved names the ports that traffic is sent to although nobody listens there.
func (r *Rules) unserved(ctx context.Context) (warnings []string) {
	type target struct {
		port uint16
		what string
	}
	var targets []target
	c := r.cfg.Capture
	if r.plan.Level >= iptables.LevelDNS && c.DNS {
		targets = append(targets, target{c.DNSPort, "DNS queries"})
	}
	if r.plan.Level == iptables.LevelAll {
		targets = append(targets, target{c.ProxyPort, "outbound connections"}, target{c.InboundPort, "inbound connections"})
	}
	var d net.Dialer
	for _, t := range targets {
		dialCtx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		conn, err := d.DialContext(dialCtx, "tcp", netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), t.port).String())
		cancel()
		if err == nil {
			conn.Close()
			continue
		}
		warnings = append(warnings, fmt.Sprintf("nothing listens on port %d yet: captured %s are refused until something does", t.port, t.what))
	}
	slices.SortFunc(warnings, func(a, b string) int { return cmp.Compare(strings.ToLower(a), strings.ToLower(b)) })
	return warnings
}
