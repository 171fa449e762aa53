package bootstrap

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// farAway stands for "the internet" when the kernel is asked for its default route: a root name server per family. A route
// lookup sends nothing.
var farAway = []netip.Addr{netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30")}

// readAddrFacts asks the kernel of the current network namespace.
func readAddrFacts(targets []netip.Addr) (addrFacts, error) {
	var f addrFacts
	links, err := netlink.LinkList()
	if err != nil {
		return f, fmt.Errorf("list interfaces: %w", err)
	}
	byIndex := map[int]netlink.Link{}
	for _, l := range links {
		byIndex[l.Attrs().Index] = l
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return f, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		link := byIndex[a.LinkIndex]
		if !ok || link == nil { // the link went between the two questions
			continue
		}
		f.addrs = append(f.addrs, localAddr{
			addr:      addr.Unmap(),
			link:      link.Attrs().Name,
			kind:      linkKind(link),
			up:        link.Attrs().Flags&net.FlagUp != 0,
			temporary: a.IP.To4() == nil && a.Flags&(unix.IFA_F_TEMPORARY|unix.IFA_F_DEPRECATED|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
		})
	}
	f.toTarget = routeSources(targets)
	f.byRoute = routeSources(farAway)
	return f, nil
}

// linkKind is the kernel's kind of an interface; for hardware netlink's own word "device" is none.
func linkKind(l netlink.Link) string {
	if kind := l.Type(); kind != "device" {
		return kind
	}
	return ""
}

// routeSources returns the source address of each target's route; targets without a route are left out.
func routeSources(targets []netip.Addr) []netip.Addr {
	var sources []netip.Addr
	for _, target := range targets {
		if !target.IsValid() {
			continue
		}
		routes, err := netlink.RouteGet(target.Unmap().WithZone("").AsSlice())
		if err != nil { // unreachable: another target may not be
			continue
		}
		for _, r := range routes {
			if src, ok := netip.AddrFromSlice(r.Src); ok {
				sources = append(sources, src.Unmap())
			}
		}
	}
	return sources
}
