package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Istio's chains (tools/istio-iptables/pkg/constants).
const (
	chainInbound    = "ISTIO_INBOUND"
	chainInRedirect = "ISTIO_IN_REDIRECT"
	chainOutput     = "ISTIO_OUTPUT"
	chainOutputDNS  = "ISTIO_OUTPUT_DNS"
	chainRedirect   = "ISTIO_REDIRECT"
	chainDivert     = "ISTIO_DIVERT"
	chainTProxy     = "ISTIO_TPROXY"
	chainDrop       = "ISTIO_DROP"
)

// Plan decides the rules for a configuration on a machine.
//
// It is pure: the same input gives the same rules in the same order. The chains named ISTIO_* and their rules are those
// that Istio's tool would leave for this configuration; everything else of ours is in chains named WINGMAN_*. The error
// names every problem of cfg, and every group that the machine does not know.
// Rules from Istio tools/istio-iptables/pkg/capture/run.go.
func Plan(cfg Config, facts Facts) (Rules, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return Rules{}, fmt.Errorf("plan capture rules: %w", err)
	}
	rules := Rules{Level: cfg.Level, Backend: cfg.Backend, Notes: slices.Clone(facts.Notes)}
	if cfg.Level == LevelNone {
		return rules, nil
	}
	var errs []error
	resolve := func(names []string) []uint32 {
		var ids []uint32
		for _, name := range names {
			id, ok := facts.gid(name)
			if !ok {
				errs = append(errs, fmt.Errorf("owner group %q: this machine has no group of that name; expected a gid or a name of /etc/group", name))
			}
			ids = append(ids, id)
		}
		return ids
	}
	include, exclude := resolve(cfg.OwnerGroups), resolve(cfg.OwnerGroupsExclude)
	if len(errs) > 0 {
		return Rules{}, fmt.Errorf("plan capture rules: %w", errors.Join(errs...))
	}

	dns := cfg.DNS
	if dns && !cfg.DNSAll && len(facts.resolvers(IPv4)) == 0 && len(facts.resolvers(IPv6)) == 0 {
		dns = false
		rules.Notes = append(rules.Notes, "DNS is not captured: resolv.conf names no server, and only its servers are wanted")
	}
	families := []Family{IPv4}
	if facts.captureIPv6(&cfg) {
		families = append(families, IPv6)
	} else if cfg.DualStack {
		rules.Notes = append(rules.Notes, "IPv6 is not captured: this machine has none, or has it switched off (sysctl disable_ipv6)")
	}
	guards := planGuards(&cfg, &facts)
	for _, fam := range families {
		p := planner{
			cfg: &cfg, facts: &facts, fam: fam, dns: dns,
			groups: include, groupsExclude: exclude, guards: guards, set: &rules.Families[fam],
		}
		p.set.Wanted = true
		if cfg.capturesTCP() {
			p.planAll()
		} else if dns {
			p.planDNSOnly()
		}
	}
	if cfg.capturesTCP() && len(families) == 1 && !facts.NoIPv6 {
		// Istio's tool leaves an empty table behind here. It holds nothing and hooks into nothing; with it, tools that
		// compare see no difference.
		rules.Families[IPv6].table("nat")
	}
	if cfg.capturesTCP() && cfg.Mode == ModeTProxy && cfg.capturesInbound() {
		for _, fam := range families {
			rules.Routes = append(rules.Routes, PolicyRoute{Family: fam, Mark: cfg.TProxyMark, Table: cfg.TProxyTable})
		}
	}
	if cfg.capturesTCP() {
		rules.Guards = guards.described
		if cfg.OpenInbound {
			rules.Open = append(rules.Open, "inbound")
		}
		if cfg.OpenOutbound {
			rules.Open = append(rules.Open, "outbound")
		}
	}
	return rules, nil
}

// planner builds the rules of one family.
type planner struct {
	cfg                   *Config
	facts                 *Facts
	fam                   Family
	dns                   bool     // DNS is captured: wanted, and there is a server whose queries can be caught
	groups, groupsExclude []uint32 // owner groups by number
	guards                *guards
	set                   *Ruleset
}

// add appends a rule, creating its chain and the chain it jumps to.
func (p *planner) add(table, chain string, r Rule) {
	t := p.set.table(table)
	if r.Verdict.Action == Jump {
		t.chain(r.Verdict.Chain)
	}
	c := t.chain(chain)
	c.Rules = append(c.Rules, r)
}

// insert puts a rule before the others of ours in its chain; in a built-in chain also before those of other tools.
func (p *planner) insert(table, chain string, at int, r Rule) {
	r.Front = builtins[chain]
	p.add(table, chain, r)
	c := p.set.find(table, chain)
	c.Rules = slices.Insert(c.Rules[:len(c.Rules)-1], at, r)
}

// loopback is the address that the capture of "to myself" leaves out.
func (p *planner) loopback() netip.Prefix {
	if p.fam == IPv6 {
		return netip.MustParsePrefix("::1/128")
	}
	return p.cfg.LoopbackCIDR
}

