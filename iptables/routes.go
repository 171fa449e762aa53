package iptables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protoKernel marks our `ip rule`s. systemd-networkd removes the rules of others when it starts, except those of the kernel;
// and iproute2 prints them like a rule without a mark, as Istio's are.
const protoKernel = unix.RTPROT_KERNEL

// passthroughV6 is the source address of Envoy towards the application. IPv4 has all of 127/8 on lo, IPv6 needs it added.
var passthroughV6 = &net.IPNet{IP: net.ParseIP("::6"), Mask: net.CIDRMask(128, 128)}

// applyRoutes makes the policy routes of the plan, and ::6 on lo where wanted; what is there already is left alone.
// It returns what undoes the changes that it made.
func applyRoutes(rules *Rules, passthrough bool) (undo func() error, err error) {
	var undos []func() error
	undo = func() error {
		var errs []error
		for _, f := range slices.Backward(undos) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return undo, fmt.Errorf("find lo: %w", err)
	}
	if passthrough {
		err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: passthroughV6})
		switch {
		case err == nil:
			undos = append(undos, func() error { return netlink.AddrDel(lo, &netlink.Addr{IPNet: passthroughV6}) })
		case errors.Is(err, unix.EACCES): // IPv6 is switched off (sysctl disable_ipv6): nothing will need the address
		case !errors.Is(err, unix.EEXIST):
			return undo, kernelError("add ::6 to lo", err)
		}
	}
	for _, r := range rules.Routes {
		route := localRoute(r, lo.Attrs().Index)
		if err := netlink.RouteAdd(route); err == nil {
			undos = append(undos, func() error { return netlink.RouteDel(route) })
		} else if !errors.Is(err, unix.EEXIST) {
			return undo, kernelError(fmt.Sprintf("add %s route local default dev lo to table %d", r.Family, r.Table), err)
		}
		have, err := findRules(r)
		if err != nil {
			return undo, err
		}
		if len(have) > 0 {
			continue
		}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table, rule.Protocol = routeFamily(r.Family), r.Mark, r.Table, protoKernel
		if err := netlink.RuleAdd(rule); err != nil {
			return undo, kernelError(fmt.Sprintf("add %s rule fwmark %#x lookup %d", r.Family, r.Mark, r.Table), err)
		}
		undos = append(undos, func() error { return netlink.RuleDel(rule) })
	}
	return undo, nil
}

// needsPassthroughV6 reports whether the plan captures IPv6 for Envoy.
func needsPassthroughV6(rules *Rules) bool {
	return rules.Families[IPv6].find("nat", chainInRedirect) != nil
}

func routeFamily(fam Family) int {
	if fam == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func localRoute(r PolicyRoute, lo int) *netlink.Route {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if r.Family == IPv6 {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{
		Family: routeFamily(r.Family),
		Dst:    &net.IPNet{IP: everything.Addr().AsSlice(), Mask: net.CIDRMask(0, everything.Addr().BitLen())},
		Scope:  netlink.SCOPE_HOST, Type: unix.RTN_LOCAL, Table: r.Table, LinkIndex: lo,
	}
}

// findRules returns the `ip rule`s that match nothing but this mark and look up this table.
func findRules(r PolicyRoute) ([]netlink.Rule, error) {
	all, err := netlink.RuleList(routeFamily(r.Family))
	if err != nil {
		return nil, fmt.Errorf("list %s policy rules: %w", r.Family, err)
	}
	return slices.DeleteFunc(all, func(rule netlink.Rule) bool {
		return !isMarkRule(&rule) || rule.Mark != r.Mark || rule.Table != r.Table
	}), nil
}

// isMarkRule reports whether a rule selects by a whole mark and nothing else.
func isMarkRule(r *netlink.Rule) bool {
	return r.Mark != 0 && (r.Mask == nil || *r.Mask == 0xffffffff) && r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == "" &&
		!r.Invert && r.Sport == nil && r.Dport == nil && r.IPProto == 0 && r.TunID == 0 && r.Goto < 0 && r.UIDRange == nil
}

// staleRoutes finds policy routes that are ours or Istio's and not in want. Ours are known by their mark of origin, Istio's by
// marks: the packet marks that its chains, as found in the kernel before they were removed, set for TPROXY, and its default.
func staleRoutes(want []PolicyRoute, marks []uint32) ([]PolicyRoute, error) {
	var out []PolicyRoute
	for _, fam := range []Family{IPv4, IPv6} {
		all, err := netlink.RuleList(routeFamily(fam))
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s policy rules: %w", fam, err)
		}
		for i := range all {
			r := PolicyRoute{Family: fam, Mark: all[i].Mark, Table: all[i].Table}
			if !isMarkRule(&all[i]) || slices.Contains(want, r) {
				continue
			}
			ours := all[i].Protocol == protoKernel || slices.Contains(marks, r.Mark) || (r.Mark == defaultTProxyMark && r.Table == defaultTProxyTable)
			if !ours {
				continue
			}
			only, err := onlyLocalDefault(r)
			if err != nil {
				return nil, err
			}
			if only && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// onlyLocalDefault reports whether a route table holds `local default dev lo` and nothing else, or nothing at all: a table
// with more in it is somebody's own.
func onlyLocalDefault(r PolicyRoute) (bool, error) {
	routes, err := netlink.RouteListFiltered(routeFamily(r.Family), &netlink.Route{Table: r.Table, Type: unix.RTN_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return false, fmt.Errorf("list %s route table %d: %w", r.Family, r.Table, err)
	}
	if len(routes) == 0 {
		return true, nil
	}
	ones := -1
	if d := routes[0].Dst; d != nil {
		ones, _ = d.Mask.Size()
	}
	return len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL && ones <= 0, nil
}

// kernelError adds the next step where the kernel said no more than "not permitted".
func kernelError(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%s: %w: %s", what, err, needsCapabilities)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// hasLocalDefault reports whether the route of r is there.
func hasLocalDefault(r PolicyRoute) (bool, error) {
	routes, err := netlink.RouteListFiltered(routeFamily(r.Family), &netlink.Route{Table: r.Table, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return false, fmt.Errorf("list %s route table %d: %w", r.Family, r.Table, err)
	}
	return slices.ContainsFunc(routes, func(route netlink.Route) bool {
		ones := 0
		if route.Dst != nil {
			ones, _ = route.Dst.Mask.Size()
		}
		return ones == 0
	}), nil
}

// removeRoutes takes policy routes out; what is gone already is fine. A route table that is still wanted stays.
func removeRoutes(list, want []PolicyRoute) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	var errs []error
	for _, r := range list {
		rules, err := findRules(r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for i := range rules {
			if err := netlink.RuleDel(&rules[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, kernelError(fmt.Sprintf("remove %s rule fwmark %#x lookup %d", r.Family, r.Mark, r.Table), err))
			}
		}
		if slices.ContainsFunc(want, func(w PolicyRoute) bool { return w.Family == r.Family && w.Table == r.Table }) {
			continue
		}
		if err := netlink.RouteDel(localRoute(r, lo.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, kernelError(fmt.Sprintf("remove %s route local default dev lo from table %d", r.Family, r.Table), err))
		}
	}
	return errors.Join(errs...)
}

// removePassthroughV6 takes ::6 off lo.
func removePassthroughV6() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	err = netlink.AddrDel(lo, &netlink.Addr{IPNet: passthroughV6})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return kernelError("remove ::6 from lo", err)
	}
	return nil
}
