package iptables

import (
	"fmt"
	"net/netip"
	"slices"
)

// Chains of our own. Each is jumped to right before Istio's chain on the same hook (chainContainers: before everything), so
// what it accepts never reaches Istio's rules. Accepting ends the table for the packet; other tables go on.
const (
	chainGuardIn    = "WINGMAN_INBOUND"
	chainGuardOut   = "WINGMAN_OUTPUT"
	chainContainers = "WINGMAN_CONTAINERS"
)

// agentPorts are the agent's and Envoy's own ports: status, readiness, Envoy's admin and metrics, DNS.
var agentPorts = []uint16{15000, 15020, 15021, 15053, 15090}

// outerAgentPorts are those of them that others may ask from outside.
var outerAgentPorts = []uint16{15020, 15021, 15090}

// metadata lists the addresses at which clouds serve instance metadata and credentials: a machine cut off from them
// can lose its keys, its identity and its health report to the cloud.
var metadata = []struct {
	addr netip.Addr
	what string
}{
	{netip.MustParseAddr("169.254.169.254"), "instance metadata of AWS, Google, Azure, Oracle, DigitalOcean, OpenStack"},
	{netip.MustParseAddr("169.254.169.123"), "time service of AWS"},
	{netip.MustParseAddr("169.254.170.2"), "task credentials of AWS"},
	{netip.MustParseAddr("168.63.129.16"), "Azure's platform channel (health, extensions)"},
	{netip.MustParseAddr("100.100.100.200"), "instance metadata of Alibaba Cloud"},
	{netip.MustParseAddr("fd00:ec2::254"), "instance metadata of AWS over IPv6"},
	{netip.MustParseAddr("fd00:ec2::123"), "time service of AWS over IPv6"},
	{netip.MustParseAddr("fd20:ce::254"), "instance metadata of Google over IPv6"},
}

// maxMultiport is how many ports one multiport match takes (XT_MULTI_PORTS).
const maxMultiport = 15

const reasonOpen = "policy open: the proxy does not answer, traffic goes past it"

// guards are the exemptions for one plan, per direction; family-specific rules carry an address of their family.
type guards struct {
	in, out, fromContainers []Rule
	invalid                 []Rule // only where invalid packets are dropped
	described               []Guard
}

// planGuards decides what must never be captured on this machine.
func planGuards(cfg *Config, facts *Facts) *guards {
	g := &guards{}
	g.forwarded()
	g.ssh(&facts.SSH)
	g.agent(slices.Concat(agentPorts, facts.AgentPorts), slices.Concat(outerAgentPorts, facts.AgentPorts))
	g.describe(fmt.Sprintf("what user %d and group %d send (in ISTIO_OUTPUT)", cfg.ProxyUID, cfg.ProxyGID), "the agent's and Envoy's own traffic would go around in a circle")
	if !cfg.CaptureMetadata {
		g.metadata()
	}
	if cfg.DropInvalid {
		g.dhcp()
	}
	if cfg.OpenInbound {
		g.in = append(g.in, Rule{Proto: "tcp", Verdict: Verdict{Action: Accept}, Reason: reasonOpen})
		g.describe("all inbound TCP", reasonOpen)
	}
	if cfg.OpenOutbound {
		r := Rule{Proto: "tcp", Verdict: Verdict{Action: Accept}, Reason: reasonOpen}
		if cfg.DNS {
			r.Dport = notPort(53)
		}
		g.out = append(g.out, r)
		g.describe("all outbound TCP but DNS", reasonOpen)
	}
	return g
}

// forwarded leaves traffic alone that only passes through: on a machine with containers, Istio's rules take what they send
// out for inbound traffic, and Envoy cannot deliver it.
func (g *guards) forwarded() {
	const reason = "not for this machine: forwarded for containers or others (to capture it as outbound, name the bridge a virtual interface)"
	g.in = append(g.in, Rule{NotToLocal: true, Verdict: Verdict{Action: Accept}, Reason: reason})
	g.describe("what comes in for another machine", reason)
}

