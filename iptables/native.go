package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// nativeTable is our one table of nftables, family inet.
const nativeTable = "wingman"

// nativeChain is one chain of it: an iptables chain of one table, for both families.
type nativeChain struct {
	name  string // "nat-prerouting", "nat-istio-output": table and chain, which iptables keeps apart and nftables does not
	hook  *nativeHook
	rules []nativeRule
}

// nativeHook makes a chain a base chain.
type nativeHook struct {
	kind     string // "nat", "filter" or "route"
	hook     string // "prerouting" or "output"
	priority int
}

// nativeRule is a rule for one family, or for both when family is nil.
type nativeRule struct {
	Rule
	family *Family
}

// Base chains stand where iptables' tables do. Only type route has a packet routed anew after its mark changed.
var nativeHooks = map[string]nativeHook{
	"raw-prerouting":    {"filter", "prerouting", -300},
	"raw-output":        {"filter", "output", -300},
	"mangle-prerouting": {"filter", "prerouting", -150},
	"mangle-output":     {"route", "output", -150},
	"nat-prerouting":    {"nat", "prerouting", -100},
	"nat-output":        {"nat", "output", -100},
}

// native turns the plan into the chains of table inet wingman: what both families share stands once.
func (r *Rules) native() []nativeChain {
	both := r.Families[IPv4].Wanted && r.Families[IPv6].Wanted
	var out []nativeChain
	for _, table := range tableOrder {
		for _, name := range r.chainNames(table) {
			c := nativeChain{name: nativeName(table, name)}
			base := builtins[name]
			if h, ok := nativeHooks[c.name]; ok && base {
				c.hook = &h
			}
			var lists [2][]Rule
			for fam := range lists {
				if chain := r.Families[fam].find(table, name); chain != nil {
					lists[fam] = chain.Rules
				}
			}
			for _, rule := range mergeFamilies(lists[IPv4], lists[IPv6]) {
				if !both && !base {
					rule.family = nil // base chains let only the one family in
				}
				c.rules = append(c.rules, expand(table, rule)...)
			}
			out = append(out, c)
		}
	}
	return out
}

// chainNames lists the chains of a table in either family, built-in ones first.
func (r *Rules) chainNames(table string) []string {
	var t Table
	for _, f := range r.Families {
		for _, have := range f.Tables {
			if have.Name == table {
				for _, c := range have.Chains {
					t.chain(c.Name)
				}
			}
		}
	}
	var out []string
	for _, c := range t.Chains {
		out = append(out, c.Name)
	}
	return out
}

func nativeName(table, chain string) string {
	return table + "-" + strings.ToLower(strings.ReplaceAll(chain, "_", "-"))
}

