package iptables

import (
	"encoding/json"
)

// rulesJSON is the plan for scripts: what is captured, each rule as iptables writes it, each guard with its reason.
type rulesJSON struct {
	Level    Level         `json:"level"`
	Backend  string        `json:"backend"`
	Families []familyJSON  `json:"families"`
	Routes   []PolicyRoute `json:"routes"`
	Open     []string      `json:"open"`
	Guards   []Guard       `json:"guards"`
	Notes    []string      `json:"notes"`
}

type familyJSON struct {
	Family   Family      `json:"family"`
	Captured bool        `json:"captured"`
	Tables   []tableJSON `json:"tables"`
}

type tableJSON struct {
	Table  string      `json:"table"`
	Chains []chainJSON `json:"chains"`
}

type chainJSON struct {
	Chain string     `json:"chain"`
	Rules []ruleJSON `json:"rules"`
}

type ruleJSON struct {
	Rule   string `json:"rule"`
	Reason string `json:"reason,omitempty"`
}

// MarshalJSON writes the plan for scripts. Lists are never null.
func (r Rules) MarshalJSON() ([]byte, error) {
	out := rulesJSON{
		Level: r.Level, Backend: r.Backend, Families: []familyJSON{},
		Routes: append([]PolicyRoute{}, r.Routes...), Open: append([]string{}, r.Open...), Guards: append([]Guard{}, r.Guards...), Notes: append([]string{}, r.Notes...),
	}
	for _, fam := range []Family{IPv4, IPv6} {
		set := r.Families[fam]
		f := familyJSON{Family: fam, Captured: set.Wanted, Tables: []tableJSON{}}
		for _, t := range set.Tables {
			table := tableJSON{Table: t.Name, Chains: []chainJSON{}}
			for _, c := range t.Chains {
				chain := chainJSON{Chain: c.Name, Rules: []ruleJSON{}}
				for _, rule := range c.Rules {
					chain.Rules = append(chain.Rules, ruleJSON{rule.Text(c.Name, fam), rule.Reason})
				}
				table.Chains = append(table.Chains, chain)
			}
			f.Tables = append(f.Tables, table)
		}
		out.Families = append(out.Families, f)
	}
	return json.Marshal(out)
}
