package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ErrNoInstanceAddr means that no address of this machine may stand in a WorkloadEntry, now: the network may still be coming up.
var ErrNoInstanceAddr = errors.New("no instance address")

// InstanceAddrs returns the addresses of this machine as the mesh shall know it, the WorkloadEntry's first.
//
// ISTIO_SVC_IP decides if it is set. Else it is the source address of the route to targets (istiod's addresses, in the order of
// preference); when that is of no use, as with a tunnel on loopback, that of the default route; else the only IPv4, or the only IPv6 address there is.
// Never loopback, link-local or temporary addresses, nor those of a bridge, which other hosts do not reach. With dualStack an
// address of the other family follows when there is one. The error wraps ErrNoInstanceAddr and says what was there instead.
//
// The kernel of the current network namespace is asked, by netlink; no packet is sent, and it does not wait.
func InstanceAddrs(ctx context.Context, c *Config, targets []netip.Addr) ([]netip.Addr, error) {
	if len(c.InstanceIPs) > 0 && (!c.DualStack || len(c.InstanceIPs) > 1) {
		return slices.Clone(c.InstanceIPs), nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	facts, err := readAddrFacts(targets)
	if err != nil {
		return nil, err
	}
	return chooseAddrs(c.InstanceIPs, c.DualStack, facts)
}

// addrFacts is what the kernel says about addresses.
type addrFacts struct {
	addrs    []localAddr
	toTarget []netip.Addr // source addresses of the routes to istiod, best first
	byRoute  []netip.Addr // source addresses of the default routes, IPv4 first
}

// localAddr is an address of this machine.
type localAddr struct {
	addr      netip.Addr
	link      string // interface name
	kind      string // of the interface, as "veth" or "bridge"; empty for hardware
	up        bool
	temporary bool // RFC 8981, or deprecated, or not yet proved unique: it will be gone
}

// chooseAddrs decides. fixed is ISTIO_SVC_IP.
func chooseAddrs(fixed []netip.Addr, dualStack bool, f addrFacts) ([]netip.Addr, error) {
	chosen := slices.Clone(fixed)
	if len(chosen) == 0 {
		first, ok := firstUsable(f, append(slices.Clone(f.toTarget), f.byRoute...))
		if !ok {
			first, ok = onlyAddr(f, netip.Addr.Is4)
		}
		if !ok {
			first, ok = onlyAddr(f, netip.Addr.Is6)
		}
		if !ok {
			return nil, fmt.Errorf("%w: %s; set ISTIO_SVC_IP in sidecar.env, or workload.addresses in wingman.yaml", ErrNoInstanceAddr, f)
		}
		chosen = []netip.Addr{first}
	}
	if dualStack && len(chosen) == 1 {
		other := func(a netip.Addr) bool { return a.Is4() != chosen[0].Is4() }
		sources := slices.DeleteFunc(append(slices.Clone(f.toTarget), f.byRoute...), func(a netip.Addr) bool { return !other(a) })
		second, ok := firstUsable(f, sources)
		if !ok {
			second, ok = onlyAddr(f, other)
		}
		if ok {
			chosen = append(chosen, second)
		}
	}
	return chosen, nil
}

// firstUsable returns the first of sources that may be used, or in place of a temporary address a lasting one beside it.
func firstUsable(f addrFacts, sources []netip.Addr) (netip.Addr, bool) {
	for _, source := range sources {
		i := slices.IndexFunc(f.addrs, func(a localAddr) bool { return a.addr == source })
		if i < 0 {
			continue
		}
		if f.addrs[i].unusable() == "" {
			return source, true
		}
		for _, a := range f.addrs {
			if f.addrs[i].temporary && a.link == f.addrs[i].link && a.addr.Is4() == source.Is4() && a.unusable() == "" {
				return a.addr, true
			}
		}
	}
	return netip.Addr{}, false
}

// onlyAddr returns the usable address that match accepts, if it is the only one.
func onlyAddr(f addrFacts, match func(netip.Addr) bool) (netip.Addr, bool) {
	var found []netip.Addr
	for _, a := range f.addrs {
		if a.unusable() == "" && match(a.addr) && !slices.Contains(found, a.addr) {
			found = append(found, a.addr)
		}
	}
	if len(found) != 1 {
		return netip.Addr{}, false
	}
	return found[0], true
}

// unusable says why an address must not be the instance's; empty when it may.
func (a localAddr) unusable() string {
	switch {
	case a.addr.IsLoopback() || a.link == "lo":
		return "loopback"
	case a.addr.IsLinkLocalUnicast():
		return "link-local"
	case !a.addr.IsGlobalUnicast():
		return "not unicast"
	case a.kind == "bridge":
		return "of a bridge"
	case a.temporary:
		return "temporary"
	case !a.up:
		return "on a link that is down"
	}
	return ""
}

// String tells every address that is not loopback, and why it is no choice.
func (f addrFacts) String() string {
	var parts []string
	for _, a := range f.addrs {
		switch why := a.unusable(); why {
		case "loopback":
		case "":
			parts = append(parts, fmt.Sprintf("%s on %s is one of several, and no route chooses", a.addr, a.link))
		default:
			parts = append(parts, fmt.Sprintf("%s on %s is %s", a.addr, a.link, why))
		}
	}
	if len(parts) == 0 {
		return "this machine has only loopback addresses"
	}
	return strings.Join(parts, ", ")
}