// passthrough is the source that Envoy uses towards the local application.
func (p *planner) passthrough() Addr {
	if p.fam == IPv6 {
		return addr(netip.MustParseAddr("::6"))
	}
	return addr(netip.MustParseAddr("127.0.0.6"))
}

// own returns the CIDRs of this planner's family.
func (p *planner) own(list []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range list {
		if familyOf(c.Addr()) == p.fam {
			out = append(out, c)
		}
	}
	return out
}

// planAll is the whole of Istio's capture, in the order of Istio's tool.
func (p *planner) planAll() {
	cfg := p.cfg
	p.excludeInterfaces()
	for _, name := range cfg.VirtualInterfaces {
		p.insert("nat", "PREROUTING", 0, Rule{In: name, Verdict: Verdict{Action: Return}})
	}
	if cfg.DropInvalid {
		p.guardChain("mangle", "PREROUTING")
		p.add("mangle", "PREROUTING", Rule{State: "INVALID", Verdict: jump(chainDrop)})
		p.add("mangle", chainDrop, Rule{Verdict: Verdict{Action: Drop}})
	}
	p.add("nat", chainInbound, Rule{Proto: "tcp", Dport: port(cfg.TunnelPort), Verdict: Verdict{Action: Return}})
	p.add("nat", chainRedirect, Rule{Proto: "tcp", Verdict: redirect(cfg.ProxyPort)})
	p.add("nat", chainInRedirect, Rule{Proto: "tcp", Verdict: redirect(cfg.InboundPort)})
	p.planInbound()
	p.planOutput()
	if p.dns {
		p.planDNS()
	}
	p.planDestinations()
	p.planContainers()
	if cfg.Mode == ModeTProxy {
		p.planTProxyMarks()
	}
	p.planStale()
}

// excludeInterfaces lets the named interfaces past all that follows in the built-in chains.
func (p *planner) excludeInterfaces() {
	tables := []string{"nat"}
	if p.cfg.Mode == ModeTProxy {
		tables = append(tables, "mangle")
	}
	for _, table := range tables {
		for _, name := range p.cfg.ExcludeInterfaces {
			p.add(table, "PREROUTING", Rule{In: name, Verdict: Verdict{Action: Return}})
			p.add(table, "OUTPUT", Rule{Out: name, Verdict: Verdict{Action: Return}})
		}
	}
}

// planInbound sends the wanted inbound ports to Envoy.
func (p *planner) planInbound() {
	cfg := p.cfg
	if !cfg.capturesInbound() {
		return
	}
	table := "nat"
	if cfg.Mode == ModeTProxy {
		table = "mangle"
		p.add(table, chainDivert, Rule{Verdict: setMark(cfg.TProxyMark)})
		p.add(table, chainDivert, Rule{Verdict: Verdict{Action: Accept}})
		p.add(table, chainTProxy, Rule{Proto: "tcp", Dst: notPrefix(p.loopback()),
			Verdict: Verdict{Action: TProxy, Value: uint32(cfg.InboundPort), Mark: cfg.TProxyMark}})
	}
	p.guardChain(table, "PREROUTING")
	p.add(table, "PREROUTING", Rule{Proto: "tcp", Verdict: jump(chainInbound)})

	catch := func(dport Ports) {
		if cfg.Mode == ModeTProxy {
			p.add(table, chainInbound, Rule{Proto: "tcp", Dport: dport, State: "RELATED,ESTABLISHED", Verdict: jump(chainDivert)})
			p.add(table, chainInbound, Rule{Proto: "tcp", Dport: dport, Verdict: jump(chainTProxy)})
			return
		}
		p.add(table, chainInbound, Rule{Proto: "tcp", Dport: dport, Verdict: jump(chainInRedirect)})
	}
	if !cfg.InboundAll {
		for _, n := range cfg.InboundPorts {
			catch(port(n))
		}
		return
	}
	for _, n := range cfg.InboundExcludePorts {
		p.add(table, chainInbound, Rule{Proto: "tcp", Dport: port(n), Verdict: Verdict{Action: Return}})
	}
	catch(Ports{})
}