// mergeFamilies makes one list of two: rules that are the same in both stand once (longest common subsequence), the others
// carry their family. The order within each family stays, and a packet sees only its own.
func mergeFamilies(v4, v6 []Rule) []nativeRule {
	same := func(a, b Rule) bool {
		return a.spec(IPv4) == b.spec(IPv4) && !a.Src.Prefix.IsValid() && !a.Dst.Prefix.IsValid()
	}
	common := make([][]int, len(v4)+1) // common[i][j]: length for v4[i:], v6[j:]
	for i := range common {
		common[i] = make([]int, len(v6)+1)
	}
	for i := len(v4) - 1; i >= 0; i-- {
		for j := len(v6) - 1; j >= 0; j-- {
			if same(v4[i], v6[j]) {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	four, six := IPv4, IPv6
	var out []nativeRule
	for i, j := 0, 0; i < len(v4) || j < len(v6); {
		switch {
		case i < len(v4) && j < len(v6) && same(v4[i], v6[j]):
			out = append(out, nativeRule{Rule: v4[i]})
			i, j = i+1, j+1
		case j == len(v6) || (i < len(v4) && common[i+1][j] >= common[i][j+1]):
			out = append(out, nativeRule{v4[i], &four})
			i++
		default:
			out = append(out, nativeRule{v6[j], &six})
			j++
		}
	}
	return out
}

// expand splits what one rule of iptables does and nftables needs several for: a list of ports, and TPROXY, which drops
// where the proxy does not listen.
func expand(table string, r nativeRule) []nativeRule {
	if r.Verdict.Action == Jump {
		r.Verdict.Chain = nativeName(table, r.Verdict.Chain)
	}
	if r.Verdict.Action == TProxy {
		drop := r
		drop.Verdict = Verdict{Action: Drop}
		return []nativeRule{r, drop}
	}
	if len(r.Dport.Ranges) <= 1 || r.Dport.Not {
		return []nativeRule{r}
	}
	var out []nativeRule
	for _, p := range r.Dport.Ranges {
		one := r
		one.Dport = Ports{Ranges: []PortRange{p}}
		out = append(out, one)
	}
	return out
}

// NFT writes the plan as input for nft -f: it replaces table inet wingman in one step.
func (r *Rules) NFT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %[1]s\ndelete table inet %[1]s\n", nativeTable)
	if r.Empty() {
		return b.String()
	}
	fmt.Fprintf(&b, "table inet %s {\n", nativeTable)
	for _, c := range r.native() {
		fmt.Fprintf(&b, "\tchain %s {\n", c.name)
		if c.hook != nil {
			fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.hook.kind, c.hook.hook, c.hook.priority)
		}
		for _, rule := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule.text())
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// text is the rule in the language of nft.
func (r nativeRule) text() string {
	var words []string
	word := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	address := func(side string, a Addr) {
		if !a.Prefix.IsValid() || (a.Prefix.Bits() == 0 && !a.Not) {
			return
		}
		proto, text := "ip", a.Prefix.String()
		if a.Prefix.Addr().Is6() {
			proto = "ip6"
		}
		if a.Prefix.IsSingleIP() {
			text = a.Prefix.Addr().String()
		}
		word("%s %s %s%s", proto, side, unequal(a.Not), text)
	}
	if r.family != nil && !r.namesAddress() {
		word("meta nfproto %s", *r.family)
	}
	if r.In != "" {
		word("iifname %q", nftInterface(r.In))
	}
	if r.Out != "" {
		word("oifname %q", nftInterface(r.Out))
	}
	address("saddr", r.Src)
	address("daddr", r.Dst)
	if r.Proto != "" && !r.Sport.narrow() && !r.Dport.narrow() {
		word("meta l4proto %s", r.Proto)
	}
	for _, p := range []struct {
		side string
		Ports
	}{{"sport", r.Sport}, {"dport", r.Dport}} {
		if !p.narrow() {
			continue
		}
		for _, one := range p.Ranges { // of several, none may match: expand has split the lists of which one may
			word("%s %s %s%s", r.Proto, p.side, unequal(p.Not), strings.Replace(one.String(), ":", "-", 1))
		}
	}
	if r.Syn {
		word("tcp flags & (fin | syn | rst | ack) == syn")
	}
	for _, o := range r.Owners {
		key := "skuid"
		if o.Group {
			key = "skgid"
		}
		word("meta %s %s%d", key, unequal(o.Not), o.ID)
	}
	if r.Mark != nil {
		word("meta mark %s%#010x", unequal(r.Mark.Not), r.Mark.Value)
	}
	if r.ConnMark != nil {
		word("ct mark %#010x", *r.ConnMark)
	}
	if r.State != "" {
		word("ct state %s", strings.ToLower(r.State))
	}
	if r.Known {
		word("ct status confirmed")
	}
	if r.DNAT {
		word("ct status dnat")
	}
	if r.NotToLocal || r.ToLocal {
		word("fib daddr type %slocal", unequal(r.NotToLocal))
	}
	word("counter")
	words = append(words, r.verdictText()...)
	if r.Reason != "" {
		word("comment %q", comment(r.Reason))
	}
	return strings.Join(words, " ")
}

// namesAddress reports whether an address in the rule says already which family it is for.
func (r *nativeRule) namesAddress() bool {
	return slices.ContainsFunc([]Addr{r.Src, r.Dst}, func(a Addr) bool { return a.Prefix.IsValid() && (a.Prefix.Bits() > 0 || a.Not) })
}

// narrow reports whether the match leaves any port out.
func (p Ports) narrow() bool {
	return len(p.Ranges) > 0 && (p.Not || len(p.Ranges) > 1 || p.Ranges[0] != PortRange{0, 65535})
}

func unequal(not bool) string {
	if not {
		return "!= "
	}
	return ""
}

// nftInterface turns the wildcard of iptables into that of nftables.
func nftInterface(name string) string {
	if prefix, ok := strings.CutSuffix(name, "+"); ok {
		return prefix + "*"
	}
	return name
}

func (r *nativeRule) verdictText() []string {
	v := r.Verdict
	switch v.Action {
	case Accept:
		return []string{"accept"}
	case Return:
		return []string{"return"}
	case Drop:
		return []string{"drop"}
	case Jump:
		return []string{"jump " + v.Chain}
	case Redirect:
		return []string{fmt.Sprintf("redirect to :%d", v.Value)}
	case CTZone:
		return []string{fmt.Sprintf("ct zone set %d", v.Value)}
	case SetMark:
		return []string{fmt.Sprintf("meta mark set %#010x", v.Value)}
	case SaveMark:
		return []string{"ct mark set meta mark"}
	case RestoreMark:
		return []string{"meta mark set ct mark"}
	case TProxy:
		return []string{fmt.Sprintf("tproxy %s to :%d", map[Family]string{IPv4: "ip", IPv6: "ip6"}[*r.tproxyFamily()], v.Value),
			fmt.Sprintf("meta mark set %#010x", v.Mark), "accept"}
	}
	panic(fmt.Sprintf("iptables: no nft text for action %d", v.Action))
}

// tproxyFamily is the family of a TPROXY rule, told by the loopback address that it always leaves out.
func (r *nativeRule) tproxyFamily() *Family {
	fam := familyOf(r.Dst.Prefix.Addr())
	return &fam
}

// comment cuts a reason to what nft takes for a comment (NFTNL_UDATA_COMMENT_MAXLEN is 128 with the final zero).
func comment(reason string) string {
	reason = strings.ReplaceAll(reason, `"`, `'`)
	if len(reason) > 120 {
		reason = reason[:120]
	}
	return reason
}
