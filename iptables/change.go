package iptables

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// wantedTable is what one table should hold of ours: rules without "-A chain ", canonical.
type wantedTable struct {
	chains   map[string][]string     // chains of ours
	builtins map[string][]wantedRule // our rules in built-in chains, front ones first
}

type wantedRule struct {
	spec  string // canonical, to compare
	text  string // to write
	front bool
}

// want turns the plan for one table into comparable text. have is that table in the kernel, nil when it does not exist;
// mark says that the table is to be marked as made by us or by others.
func (t *Table) want(fam Family, have *savedTable, mark bool) wantedTable {
	w := wantedTable{chains: map[string][]string{}, builtins: map[string][]wantedRule{}}
	for _, c := range t.Chains {
		if !builtins[c.Name] {
			w.chains[c.Name] = []string{}
			for _, r := range c.Rules {
				w.chains[c.Name] = append(w.chains[c.Name], r.spec(fam))
			}
			continue
		}
		for _, r := range c.Rules {
			spec := r.spec(fam)
			w.builtins[c.Name] = append(w.builtins[c.Name], wantedRule{canonical(spec), spec, r.Front})
			if !ours(target(spec)) {
				w.chains[chainOwn+c.Name] = append(w.chains[chainOwn+c.Name], spec)
			}
		}
	}
	if mark && have != nil && !have.has(chainTable) {
		for _, name := range hooksOf[t.Name] {
			if have.has(chainMade+name) || (len(w.builtins[name]) > 0 && slices.Contains(have.missing, name)) {
				w.chains[chainMade+name] = []string{}
			}
		}
	}
	switch {
	case !mark || (have == nil && len(t.Chains) == 0): // an empty one is made without iptables
	case have == nil || have.has(chainTable):
		w.chains[chainTable] = []string{}
	case len(t.Chains) > 0:
		w.chains[chainGuest] = []string{}
	}
	return w
}

// change writes the iptables-restore --noflush input that turns one table from what it is into what it should be: "" when
// nothing differs. Chains that are right already are not touched and keep their counters; rules of others are not touched.
// The whole of it takes effect in one step.
func change(table string, have *savedTable, want wantedTable) string {
	if have == nil {
		have = newSavedTable()
	}
	var chains, rules, stale []string
	for _, name := range slices.Sorted(maps.Keys(want.chains)) {
		specs := want.chains[name]
		if have.has(name) && slices.EqualFunc(have.chains[name], specs, func(h, w string) bool { return h == canonical(w) }) {
			continue
		}
		chains = append(chains, fmt.Sprintf(":%s - [0:0]", name)) // makes it, or empties it
		for _, spec := range specs {
			rules = append(rules, "-A "+name+" "+spec)
		}
	}
	for _, name := range have.order {
		if _, wanted := want.chains[name]; !wanted && ours(name) {
			chains = append(chains, fmt.Sprintf(":%s - [0:0]", name))
			if !have.usedByOthers(name) {
				stale = append(stale, "-X "+name)
			}
		}
	}
	var jumps []string
	for _, name := range hooksOf[table] {
		jumps = append(jumps, changeBuiltin(name, have, want.builtins[name])...)
	}
	if len(chains)+len(jumps) == 0 {
		return ""
	}
	lines := slices.Concat([]string{"*" + table}, chains, jumps, rules, stale, []string{"COMMIT", ""})
	return strings.Join(lines, "\n")
}

// usedByOthers reports whether a chain of another tool jumps to one of ours, which then can be emptied but not removed.
func (t *savedTable) usedByOthers(chain string) bool {
	for _, name := range t.order {
		if ours(name) || builtins[name] {
			continue
		}
		if slices.ContainsFunc(t.chains[name], func(spec string) bool { return target(spec) == chain }) {
			return true
		}
	}
	return false
}

// changeBuiltin replaces our rules in a built-in chain when they are not exactly the wanted ones in the wanted order.
func changeBuiltin(name string, have *savedTable, want []wantedRule) []string {
	owned := have.owned(name)
	same := len(owned) == len(want)
	for i := 0; same && i < len(want); i++ {
		same = have.chains[name][owned[i]] == want[i].spec
	}
	if same {
		return nil
	}
	var out []string
	for _, i := range owned {
		out = append(out, "-D "+name+" "+have.raw[name][i])
	}
	front := 0
	for _, r := range want {
		if r.front {
			front++
			out = append(out, fmt.Sprintf("-I %s %d %s", name, front, r.text))
		} else {
			out = append(out, "-A "+name+" "+r.text)
		}
	}
	return out
}

// changeAll is change over all tables of a family, in an order that is safe when a later table fails: what redirects (nat)
// comes last when rules go in and first when all of them go out.
func changeAll(fam Family, have state, want *Ruleset, mark bool) string {
	order := []string{"raw", "mangle", "nat"}
	if len(want.Tables) == 0 {
		slices.Reverse(order)
	}
	var b strings.Builder
	for _, name := range order {
		wanted := wantedTable{}
		if i := slices.IndexFunc(want.Tables, func(t Table) bool { return t.Name == name }); i >= 0 {
			wanted = want.Tables[i].want(fam, have[name], mark)
		}
		b.WriteString(change(name, have[name], wanted))
	}
	return b.String()
}

// changeBack writes the input that gives the tables of now our chains and rules as they were in before.
func changeBack(now, before state) string {
	var b strings.Builder
	for _, name := range []string{"nat", "mangle", "raw"} {
		w := wantedTable{chains: map[string][]string{}, builtins: map[string][]wantedRule{}}
		if t := before[name]; t != nil {
			for _, c := range t.order {
				if ours(c) {
					w.chains[c] = t.raw[c]
				}
			}
			for _, c := range hooksOf[name] {
				for _, i := range t.owned(c) {
					w.builtins[c] = append(w.builtins[c], wantedRule{t.chains[c][i], t.raw[c][i], t.frontOf(c, i)})
				}
			}
		}
		b.WriteString(change(name, now[name], w))
	}
	return b.String()
}

// frontOf reports whether a rule of ours stood before every rule of others.
func (t *savedTable) frontOf(chain string, i int) bool {
	owned := t.owned(chain)
	return i < len(owned) && owned[i] == i && len(owned) < len(t.chains[chain])
}
