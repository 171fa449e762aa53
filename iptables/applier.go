package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Backends: how rules get into the kernel.
const (
	BackendAuto   = "auto"   // the iptables flavour that already holds rules, else nft; native where there is no iptables
	BackendNFT    = "nft"    // iptables-nft-restore
	BackendLegacy = "legacy" // iptables-legacy-restore
	BackendNative = "native" // one nftables table, by netlink, without any command
)

// allBackends are looked through for rules of ours, whichever is in use.
var allBackends = []string{BackendNFT, BackendLegacy, BackendNative}

// ApplierConfig is what an Applier needs; the zero value is usable.
type ApplierConfig struct {
	Log      *slog.Logger          // nil discards
	Metrics  prometheus.Registerer // nil registers nothing
	LockWait time.Duration         // how long to wait for another process that changes our rules; zero means 10 s
}

// Applier puts plans into the kernel of the network namespace of the calling thread, reads them back and takes them out.
//
// It keeps no state of its own: what is ours is found in the kernel, whoever put it there. Safe for concurrent use; changes
// wait for each other, also across processes.
type Applier struct {
	log      *slog.Logger
	metrics  *metrics
	lockWait time.Duration
	host     *host
}

// NewApplier makes an Applier. It touches nothing yet.
func NewApplier(cfg ApplierConfig) (*Applier, error) {
	a := &Applier{log: cfg.Log, lockWait: cfg.LockWait, host: systemHost()}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.lockWait == 0 {
		a.lockWait = 10 * time.Second
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	a.metrics = m
	return a, nil
}

// choose picks the backend for a plan: the wanted one, else the one that already holds ours, else by who uses what.
func (a *Applier) choose(wanted string, s *seen) (string, error) {
	nft, legacy := &xtables{a.host, BackendNFT}, &xtables{a.host, BackendLegacy}
	switch wanted {
	case BackendNFT, BackendLegacy:
		x := &xtables{a.host, wanted}
		if _, err := x.command(IPv4, "-restore"); err != nil {
			return "", err
		}
		return wanted, nil
	case BackendNative:
		if s.nft == nil {
			return "", fmt.Errorf("backend native: %w", s.nftErr)
		}
		return wanted, nil
	}
	legacyRules := s.usesLegacy()
	hasNFT, hasLegacy := s.nft != nil && nft.installed(), legacy.installed()
	switch {
	case hasNFT && s.ours(BackendNFT, IPv4):
		return BackendNFT, nil
	case hasLegacy && legacyRules && s.ours(BackendLegacy, IPv4):
		return BackendLegacy, nil
	case s.nativeTable():
		return BackendNative, nil
	case hasLegacy && legacyRules && !s.usesNFT():
		return BackendLegacy, nil
	case hasLegacy && legacyRules && a.plainFlavour() == BackendLegacy:
		return BackendLegacy, nil
	case hasNFT:
		return BackendNFT, nil
	case s.nft != nil:
		return BackendNative, nil
	case hasLegacy:
		return BackendLegacy, nil
	}
	return "", fmt.Errorf("no way to put rules into this kernel: it has no nf_tables (%w), and iptables-legacy is not installed", s.nftErr)
}

// plainFlavour is the flavour of the command that people type: where both hold rules, it says which one this machine means.
func (a *Applier) plainFlavour() string {
	path, err := a.host.find("iptables")
	if err != nil {
		return ""
	}
	return flavourOf(path)
}

// Apply brings the kernel to the plan: nothing is touched when it is there already, and a failure anywhere leaves the rules
// as they were. Rules of ours that a former configuration put in by another backend are removed once the new ones are in.
//
// An empty plan takes out everything of ours. While rules are on trial it fails with ErrOnTrial: what it did would be undone with
// them. The error says what to do next.
func (a *Applier) Apply(ctx context.Context, rules Rules) error { return a.putIn(ctx, rules, false) }

// putIn is Apply, and what Try does for the rules on trial.
func (a *Applier) putIn(ctx context.Context, rules Rules, trial bool) error {
	start := time.Now()
	err := a.apply(ctx, &rules, trial)
	if rules.Empty() {
		a.metrics.removed(err)
	} else {
		a.metrics.applied(err, time.Since(start))
	}
	return err
}

func (a *Applier) apply(ctx context.Context, rules *Rules, trial bool) error {
	release, err := acquire(ctx, a.lockWait)
	if err != nil {
		return err
	}
	defer release()
	if err := mayApply(ctx, trial); err != nil {
		return err
	}
	s, err := a.host.look()
	if err != nil {
		return err
	}
	if rules.Empty() {
		err = a.removeAll(ctx, s)
	} else {
		err = a.change(ctx, rules, s)
	}
	if err == nil && !trial && s.trialMarked() { // its guardian is dead; what it guarded is over now
		err = dropTrialMark()
	}
	return err
}

// change brings the kernel, as seen, to the plan.
func (a *Applier) change(ctx context.Context, rules *Rules, s *seen) error {
	name, err := a.choose(rules.Backend, s)
	if err != nil {
		return err
	}
	a.log.Debug("backend of the capture rules chosen", "backend", name, "configured", rules.Backend, "nf_tables", s.nft != nil,
		"legacy_in_use", s.usesLegacy(), "native_table", s.nativeTable())
	// Where another backend holds ours, there are two sets of rules to change: both, or none.
	var former func(ctx context.Context) error
	if s.oursBeside(name) {
		if s.ours(BackendLegacy, IPv4) || s.ours(BackendLegacy, IPv6) || name == BackendLegacy {
			if err := awaitXtables(ctx, a.lockWait); err != nil {
				return err
			}
		}
		if former, err = a.snapshot(ctx); err != nil {
			return fmt.Errorf("remember the rules of the former backend: %w", err)
		}
	}
	undo, err := applyRoutes(rules, needsPassthroughV6(rules), s.istioV6())
	if err != nil {
		return errors.Join(err, undo())
	}
	a.host.step("routes")
	err = a.backend(name).apply(ctx, rules, s)
	if name == BackendNFT && rules.Backend == BackendAuto && isIncompatible(err) {
		name, err = BackendNative, a.backend(BackendNative).apply(ctx, rules, s)
	}
	if err != nil {
		return errors.Join(err, undo())
	}
	// From here on the new rules work; what is left is tidying up.
	err = a.tidy(ctx, name, rules, s)
	if err != nil && former != nil {
		err = errors.Join(fmt.Errorf("%w: the former rules are put back", err), former(context.WithoutCancel(ctx)))
	}
	return err
}

// tidy takes out what is left of former configurations, now that a backend holds the rules.
func (a *Applier) tidy(ctx context.Context, name string, rules *Rules, s *seen) error {
	for _, other := range allBackends {
		if other != name {
			if err := a.backend(other).remove(ctx, s); err != nil {
				return fmt.Errorf("remove the rules of backend %s, now that %s holds them: %w", other, name, err)
			}
			a.host.step("tidied " + other)
		}
	}
	if err := removeIstioTables(s); err != nil {
		return err
	}
	if !needsPassthroughV6(rules) {
		if err := removePassthroughV6(s.istioV6()); err != nil {
			return err
		}
	}
	stale, err := staleRoutes(rules.Routes, s.marks)
	if err != nil {
		return err
	}
	return removeRoutes(stale, rules.Routes)
}

// Remove takes out everything of ours, by whichever backend it was put in, and what Istio's own tool left: chains and
// rules, tables, policy routes. Nothing else is touched; there is no error when there is nothing. A trial ends with it: what
// was there before the rules on trial is not put back any more.
func (a *Applier) Remove(ctx context.Context) error {
	err := a.remove(ctx)
	a.metrics.removed(err)
	return err
}

func (a *Applier) remove(ctx context.Context) error {
	if ended, err := EndTrial(ctx); err != nil {
		return err
	} else if ended {
		a.log.Info("rules are no longer on trial: they are removed")
	}
	release, err := acquire(ctx, a.lockWait)
	if err != nil {
		return err
	}
	defer release()
	s, err := a.host.look()
	if err != nil {
		return err
	}
	return a.removeAll(ctx, s)
}

// removeAll takes out everything that was seen.
func (a *Applier) removeAll(ctx context.Context, s *seen) error {
	var errs []error
	for _, name := range allBackends {
		errs = append(errs, a.backend(name).remove(ctx, s))
		a.host.step("remove " + name)
	}
	errs = append(errs, removeIstioTables(s))
	stale, err := staleRoutes(nil, s.marks)
	if err == nil {
		err = removeRoutes(stale, nil)
	}
	errs = append(errs, err, removePassthroughV6(s.istioV6()))
	return errors.Join(errs...)
}

// backend is one way into the kernel. Only Applier calls it, holding the lock.
type backend interface {
	apply(ctx context.Context, rules *Rules, s *seen) error
	remove(ctx context.Context, s *seen) error
	sections(ctx context.Context, rules *Rules, s *seen) ([]section, error)
	counters(ctx context.Context, s *seen) (Counters, error)
}

func (a *Applier) backend(name string) backend {
	if name == BackendNative {
		return &native{a.host}
	}
	return &xtables{a.host, name}
}
