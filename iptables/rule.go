package iptables

import (
	"net/netip"
)

// Family is an address family.
type Family uint8

// The two families.
const (
	IPv4 Family = iota
	IPv6
)

// String is "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv6 {
		return "ipv6"
	}
	return "ipv4"
}

// MarshalText makes the family readable in JSON.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Rule is one rule of one family: every field that is set must match, then the verdict applies.
type Rule struct {
	Src, Dst     Addr
	In, Out      string // interface names; a final + stands for any ending
	Proto        string // "tcp", "udp" or "" for any
	Sport, Dport Ports  // need Proto
	Owners       []Owner
	Mark         *Mark
	ConnMark     *uint32
	State        string // conntrack states as iptables writes them: "INVALID" or "RELATED,ESTABLISHED"
	NotToLocal   bool   // the destination is not an address of this machine
	ToLocal      bool   // it is one
	Syn          bool   // the first packet of a TCP connection: SYN without FIN, RST and ACK; needs Proto
	Known        bool   // conntrack had the packet's connection before the packet came
	DNAT         bool   // conntrack sends the connection to somewhere else

	Verdict Verdict
	// Reason says why a guard stands here; empty for Istio's own rules.
	Reason string
	// Front puts the rule at the head of a built-in chain, before other tools' rules (iptables -I), not at its end.
	Front bool
}

// Addr matches an address; the zero value matches all.
type Addr struct {
	Prefix netip.Prefix
	Not    bool
}

// Ports matches a port; the zero value matches all. More than one range is a list.
type Ports struct {
	Ranges []PortRange
	Not    bool
}

// Owner matches the uid, or gid, of the process whose packet it is.
type Owner struct {
	ID    uint32
	Group bool
	Not   bool
}

// Mark matches the packet mark.
type Mark struct {
	Value uint32
	Not   bool
}

// Action is what a verdict does.
type Action uint8

// The actions. Value is used as said.
const (
	Accept      Action = iota
	Return             //
	Drop               //
	Jump               // to Chain
	Redirect           // to the local port Value
	CTZone             // conntrack zone Value
	SetMark            // packet mark Value
	SaveMark           // packet mark into connection mark
	RestoreMark        // connection mark into packet mark
	TProxy             // to the local port Value, packet mark Mark
)

// Verdict is an action with its values.
type Verdict struct {
	Action Action
	Chain  string
	Value  uint32
	Mark   uint32
}

// jump, accept and the like keep the plan readable.
func jump(chain string) Verdict     { return Verdict{Action: Jump, Chain: chain} }
func redirect(port uint16) Verdict  { return Verdict{Action: Redirect, Value: uint32(port)} }
func zone(n uint32) Verdict         { return Verdict{Action: CTZone, Value: n} }
func setMark(mark uint32) Verdict   { return Verdict{Action: SetMark, Value: mark} }
func uid(id uint32) []Owner         { return []Owner{{ID: id}} }
func gid(id uint32) []Owner         { return []Owner{{ID: id, Group: true}} }
func not(o []Owner) []Owner         { o[0].Not = true; return o }
func port(p uint16) Ports           { return Ports{Ranges: []PortRange{{p, p}}} }
func notPort(p ...uint16) Ports     { ps := ports(p...); ps.Not = true; return ps }
func addr(a netip.Addr) Addr        { return Addr{Prefix: netip.PrefixFrom(a, a.BitLen())} }
func prefix(p netip.Prefix) Addr    { return Addr{Prefix: p.Masked()} }
func notPrefix(p netip.Prefix) Addr { return Addr{Prefix: p.Masked(), Not: true} }

func ports(list ...uint16) Ports {
	var ps Ports
	for _, p := range list {
		ps.Ranges = append(ps.Ranges, PortRange{p, p})
	}
	return ps
}
