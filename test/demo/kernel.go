package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// dnsPort is where the agent serves DNS.
const dnsPort = "15053"

// rule is one rule of `iptables-save -c`.
type rule struct {
	packets int
	table   string
	text    string // -A CHAIN ...
}

// ruleset is what `iptables-save -c` prints: rules, and the chains that somebody made.
type ruleset struct {
	rules  []rule
	chains []string // table and name
}

var ruleLine = regexp.MustCompile(`^\[(\d+):\d+\] (-A .*)$`)

// parseRules reads the output of `iptables-save -c`.
func parseRules(saved string) (ruleset, error) {
	var (
		set   ruleset
		table string
	)
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "*"); ok {
			table = name
			continue
		}
		if chain, policy, ok := strings.Cut(strings.TrimPrefix(line, ":"), " "); ok && line[0] == ':' && strings.HasPrefix(policy, "-") {
			set.chains = append(set.chains, table+" "+chain)
			continue
		}
		m := ruleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			return ruleset{}, fmt.Errorf("counter in %q: %w", line, err)
		}
		set.rules = append(set.rules, rule{n, table, m[2]})
	}
	return set, nil
}

// redirects are the rules that send port 53 to the agent.
func (s ruleset) redirects() []rule {
	var out []rule
	for _, r := range s.rules {
		if r.table == "nat" && strings.Contains(r.text, "REDIRECT") && strings.HasSuffix(r.text, " "+dnsPort) {
			out = append(out, r)
		}
	}
	return out
}

// redirected is how many connections (of UDP: first packets) those rules have taken.
func (s ruleset) redirected() int {
	n := 0
	for _, r := range s.redirects() {
		n += r.packets
	}
	return n
}

func (s ruleset) empty() bool { return len(s.rules)+len(s.chains) == 0 }

// String lists rules and chains, one a line.
func (s ruleset) String() string {
	var b strings.Builder
	for _, r := range s.rules {
		fmt.Fprintf(&b, "-t %s %s\n", r.table, r.text)
	}
	for _, c := range s.chains {
		fmt.Fprintf(&b, "chain %s\n", c)
	}
	return b.String()
}