// planOutput decides by port and owner who is captured at all: never Envoy and the agent, which would talk to themselves.
func (p *planner) planOutput() {
	cfg := p.cfg
	p.guardChain("nat", "OUTPUT")
	p.add("nat", "OUTPUT", Rule{Verdict: jump(chainOutput)})
	for _, r := range cfg.OutboundExcludePorts {
		p.excludePorts(r)
	}
	p.add("nat", chainOutput, Rule{Out: "lo", Src: p.passthrough(), Verdict: Verdict{Action: Return}})

	// Loopback traffic of others is theirs, unless loopback was asked for by CIDR, of either family.
	leaveLoopback := !slices.ContainsFunc(cfg.OutboundCIDRs, func(c netip.Prefix) bool { return c.Addr().IsLoopback() })
	for _, owner := range cfg.owners() {
		// Envoy calling the machine's own address means: to the inbound side of itself. By uid, DNS is left out of that.
		toSelf := Rule{Out: "lo", Dst: notPrefix(p.loopback()), Proto: "tcp", Dport: notPort(cfg.TunnelPort), Owners: owner, Verdict: jump(chainInRedirect)}
		if p.dns && !owner[0].Group {
			toSelf.Dport = notPort(53, cfg.TunnelPort)
		}
		p.add("nat", chainOutput, toSelf)
		if leaveLoopback {
			others := Rule{Out: "lo", Owners: not(slices.Clone(owner)), Verdict: Verdict{Action: Return}}
			if p.dns { // a resolver on loopback is still to be captured
				others.Proto, others.Dport = "tcp", notPort(53)
			}
			p.add("nat", chainOutput, others)
		}
		p.add("nat", chainOutput, Rule{Owners: owner, Verdict: Verdict{Action: Return}})
	}
	p.ownerGroups()
}

// excludePorts leaves outbound connections to a range of ports alone, TCP and UDP (so a range with 53 gives up DNS capture).
func (p *planner) excludePorts(r PortRange) {
	for _, proto := range []string{"tcp", "udp"} {
		p.add("nat", chainOutput, Rule{Proto: proto, Dport: Ports{Ranges: []PortRange{r}}, Verdict: Verdict{Action: Return}})
	}
}

// ownerGroups narrows outbound capture, DNS included, to what the groups of a process allow.
func (p *planner) ownerGroups() {
	if p.cfg.OwnerGroupsAll {
		for _, g := range p.groupsExclude {
			p.add("nat", chainOutput, Rule{Owners: gid(g), Verdict: Verdict{Action: Return}})
		}
		return
	}
	none := Rule{Verdict: Verdict{Action: Return}} // a member of none of the groups
	for _, g := range p.groups {
		none.Owners = append(none.Owners, Owner{ID: g, Group: true, Not: true})
	}
	p.add("nat", chainOutput, none)
}

// planDestinations decides by address and port which outbound connections go to Envoy.
func (p *planner) planDestinations() {
	cfg := p.cfg
	p.add("nat", chainOutput, Rule{Dst: prefix(p.loopback()), Verdict: Verdict{Action: Return}})
	for _, c := range p.own(cfg.OutboundExcludeCIDRs) {
		p.add("nat", chainOutput, Rule{Dst: prefix(c), Verdict: Verdict{Action: Return}})
	}
	for _, n := range cfg.OutboundPorts {
		p.add("nat", chainOutput, Rule{Proto: "tcp", Dport: port(n), Verdict: jump(chainRedirect)})
	}
	if cfg.OutboundAll {
		p.add("nat", chainOutput, Rule{Verdict: jump(chainRedirect)})
		for _, name := range cfg.VirtualInterfaces {
			p.insert("nat", "PREROUTING", 0, Rule{In: name, Verdict: jump(chainRedirect)})
		}
		return
	}
	for _, c := range p.own(cfg.OutboundCIDRs) {
		for _, name := range cfg.VirtualInterfaces {
			p.insert("nat", "PREROUTING", 0, Rule{In: name, Dst: prefix(c), Verdict: jump(chainRedirect)})
		}
		p.add("nat", chainOutput, Rule{Dst: prefix(c), Verdict: jump(chainRedirect)})
	}
}

// planTProxyMarks keeps a connection that TPROXY took on its way through the loopback, and keeps Envoy's own out of it.
func (p *planner) planTProxyMarks() {
	cfg, lo := p.cfg, p.loopback()
	p.add("mangle", "PREROUTING", Rule{Proto: "tcp", Mark: &Mark{Value: cfg.TProxyMark}, Verdict: Verdict{Action: SaveMark}})
	p.add("mangle", "OUTPUT", Rule{Proto: "tcp", Out: "lo", Mark: &Mark{Value: cfg.TProxyMark}, Verdict: Verdict{Action: Return}})
	for _, owner := range cfg.owners() {
		p.add("mangle", "OUTPUT", Rule{Proto: "tcp", Out: "lo", Dst: notPrefix(lo), Owners: owner, Verdict: setMark(outboundMark)})
	}
	p.add("mangle", "OUTPUT", Rule{Proto: "tcp", ConnMark: &cfg.TProxyMark, Verdict: Verdict{Action: RestoreMark}})
	p.insert("mangle", chainInbound, 0, Rule{Proto: "tcp", Mark: &Mark{Value: cfg.TProxyMark}, Verdict: Verdict{Action: Return}})
	p.insert("mangle", chainInbound, 1, Rule{Proto: "tcp", Src: p.passthrough(), In: "lo", Verdict: Verdict{Action: Return}})
	p.insert("mangle", chainInbound, 2, Rule{Proto: "tcp", In: "lo", Mark: &Mark{Value: outboundMark, Not: true}, Verdict: Verdict{Action: Return}})
}
