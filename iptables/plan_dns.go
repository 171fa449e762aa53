package iptables

import "net/netip"

// Conntrack zones of DNS over UDP. Client to agent and agent to resolver can use the same addresses and ports; in one zone
// the second of them would be dropped as a clash (Istio issue 33469).
const (
	zoneUpstream = 1 // agent to resolver and back
	zoneClient   = 2 // client to agent and back
)

// planDNSOnly captures DNS and nothing else: no chain that it makes can send anything to Envoy.
func (p *planner) planDNSOnly() {
	cfg := p.cfg
	for _, name := range cfg.ExcludeInterfaces {
		p.add("nat", "OUTPUT", Rule{Out: name, Verdict: Verdict{Action: Return}})
	}
	p.add("nat", "OUTPUT", Rule{Verdict: jump(chainOutput)})
	for _, r := range cfg.OutboundExcludePorts {
		if r.contains(53) {
			p.excludePorts(r)
		}
	}
	for _, owner := range cfg.owners() {
		p.add("nat", chainOutput, Rule{Owners: owner, Verdict: Verdict{Action: Return}})
	}
	p.ownerGroups()
	p.planDNS()
	p.planContainers()
}

// planDNS sends port 53 of the machine's processes to the agent: to the resolvers, or to any server with DNSAll.
func (p *planner) planDNS() {
	servers := p.servers()
	p.add("raw", "OUTPUT", Rule{Verdict: jump(chainOutputDNS)})
	if len(servers) > 0 {
		p.add("nat", chainOutput, Rule{Verdict: jump(chainOutputDNS)})
	}
	for _, proto := range []string{"tcp", "udp"} {
		for _, s := range servers {
			p.add("nat", chainOutputDNS, Rule{Proto: proto, Dport: port(53), Dst: s, Verdict: redirect(p.cfg.DNSPort)})
		}
	}
	for _, owner := range p.cfg.owners() {
		p.add("raw", chainOutputDNS, Rule{Proto: "udp", Dport: port(53), Owners: owner, Verdict: zone(zoneUpstream)})
		p.add("raw", chainOutputDNS, Rule{Proto: "udp", Sport: port(p.cfg.DNSPort), Owners: owner, Verdict: zone(zoneClient)})
	}
	if len(servers) > 0 {
		p.add("raw", "PREROUTING", Rule{Verdict: jump(chainInbound)})
	}
	for _, s := range servers {
		p.add("raw", chainOutputDNS, Rule{Proto: "udp", Dport: port(53), Dst: s, Verdict: zone(zoneClient)})
		p.add("raw", chainInbound, Rule{Proto: "udp", Sport: port(53), Src: s, Verdict: zone(zoneUpstream)})
	}
}

// servers are the destinations whose DNS is captured: resolv.conf's of this family, or one that matches any address.
// Capturing only resolv.conf's keeps a local proxy's own upstream queries from going around in a circle.
func (p *planner) servers() []Addr {
	if p.cfg.DNSAll {
		return []Addr{{}}
	}
	var out []Addr
	for _, a := range p.facts.resolvers(p.fam) {
		out = append(out, addr(a))
	}
	return out
}

// planContainers adds what Istio's tool leaves out for virtual interfaces: their DNS, and the guards on their way.
//
// Queries to an address of this machine are not touched: there the bridge's own resolver (podman's aardvark-dns, libvirt's
// dnsmasq) knows names that the mesh does not, and its upstream queries leave through OUTPUT, where they are captured.
func (p *planner) planContainers() {
	if len(p.cfg.VirtualInterfaces) == 0 {
		return
	}
	var rules []Rule
	if p.cfg.capturesTCP() {
		rules = p.guards.containers(p.fam)
	}
	if p.dns {
		for _, name := range p.cfg.VirtualInterfaces {
			for _, proto := range []string{"tcp", "udp"} {
				rules = append(rules, Rule{In: name, Proto: proto, Dport: port(53), NotToLocal: true, Verdict: redirect(p.cfg.DNSPort),
					Reason: "DNS of containers behind " + name})
			}
		}
		// The agent's answers leave in this zone (planDNS), so the queries must come in by it, or they find no way back.
		p.add("raw", "PREROUTING", Rule{Verdict: jump(chainContainers)})
		for _, name := range p.cfg.VirtualInterfaces {
			p.add("raw", chainContainers, Rule{In: name, Proto: "udp", Dport: port(53), NotToLocal: true, Verdict: zone(zoneClient),
				Reason: "DNS of containers behind " + name})
		}
	}
	if p.cfg.capturesTCP() && p.cfg.OpenOutbound {
		for _, name := range p.cfg.VirtualInterfaces {
			rules = append(rules, Rule{In: name, Proto: "tcp", Verdict: Verdict{Action: Accept}, Reason: reasonOpen})
		}
	}
	if len(rules) == 0 {
		return
	}
	// Before everything else in PREROUTING: Istio's rules for a virtual interface end the chain.
	p.insert("nat", "PREROUTING", 0, Rule{Verdict: jump(chainContainers)})
	for _, r := range rules {
		p.add("nat", chainContainers, r)
	}
}

// DNSListenAddrs returns the addresses, beside loopback, on which the DNS proxy must listen so that queries redirected from
// virtual interfaces find it: REDIRECT in PREROUTING sends a packet to the first address of the interface it came in by.
func DNSListenAddrs(cfg Config, interfaceAddrs map[string][]netip.Addr) []netip.Addr {
	if cfg.Level == LevelNone || !cfg.DNS {
		return nil
	}
	var out []netip.Addr
	for _, name := range cfg.VirtualInterfaces {
		out = append(out, interfaceAddrs[name]...)
	}
	return out
}
