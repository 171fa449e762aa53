package iptables

import (
	"fmt"
	"strings"
)

// Text writes the rule as iptables-save of the kernel would: "-A chain …" in canonical form, so that what was asked for and
// what is there can be compared as text.
func (r Rule) Text(chain string, fam Family) string { return "-A " + chain + " " + r.spec(fam) }

// spec is the rule without its chain.
func (r Rule) spec(fam Family) string {
	var b strings.Builder
	word := func(format string, args ...any) {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, format, args...)
	}
	address := func(flag string, a Addr) {
		if !a.Prefix.IsValid() || (a.Prefix.Bits() == 0 && !a.Not) {
			return
		}
		word("%s%s %s", bang(a.Not), flag, a.Prefix)
	}
	address("-s", r.Src)
	address("-d", r.Dst)
	if r.In != "" {
		word("-i %s", r.In)
	}
	if r.Out != "" {
		word("-o %s", r.Out)
	}
	if r.Proto != "" {
		word("-p %s", r.Proto)
	}
	writePorts(word, r.Proto, r.Sport, r.Dport)
	if r.Syn {
		if len(r.Sport.Ranges) != 1 && len(r.Dport.Ranges) != 1 { // else named with the port
			word("-m %s", r.Proto)
		}
		word("--tcp-flags FIN,SYN,RST,ACK SYN")
	}
	for _, o := range r.Owners {
		flag := "--uid-owner"
		if o.Group {
			flag = "--gid-owner"
		}
		word("-m owner %s%s %d", bang(o.Not), flag, o.ID)
	}
	if r.Mark != nil {
		word("-m mark %s--mark %#x", bang(r.Mark.Not), r.Mark.Value)
	}
	if r.ConnMark != nil {
		word("-m connmark --mark %#x", *r.ConnMark)
	}
	if r.State != "" {
		word("-m conntrack --ctstate %s", r.State)
	}
	if r.Known {
		word("-m conntrack --ctstatus CONFIRMED")
	}
	if r.DNAT {
		word("-m conntrack --ctstate DNAT")
	}
	if r.NotToLocal || r.ToLocal {
		word("-m addrtype %s--dst-type LOCAL", bang(r.NotToLocal))
	}
	word("-j %s", r.Verdict.text(fam))
	return b.String()
}

func bang(not bool) string {
	if not {
		return "! "
	}
	return ""
}

// writePorts writes the port matches: one range by the protocol's own match, several by multiport.
func writePorts(word func(string, ...any), proto string, sport, dport Ports) {
	single := func(p Ports) bool { return len(p.Ranges) == 1 }
	if single(sport) || single(dport) {
		word("-m %s", proto)
	}
	for _, p := range []struct {
		flag string
		Ports
	}{{"--sport", sport}, {"--dport", dport}} {
		switch {
		case len(p.Ranges) == 0:
		case single(p.Ports):
			if p.Ranges[0] == (PortRange{0, 65535}) && !p.Not {
				continue // iptables prints a match of every port as no match
			}
			word("%s%s %s", bang(p.Not), p.flag, p.Ranges[0])
		default:
			list := make([]string, len(p.Ranges))
			for i, r := range p.Ranges {
				list[i] = r.String()
			}
			word("-m multiport %s%ss %s", bang(p.Not), p.flag, strings.Join(list, ","))
		}
	}
}

// text is what stands after -j.
func (v Verdict) text(fam Family) string {
	switch v.Action {
	case Accept:
		return "ACCEPT"
	case Return:
		return "RETURN"
	case Drop:
		return "DROP"
	case Jump:
		return v.Chain
	case Redirect:
		return fmt.Sprintf("REDIRECT --to-ports %d", v.Value)
	case CTZone:
		return fmt.Sprintf("CT --zone %d", v.Value)
	case SetMark:
		return fmt.Sprintf("MARK --set-xmark %#x/0xffffffff", v.Value)
	case SaveMark:
		return "CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"
	case RestoreMark:
		return "CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"
	case TProxy:
		onIP := "0.0.0.0"
		if fam == IPv6 {
			onIP = "::"
		}
		return fmt.Sprintf("TPROXY --on-port %d --on-ip %s --tproxy-mark %#x/0xffffffff", v.Value, onIP, v.Mark)
	}
	panic(fmt.Sprintf("iptables: no text for action %d", v.Action))
}

// Save writes the plan of one family as iptables-save would print it on a machine where nothing else made rules. It is also
// input for iptables-restore --noflush; Apply does not use it, because the policies of built-in chains are not ours.
func (r *Rules) Save(fam Family) string {
	var b strings.Builder
	for _, t := range r.Families[fam].Tables {
		fmt.Fprintf(&b, "*%s\n", t.Name)
		for _, name := range hooksOf[t.Name] {
			fmt.Fprintf(&b, ":%s ACCEPT [0:0]\n", name)
		}
		for _, c := range t.Chains {
			if !builtins[c.Name] {
				fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
			}
		}
		for _, c := range t.Chains {
			for _, rule := range c.Rules {
				fmt.Fprintln(&b, rule.Text(c.Name, fam))
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// hooksOf lists the built-in chains of each table in the order iptables-save prints them.
var hooksOf = map[string][]string{
	"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"raw":    {"PREROUTING", "OUTPUT"},
	"nat":    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
}
