package iptables

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// protoKernel marks our `ip rule`s. systemd-networkd removes the rules of others when it starts, except those of the kernel;
// and iproute2 prints them like a rule without a mark, as Istio's are.
const protoKernel = unix.RTPROT_KERNEL

// protoGuest marks an `ip rule` of ours whose route was there before us and stays after us: the table is shared with somebody.
const protoGuest = 87

// passthroughV6 is the source address of Envoy towards the application. IPv4 has all of 127/8 on lo, IPv6 needs it added. Ours is
// known by a flag (noprefixroute) that means nothing for a single address, and that neither Istio's tool nor people set.
var passthroughV6 = &net.IPNet{IP: net.ParseIP("::6"), Mask: net.CIDRMask(128, 128)}

// applyRoutes makes the policy routes of the plan, and ::6 on lo where wanted; what is there already is left alone.
// It returns what undoes the changes that it made. A ::6 that Istio's tool left becomes ours.
func applyRoutes(rules *Rules, passthrough, istioV6 bool) (undo func() error, err error) {
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
		err := netlink.AddrAdd(lo, ownPassthroughV6())
		switch {
		case err == nil:
			undos = append(undos, func() error { return netlink.AddrDel(lo, &netlink.Addr{IPNet: passthroughV6}) })
		case errors.Is(err, unix.EEXIST) && istioV6:
			if err := netlink.AddrReplace(lo, ownPassthroughV6()); err != nil {
				return undo, kernelError("take over ::6 on lo", err)
			}
		case errors.Is(err, unix.EACCES): // IPv6 is switched off (sysctl disable_ipv6): nothing will need the address
		case !errors.Is(err, unix.EEXIST):
			return undo, kernelError("add ::6 to lo", err)
		}
	}
	for _, r := range rules.Routes {
		// The rule says whose the route is, so it goes in first: a route without one is somebody else's.
		have, err := findRules(r)
		if err != nil {
			return undo, err
		}
		known := len(have) > 0
		there, err := hasLocalDefault(r)
		if err != nil {
			return undo, err
		}
		if !known {
			rule := netlink.NewRule()
			rule.Family, rule.Mark, rule.Table, rule.Protocol = routeFamily(r.Family), r.Mark, r.Table, protoKernel
			if there {
				if rule.Protocol, err = heir(r); err != nil {
					return undo, err
				}
			}
			if err := netlink.RuleAdd(rule); err != nil {
				return undo, kernelError(fmt.Sprintf("add %s rule fwmark %#x lookup %d", r.Family, r.Mark, r.Table), err)
			}
			undos = append(undos, func() error { return netlink.RuleDel(rule) })
		}
		route := localRoute(r, lo.Attrs().Index)
		if err := netlink.RouteAdd(route); err == nil {
			undos = append(undos, func() error { return netlink.RouteDel(route) })
		} else if !errors.Is(err, unix.EEXIST) {
			return undo, kernelError(fmt.Sprintf("add %s route local default dev lo to table %d", r.Family, r.Table), err)
		}
	}
	return undo, nil
}

// heir returns the mark of origin for a new rule to a route that is there already: ours, where another rule of ours or Istio's led
// to it before, else that of a guest.
func heir(r PolicyRoute) (uint8, error) {
	all, err := netlink.RuleList(routeFamily(r.Family))
	if err != nil {
		return 0, fmt.Errorf("list %s policy rules: %w", r.Family, err)
	}
	for _, rule := range all {
		istios := isMarkRule(&rule) && rule.Mark == defaultTProxyMark && r.Table == defaultTProxyTable
		if rule.Table == r.Table && (rule.Protocol == protoKernel || istios) {
			return protoKernel, nil
		}
	}
	return protoGuest, nil
}

// ownPassthroughV6 is ::6 as we add it.
func ownPassthroughV6() *netlink.Addr {
	return &netlink.Addr{IPNet: passthroughV6, Flags: unix.IFA_F_NOPREFIXROUTE}
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
			istios := slices.Contains(marks, r.Mark) || (r.Mark == defaultTProxyMark && r.Table == defaultTProxyTable)
			if !madeByUs(&all[i]) {
				if !istios {
					continue
				}
				if only, err := onlyLocalDefault(r); err != nil {
					return nil, err
				} else if !only {
					continue
				}
			}
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

func madeByUs(r *netlink.Rule) bool { return r.Protocol == protoKernel || r.Protocol == protoGuest }

// ownsRoute reports whether the route that r's rules lead to goes with them: ours says so itself, and Istio's belongs to it unless
// another rule leads there, too.
func ownsRoute(r PolicyRoute, rules []netlink.Rule) (bool, error) {
	if i := slices.IndexFunc(rules, func(rule netlink.Rule) bool { return madeByUs(&rule) }); i >= 0 {
		return rules[i].Protocol == protoKernel, nil
	}
	all, err := netlink.RuleList(routeFamily(r.Family))
	if err != nil {
		return false, fmt.Errorf("list %s policy rules: %w", r.Family, err)
	}
	return !slices.ContainsFunc(all, func(rule netlink.Rule) bool {
		return rule.Table == r.Table && (!isMarkRule(&rule) || rule.Mark != r.Mark)
	}), nil
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

// removeRoutes takes policy routes out, each before the rules that say whose it is; what is gone already is fine. A route table that
// is still wanted stays.
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
		owns, err := ownsRoute(r, rules)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if owns && !slices.ContainsFunc(want, func(w PolicyRoute) bool { return w.Family == r.Family && w.Table == r.Table }) {
			if err := netlink.RouteDel(localRoute(r, lo.Attrs().Index)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, kernelError(fmt.Sprintf("remove %s route local default dev lo from table %d", r.Family, r.Table), err))
			}
		}
		for i := range rules {
			if err := netlink.RuleDel(&rules[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, kernelError(fmt.Sprintf("remove %s rule fwmark %#x lookup %d", r.Family, r.Mark, r.Table), err))
			}
		}
	}
	return errors.Join(errs...)
}

// removePassthroughV6 takes ::6 off lo if it is ours, or if Istio's tool is known to have been here.
func removePassthroughV6(istioV6 bool) error {
	there, own, err := passthroughOnLo()
	if err != nil || !there || !(own || istioV6) {
		return err
	}
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

// passthroughOnLo reports whether ::6 is on lo, and whether we put it there.
func passthroughOnLo() (there, own bool, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, false, fmt.Errorf("find lo: %w", err)
	}
	addrs, err := netlink.AddrList(lo, netlink.FAMILY_V6)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("list the addresses of lo: %w", err)
	}
	for _, a := range addrs {
		if a.IP.Equal(passthroughV6.IP) {
			return true, a.Flags&unix.IFA_F_NOPREFIXROUTE != 0, nil
		}
	}
	return false, false, nil
}

// istioV6 reports whether IPv6 rules of Istio's tool, and none of ours, were seen: a ::6 on lo is its doing then.
func (s *seen) istioV6() bool {
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		chains := s.chains(flavour, IPv6)
		all := slices.Concat(slices.Collect(maps.Values(chains))...)
		if slices.Contains(chains["nat"], chainInRedirect) && !slices.ContainsFunc(all, func(c string) bool { return strings.HasPrefix(c, "WINGMAN_") }) {
			return true
		}
	}
	return s.nft != nil && slices.ContainsFunc(istioTables, func(name string) bool { return s.nft.names[nftables.TableFamilyINet][name] })
}
