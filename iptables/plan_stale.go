package iptables

import "cmp"

// chainStale drops what would get past Envoy though the rules say otherwise.
const chainStale = "WINGMAN_STALE"

const reasonStale = "a SYN that would go out with an old connection's entry, which table nat does not see"

// planStale keeps an application's connection from being taken for an old one of Envoy's.
//
// Table nat decides for the first packet of a connection only. Conntrack tells connections by addresses and ports, not by
// who has them: while it remembers one that Envoy had, an application's SYN with the same addresses and ports may belong to that
// one, is not shown to nat, and goes to the peer past Envoy. A connection that the peer has reset is remembered for 10 s in
// which its port is free, one whose SYN nobody answered for 120 s (net/netfilter/nf_conntrack_proto_tcp.c: a SYN starts a
// new entry only where a FIN was seen, or the last packet was an RST from the same side). docs/capture.md says what was tried.
//
// Such a SYN is known to conntrack before it is sent, as only repeated ones are else, and is not redirected, as captured ones
// are. The chain asks it what nat did not, rule by rule, and drops it where nat would redirect.
func (p *planner) planStale() {
	if !p.cfg.capturesOutbound() {
		return
	}
	p.insert("mangle", "OUTPUT", 0, Rule{Proto: "tcp", Syn: true, Known: true, Verdict: jump(chainStale)})
	p.add("mangle", chainStale, Rule{DNAT: true, Verdict: Verdict{Action: Return}, Reason: reasonStale})
	p.decideAgain("OUTPUT")
}

// decideAgain appends the decisions of a chain of nat, and of those that it jumps to, to chainStale.
func (p *planner) decideAgain(chain string) {
	for _, r := range p.set.find("nat", chain).Rules {
		if r.Proto == "udp" {
			continue
		}
		r.Proto, r.Front, r.Reason = "tcp", false, cmp.Or(r.Reason, reasonStale)
		to := r.Verdict
		switch {
		case to.Action == Jump && to.Chain != chainRedirect && to.Chain != chainInRedirect: // these jumps match everything
			p.decideAgain(to.Chain)
			continue
		case to.Action == Jump, to.Action == Redirect:
			r.Verdict = Verdict{Action: Drop}
		default:
			r.Verdict = Verdict{Action: Return}
		}
		p.add("mangle", chainStale, r)
	}
}