// ssh keeps every port of sshd out of capture, in both directions: a connection that began before conntrack was loaded is
// "new" to it at any later packet, and then sshd's answers would be taken for an outbound connection.
func (g *guards) ssh(ssh *SSH) {
	listening := map[uint16]bool{}
	for _, l := range ssh.sortedListeners() {
		listening[l.Port] = true
		reason := "SSH: " + l.How
		g.in = append(g.in, Rule{Proto: "tcp", Dport: port(l.Port), Verdict: Verdict{Action: Accept}, Reason: reason})
		g.out = append(g.out, Rule{Proto: "tcp", Sport: port(l.Port), Verdict: Verdict{Action: Accept}, Reason: reason})
		g.describe(fmt.Sprintf("TCP port %d, both directions", l.Port), reason)
	}
	for _, s := range ssh.sortedSessions() {
		if listening[s.Port] || !s.Peer.IsValid() {
			continue
		}
		reason := "SSH: a session is established now"
		g.in = append(g.in, Rule{Src: addr(s.Peer), Proto: "tcp", Dport: port(s.Port), Verdict: Verdict{Action: Accept}, Reason: reason})
		g.out = append(g.out, Rule{Dst: addr(s.Peer), Proto: "tcp", Sport: port(s.Port), Verdict: Verdict{Action: Accept}, Reason: reason})
		g.describe(fmt.Sprintf("TCP port %d with %s, both directions", s.Port, s.Peer), reason)
	}
}

// agent keeps probes, scrapes and admin calls from going through Envoy, which would make them depend on mesh policy.
func (g *guards) agent(local, outer []uint16) {
	const reason = "ports of the agent and Envoy themselves"
	for list := range slices.Chunk(outer, maxMultiport) {
		g.in = append(g.in, Rule{Proto: "tcp", Dport: ports(list...), Verdict: Verdict{Action: Accept}, Reason: reason})
	}
	for list := range slices.Chunk(local, maxMultiport) {
		g.out = append(g.out, Rule{Out: "lo", Proto: "tcp", Dport: ports(list...), Verdict: Verdict{Action: Accept}, Reason: reason})
	}
	g.describe(fmt.Sprintf("TCP ports %v from outside, %v on loopback", outer, local), reason)
}

// metadata leaves the clouds' own services alone, but not their DNS: Google's and Azure's resolvers share the address.
func (g *guards) metadata() {
	for _, m := range metadata {
		reason := m.what
		tcp := Rule{Dst: addr(m.addr), Proto: "tcp", Dport: notPort(53), Verdict: Verdict{Action: Accept}, Reason: reason}
		ntp := Rule{Dst: addr(m.addr), Proto: "udp", Dport: port(123), Verdict: Verdict{Action: Accept}, Reason: reason}
		g.out = append(g.out, tcp, ntp)
		g.fromContainers = append(g.fromContainers, tcp)
		g.describe(fmt.Sprintf("TCP (but DNS) and NTP to %s", m.addr), reason)
	}
}

// dhcp matters where invalid packets are dropped: a lease answer can look like one.
func (g *guards) dhcp() {
	const reason = "DHCP: the machine's address depends on it"
	for _, r := range []Rule{
		{Proto: "udp", Sport: port(67), Dport: port(68)},
		{Proto: "udp", Sport: port(547), Dport: port(546)},
	} {
		r.Verdict, r.Reason = Verdict{Action: Accept}, reason
		g.invalid = append(g.invalid, r)
	}
	g.describe("DHCP answers (UDP 67 to 68, 547 to 546)", reason)
}

func (g *guards) describe(what, reason string) {
	g.described = append(g.described, Guard{What: what, Reason: reason})
}

// containers returns the guards for what comes in by a virtual interface, all of which Istio takes for outbound.
func (g *guards) containers(fam Family) []Rule {
	in := slices.DeleteFunc(slices.Clone(g.in), func(r Rule) bool { return r.NotToLocal })
	for i := range in { // only on this machine are these ports what they are guarded for
		in[i].ToLocal = true
	}
	return ofFamily(slices.Concat(in, g.fromContainers), fam)
}

// ofFamily leaves out rules that name an address of the other family.
func ofFamily(rules []Rule, fam Family) []Rule {
	var out []Rule
	for _, r := range rules {
		if (r.Src.Prefix.IsValid() && familyOf(r.Src.Prefix.Addr()) != fam) || (r.Dst.Prefix.IsValid() && familyOf(r.Dst.Prefix.Addr()) != fam) {
			continue
		}
		out = append(out, r)
	}
	return out
}

// guardChain puts the guards of a hook in front of Istio's rules there; a second call for the same hook does nothing.
func (p *planner) guardChain(table, hook string) {
	name, rules := chainGuardIn, p.guards.in
	switch {
	case hook == "OUTPUT":
		if !p.cfg.capturesOutbound() {
			return // nothing outbound is captured but DNS, from which nothing is exempt
		}
		name, rules = chainGuardOut, p.guards.out
	case table == "mangle":
		rules = slices.Concat(p.guards.invalid, rules)
	}
	if p.set.find(table, name) != nil {
		return
	}
	p.add(table, hook, Rule{Verdict: jump(name)})
	for _, r := range ofFamily(rules, p.fam) {
		p.add(table, name, r)
	}
}
