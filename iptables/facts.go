package iptables

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
)

// Facts is what the plan must know of the machine. GatherFacts reads them; tests write them.
//
// The zero value is a machine without resolvers, addresses or SSH.
type Facts struct {
	// Resolvers are resolv.conf's servers, in its order, zones cut off.
	Resolvers []netip.Addr
	// Addrs are the machine's addresses in the kernel's order, loopback and link-local ones included.
	Addrs []netip.Addr
	// NoIPv6 says that the kernel has no IPv6 (ipv6.disable=1), or that it is switched off (sysctl disable_ipv6).
	NoIPv6 bool
	// Groups maps the names of /etc/group to their gids.
	Groups map[string]uint32
	// SSH is how people reach the machine.
	SSH SSH
	// InterfaceAddrs are the addresses by interface: where the DNS proxy listens for containers (DNSListenAddrs).
	InterfaceAddrs map[string][]netip.Addr
	// Notes are sentences for the operator about facts that could not be read; the plan repeats them.
	Notes []string
	// AgentPorts are further ports of the agent and Envoy that must never be captured, beside the well-known ones.
	AgentPorts []uint16
}

// SSH is what is known of sshd on the machine.
type SSH struct {
	Listeners []Listener `json:"listeners"` // ports that must stay reachable, each with how we know
	Sessions  []Session  `json:"sessions"`  // SSH connections established now
}

// Listener is a TCP port that is never captured.
type Listener struct {
	Port uint16 `json:"port"`
	How  string `json:"how"` // completes "port 2222: …", for instance "sshd -T says so"
}

// Session is one established SSH connection: the local port and who is at the other end.
type Session struct {
	Port uint16     `json:"port"`
	Peer netip.Addr `json:"peer"`
}

// captureIPv6 reports whether IPv6 rules are wanted: with dual stack, else only where the machine's first usable address
// is an IPv6 one. Rule from Istio pkg/config getLocalIP, whose dual stack also waits for an IPv6 address to exist; we do not,
// because at boot the rules come before the addresses.
func (f *Facts) captureIPv6(cfg *Config) bool {
	if f.NoIPv6 {
		return false
	}
	if cfg.DualStack {
		return true
	}
	for _, a := range f.Addrs {
		a = a.Unmap()
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsLinkLocalMulticast() {
			return a.Is6()
		}
	}
	return false
}

// resolvers returns resolv.conf's servers of one family.
func (f *Facts) resolvers(fam Family) []netip.Addr {
	var out []netip.Addr
	for _, a := range f.Resolvers {
		a = a.Unmap().WithZone("")
		if a.IsValid() && familyOf(a) == fam {
			out = append(out, a)
		}
	}
	return out
}

// gid resolves a group given by number or name.
func (f *Facts) gid(group string) (uint32, bool) {
	if n, err := strconv.ParseUint(group, 10, 32); err == nil {
		return uint32(n), true
	}
	n, ok := f.Groups[group]
	return n, ok
}

// sortedListeners returns each guarded port once, lowest first, with the first reason given for it.
func (s *SSH) sortedListeners() []Listener {
	out := slices.Clone(s.Listeners)
	slices.SortStableFunc(out, func(a, b Listener) int { return cmp.Compare(a.Port, b.Port) })
	return slices.CompactFunc(out, func(a, b Listener) bool { return a.Port == b.Port })
}

// sortedSessions returns each session once, in a fixed order.
func (s *SSH) sortedSessions() []Session {
	out := slices.Clone(s.Sessions)
	for i := range out {
		out[i].Peer = out[i].Peer.Unmap().WithZone("")
	}
	slices.SortFunc(out, func(a, b Session) int {
		return cmp.Or(a.Peer.Compare(b.Peer), cmp.Compare(a.Port, b.Port))
	})
	return slices.Compact(out)
}
