package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"wingman/bootstrap"
	"wingman/iptables"
)

// This file is about another agent that takes this one's place, or gives it back: package adopt.

// handoverFile is there, and locked by a process, while another agent is about to take this machine over: a stop then is no goodbye. Rules, entry and Envoy's connections are that one's
// to go on with, and crash-guard leaves the rules alone. It is in that one's folder, where only root writes.
const handoverFile = "run/wingman-guard/handover"

// HandOver has the daemon's next stop leave everything in place for another agent, until done is called.
func HandOver(root string) (done func() error, err error) {
	path := filepath.Join(cmp.Or(root, "/"), handoverFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("hand over: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("hand over: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("hand over: another process is at it: %w", err), f.Close())
	}
	err = f.Truncate(0) // of one that was killed
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid()) // for the crash guard
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hand over: %w", err), f.Close())
	}
	return func() error { return errors.Join(os.Remove(path), f.Close()) }, nil
}

// handedOver reports whether another agent is about to take over. A file that nobody locks is left over from a process that was killed.
func handedOver(cfg *bootstrap.Config) bool {
	f, err := os.Open(filepath.Join(cfg.Root, handoverFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// TakeOverRules are the capture rules of the settings, put in the place of another agent's while that one serves.
type TakeOverRules struct {
	applier *iptables.Applier
	plan    iptables.Rules
	InUse   iptables.Status
}

// OpenTakeOver plans the rules with DNS at another port. It changes nothing.
func OpenTakeOver(ctx context.Context, root string, dnsPort uint16) (*TakeOverRules, error) {
	r, err := OpenRules(ctx, root)
	if err != nil {
		return nil, err
	}
	c, err := CaptureConfig(r.cfg, r.plan.Level)
	if err != nil {
		return nil, err
	}
	t := &TakeOverRules{applier: r.applier}
	c.DNSPort = dnsPort
	if t.plan, err = iptables.Plan(c, r.facts); err != nil {
		return nil, err
	}
	t.InUse, err = r.applier.Status(ctx, iptables.Rules{})
	return t, err
}

// Apply puts them in, all or none; restore puts back what was there.
func (t *TakeOverRules) Apply(ctx context.Context) (restore func(ctx context.Context) error, err error) {
	if restore, err = t.applier.Snapshot(ctx); err != nil {
		return nil, fmt.Errorf("remember the rules of the other agent: %w", err)
	}
	return restore, t.applier.Apply(ctx, t.plan)
}

// Surroundings are what has to go on while no rules are in.
type Surroundings struct {
	SSH       []uint16     // ports by which people come in
	Resolvers []netip.Addr // servers that applications ask
}

// LookAround finds them.
func LookAround(ctx context.Context, root string) Surroundings {
	s := Surroundings{SSH: []uint16{22}}
	if r, err := OpenRules(ctx, root); err == nil {
		for _, l := range r.facts.SSH.Listeners {
			s.SSH = append(s.SSH, l.Port)
		}
		s.Resolvers = r.facts.Resolvers
	}
	return s
}
