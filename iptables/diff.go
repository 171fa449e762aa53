package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Kind says how a line of the kernel and of the plan differ.
type Kind string

// The kinds of difference.
const (
	Missing Kind = "missing" // in the plan, not in the kernel
	Foreign Kind = "foreign" // in a chain of ours, not in the plan
	Changed Kind = "changed" // something else stands in its place
	Order   Kind = "order"   // the right lines in another order
)

// Difference is one line in which the kernel is not as planned.
type Difference struct {
	Kind  Kind   `json:"kind"`
	Where string `json:"where"` // for instance "ipv4 nat ISTIO_OUTPUT"
	Want  string `json:"want,omitempty"`
	Have  string `json:"have,omitempty"`
}

// String is one line for people: a sign as in diff, the place, the rule.
func (d Difference) String() string {
	switch d.Kind {
	case Missing:
		return fmt.Sprintf("- %s: %s", d.Where, d.Want)
	case Foreign:
		return fmt.Sprintf("+ %s: %s", d.Where, d.Have)
	}
	return fmt.Sprintf("! %s: %s, expected %s", d.Where, d.Have, d.Want)
}

// section is one chain as it is and as it should be. An absent chain is nil, an empty one is not.
type section struct {
	where      string
	have, want []string
}

// differences compares section by section.
func differences(sections []section) []Difference {
	var out []Difference
	for _, s := range sections {
		out = append(out, s.differences()...)
	}
	return out
}

func (s *section) differences() []Difference {
	switch {
	case s.have == nil && s.want != nil && len(s.want) == 0:
		return []Difference{{Kind: Missing, Where: s.where, Want: "the chain itself"}}
	case s.want == nil && s.have != nil && len(s.have) == 0:
		return []Difference{{Kind: Foreign, Where: s.where, Have: "the chain itself"}}
	case slices.Equal(s.have, s.want):
		return nil
	}
	missing, foreign := without(s.want, s.have), without(s.have, s.want)
	if len(missing)+len(foreign) == 0 {
		return []Difference{{Kind: Order, Where: s.where, Want: strings.Join(s.want, "; "), Have: strings.Join(s.have, "; ")}}
	}
	var out []Difference
	for i := 0; i < max(len(missing), len(foreign)); i++ {
		d := Difference{Where: s.where, Kind: Changed}
		if i < len(missing) {
			d.Want = missing[i]
		} else {
			d.Kind = Foreign
		}
		if i < len(foreign) {
			d.Have = foreign[i]
		} else {
			d.Kind = Missing
		}
		out = append(out, d)
	}
	return out
}

// without returns the lines of a that are not in b, counting repetitions.
func without(a, b []string) []string {
	rest := slices.Clone(b)
	var out []string
	for _, line := range a {
		if i := slices.Index(rest, line); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
			continue
		}
		out = append(out, line)
	}
	return out
}

// Diff reads the kernel back and says in what it is not as planned. No difference means that Apply would change nothing.
func (a *Applier) Diff(ctx context.Context, rules Rules) ([]Difference, error) {
	s, err := a.host.look()
	if err != nil {
		return nil, err
	}
	sections, err := a.sections(ctx, &rules, s)
	if err != nil {
		return nil, err
	}
	out := differences(sections)
	for _, r := range rules.Routes {
		have, err := findRules(r)
		if err != nil {
			return nil, err
		}
		if len(have) == 0 {
			out = append(out, Difference{Kind: Missing, Where: r.Family.String() + " policy rules", Want: fmt.Sprintf("fwmark %#x lookup %d", r.Mark, r.Table)})
		}
		ok, err := hasLocalDefault(r)
		if err != nil {
			return nil, err
		}
		if !ok {
			out = append(out, Difference{Kind: Missing, Where: fmt.Sprintf("%s route table %d", r.Family, r.Table), Want: "local default dev lo"})
		}
	}
	return out, nil
}

// sections reads the chains of every backend that has anything of ours, or should have.
func (a *Applier) sections(ctx context.Context, rules *Rules, s *seen) ([]section, error) {
	chosen := ""
	if !rules.Empty() {
		var err error
		if chosen, err = a.choose(rules.Backend, s); err != nil {
			return nil, err
		}
	}
	var out []section
	for _, name := range allBackends {
		want := rules
		if name != chosen {
			want = &Rules{}
		}
		part, err := a.backend(name).sections(ctx, want, s)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
	}
	return out, nil
}

// sections pairs up the chains of both families.
func (x *xtables) sections(ctx context.Context, rules *Rules, s *seen) ([]section, error) {
	var out []section
	for _, fam := range []Family{IPv4, IPv6} {
		have, err := x.known(ctx, fam, s)
		if err != nil {
			return nil, err
		}
		for _, name := range tableOrder {
			table := have[name]
			want := wantedTable{}
			if i := slices.IndexFunc(rules.Families[fam].Tables, func(t Table) bool { return t.Name == name }); i >= 0 {
				want = rules.Families[fam].Tables[i].want(fam, table, x.marks())
			}
			if table == nil {
				table = newSavedTable()
			}
			out = append(out, pairChains(fam.String()+" "+name+" ", table, want)...)
		}
	}
	return out, nil
}

// pairChains lists our part of one table, leaving out the chains that are only our memory.
func pairChains(where string, have *savedTable, want wantedTable) []section {
	names := map[string]bool{}
	for _, c := range have.order {
		names[c] = ours(c)
	}
	for c := range want.chains {
		names[c] = true
	}
	var out []section
	for _, c := range hooksOf[strings.Fields(where)[1]] {
		s := section{where: where + c}
		for _, i := range have.owned(c) {
			s.have = append(s.have, have.chains[c][i])
		}
		for _, r := range want.builtins[c] {
			s.want = append(s.want, r.spec)
		}
		out = append(out, s)
	}
	for _, c := range sortedKeys(names) {
		if !names[c] || builtins[c] || c == chainTable || c == chainGuest || strings.HasPrefix(c, chainOwn) || strings.HasPrefix(c, chainMade) {
			continue
		}
		s := section{where: where + c}
		if have.has(c) {
			s.have = append([]string{}, have.chains[c]...)
		}
		if specs, ok := want.chains[c]; ok {
			s.want = []string{}
			for _, spec := range specs {
				s.want = append(s.want, canonical(spec))
			}
		}
		out = append(out, s)
	}
	return out
}
