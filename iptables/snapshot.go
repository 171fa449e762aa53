package iptables

import (
	"context"
	"errors"

	"github.com/google/nftables"
)

// snapshot remembers all of ours that is in the kernel, by any backend, and returns what puts it back. Rules of others that
// change in between are left alone. Both must be called holding the lock, in the namespace.
func (a *Applier) snapshot(ctx context.Context) (restore func(ctx context.Context) error, err error) {
	s, err := a.host.look()
	if err != nil {
		return nil, err
	}
	var parts []func(ctx context.Context) error
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		part, err := (&xtables{a.host, flavour}).snapshot(ctx, s)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	part, err := (&native{a.host}).snapshot(s)
	if err != nil {
		return nil, err
	}
	parts = append(parts, part)
	istios, err := snapshotIstioTables(s)
	if err != nil {
		return nil, err
	}
	parts = append([]func(ctx context.Context) error{istios}, parts...) // first: no moment without rules
	routes, err := staleRoutes(nil, s.marks)
	if err != nil {
		return nil, err
	}
	v6, _, err := passthroughOnLo()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := applyRoutes(&Rules{Routes: routes}, v6, false)
		errs := []error{err}
		for _, part := range parts {
			errs = append(errs, part(ctx))
		}
		stale, err := staleRoutes(routes, s.marks)
		errs = append(errs, err, removeRoutes(stale, routes))
		if !v6 {
			errs = append(errs, removePassthroughV6(false))
		}
		return errors.Join(errs...)
	}, nil
}

func (x *xtables) snapshot(ctx context.Context, s *seen) (func(ctx context.Context) error, error) {
	var before [2]state
	for _, fam := range []Family{IPv4, IPv6} {
		var err error
		if before[fam], err = x.known(ctx, fam, s); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) error {
		now, err := x.host.look()
		if err != nil {
			return err
		}
		var change []Family
		for _, fam := range []Family{IPv4, IPv6} {
			if s.ours(x.flavour, fam) || now.ours(x.flavour, fam) {
				change = append(change, fam)
			}
		}
		return x.rollBack(ctx, change, before)
	}, nil
}

// snapshot of the native table keeps it in the kernel's own words.
func (n *native) snapshot(s *seen) (func(ctx context.Context) error, error) {
	if !s.nativeTable() {
		return func(ctx context.Context) error {
			now, err := n.host.look()
			if err != nil {
				return err
			}
			return n.remove(ctx, now)
		}, nil
	}
	before, err := readRaw(nftables.TableFamilyINet, nativeTable)
	if err != nil {
		return nil, err
	}
	return func(context.Context) error { return before.write() }, nil
}

// snapshotIstioTables remembers the native tables of Istio's own tool.
func snapshotIstioTables(s *seen) (func(ctx context.Context) error, error) {
	var before []*rawTable
	for _, name := range istioTables {
		if s.nft == nil || !s.nft.names[nftables.TableFamilyINet][name] {
			continue
		}
		t, err := readRaw(nftables.TableFamilyINet, name)
		if err != nil {
			return nil, err
		}
		before = append(before, t)
	}
	return func(context.Context) error {
		var errs []error
		for _, t := range before {
			errs = append(errs, t.write())
		}
		return errors.Join(errs...)
	}, nil
}
