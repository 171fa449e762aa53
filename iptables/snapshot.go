package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
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
	routes, err := staleRoutes(nil, s.marks)
	if err != nil {
		return nil, err
	}
	v6, err := hasPassthroughV6()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := applyRoutes(&Rules{Routes: routes}, v6)
		errs := []error{err}
		for _, part := range parts {
			errs = append(errs, part(ctx))
		}
		stale, err := staleRoutes(routes, s.marks)
		errs = append(errs, err, removeRoutes(stale, routes))
		if !v6 {
			errs = append(errs, removePassthroughV6())
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

// hasPassthroughV6 reports whether ::6 is on lo.
func hasPassthroughV6() (bool, error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find lo: %w", err)
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if err != nil {
		return false, fmt.Errorf("list the addresses of lo: %w", err)
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(passthroughV6.IP) }), nil
}
