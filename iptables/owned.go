package iptables

import (
	"slices"
	"strconv"
	"strings"
)

// Chains that hold nothing a packet sees. They are our memory, kept in the kernel beside what they speak of: a file would
// outlive a reboot that the rules do not, or miss on another root.
const (
	// chainTable marks a table that did not exist before us, to be removed with the rules; chainGuest one that did.
	chainTable = "WINGMAN_TABLE"
	chainGuest = "WINGMAN_GUEST"
	// chainMade + the name of a built-in chain says that a table of others did not have that chain: iptables-nft made it for our
	// rules, and it goes with them.
	chainMade = "WINGMAN_MADE_"
	// chainOwn + the name of a built-in chain holds a copy of each rule of ours in that chain that does not jump to a chain
	// of ours, and could as well be somebody else's.
	chainOwn = "WINGMAN_OWN_"
)

// ours reports whether a chain belongs to Wingman or to Istio's own tool.
func ours(chain string) bool {
	return strings.HasPrefix(chain, "ISTIO_") || strings.HasPrefix(chain, "WINGMAN_")
}

// owned returns the indices of the rules in a built-in chain that are ours: those that jump to a chain of ours, those that
// our memory names, and, where Istio's tool left rules and no memory, those that it is known to leave.
func (t *savedTable) owned(chain string) []int {
	remembered := slices.Clone(t.chains[chainOwn+chain])
	var out []int
	for i, spec := range t.chains[chain] {
		if ours(target(spec)) {
			out = append(out, i)
			continue
		}
		if j := slices.Index(remembered, spec); j >= 0 {
			remembered = slices.Delete(remembered, j, j+1)
			out = append(out, i)
			continue
		}
		if t.leftByIstio(chain, spec) {
			out = append(out, i)
		}
	}
	return out
}

// leftByIstio reports whether a rule of a built-in chain is one that Istio's tool puts there beside its jumps, judged by
// the company it keeps: a table without Istio's chains, or one that has our memory, has none.
func (t *savedTable) leftByIstio(chain, spec string) bool {
	if t.has(chainOwn+chain) || !t.hasPrefix("ISTIO_") {
		return false
	}
	words := strings.Fields(spec)
	// An excluded interface: "-i X -j RETURN" in PREROUTING and "-o X -j RETURN" in OUTPUT, always both.
	if len(words) == 4 && (words[0] == "-i" || words[0] == "-o") && words[2] == "-j" && words[3] == "RETURN" {
		name := words[1]
		if slices.Contains(t.chains["PREROUTING"], "-i "+name+" -j RETURN") && slices.Contains(t.chains["OUTPUT"], "-o "+name+" -j RETURN") {
			return true
		}
		// A virtual interface: what comes from it was sent to Envoy first.
		return slices.ContainsFunc(t.chains["PREROUTING"], func(s string) bool {
			return strings.HasPrefix(s, "-i "+name+" ") && target(s) == chainRedirect
		})
	}
	mark := t.tproxyMark()
	if mark == "" {
		return false
	}
	switch chain {
	case "PREROUTING":
		return strings.HasPrefix(spec, "-p tcp -m mark --mark "+mark+" -j CONNMARK --save-mark")
	case "OUTPUT":
		return spec == "-o lo -p tcp -m mark --mark "+mark+" -j RETURN" ||
			strings.HasPrefix(spec, "-p tcp -m connmark --mark "+mark+" -j CONNMARK --restore-mark") ||
			(strings.HasPrefix(spec, "! -d ") && strings.Contains(spec, "-o lo -p tcp -m owner ") && strings.HasSuffix(spec, "-j MARK --set-xmark 0x53a/0xffffffff"))
	}
	return false
}

// tproxyMarks returns the packet marks of TPROXY chains of ours or of Istio's tool.
func (s state) tproxyMarks() []uint32 {
	var out []uint32
	for _, t := range s {
		if n, err := strconv.ParseUint(t.tproxyMark(), 0, 32); err == nil {
			out = append(out, uint32(n))
		}
	}
	return out
}

// tproxyMark is the mark that Istio's TPROXY chains in this table use, "" when there are none.
func (t *savedTable) tproxyMark() string {
	for _, spec := range t.chains[chainInbound] {
		words := strings.Fields(spec)
		if len(words) == 8 && words[6] == "-j" && words[7] == "RETURN" && words[4] == "--mark" && words[0] == "-p" {
			return words[5]
		}
	}
	return ""
}
