package iptables

import (
	"cmp"
	"slices"
	"strings"
)

// Rules is a plan: all the chains, rules and routes that should be in the kernel. The zero value is "nothing of ours".
type Rules struct {
	Level    Level
	Backend  string // as configured; "auto" lets the Applier choose
	Families [2]Ruleset
	Routes   []PolicyRoute
	// Open lists the directions, "inbound" and "outbound", whose traffic goes past a proxy that is down.
	Open []string
	// Guards lists what is kept out of capture, with the reasons.
	Guards []Guard
	// Notes are sentences an operator should read before applying.
	Notes []string
}

// Ruleset is the plan for one family: tables in the order iptables-save prints them.
type Ruleset struct {
	// Wanted is false where this family is not captured: nothing of ours may be there.
	Wanted bool
	Tables []Table
}

// Table is one iptables table.
type Table struct {
	Name   string // "mangle", "raw" or "nat"
	Chains []Chain
}

// Chain is one chain: a built-in one holds only our rules in it, one of ours holds all its rules.
type Chain struct {
	Name  string
	Rules []Rule
}

// PolicyRoute sends packets with a mark to the loopback: `ip rule fwmark Mark lookup Table` and `local default dev lo` there.
type PolicyRoute struct {
	Family Family `json:"family"`
	Mark   uint32 `json:"mark"`
	Table  int    `json:"table"`
}

// Guard is one exemption from capture.
type Guard struct {
	What   string `json:"what"`
	Reason string `json:"reason"`
}

// Empty reports whether the plan captures nothing: no chain, no route.
func (r *Rules) Empty() bool {
	for _, f := range r.Families {
		for _, t := range f.Tables {
			if len(t.Chains) > 0 {
				return false
			}
		}
	}
	return len(r.Routes) == 0
}

// tableOrder is the order in which iptables-save prints tables.
var tableOrder = []string{"mangle", "raw", "nat"}

// builtins are the chains that iptables makes itself, per table; only those that we put rules into matter here.
var builtins = map[string]bool{"PREROUTING": true, "INPUT": true, "FORWARD": true, "OUTPUT": true, "POSTROUTING": true}

// table returns the named table, adding it in tableOrder when it is not there.
func (s *Ruleset) table(name string) *Table {
	i := slices.IndexFunc(s.Tables, func(t Table) bool { return t.Name == name })
	if i < 0 {
		s.Tables = append(s.Tables, Table{Name: name})
		slices.SortStableFunc(s.Tables, func(a, b Table) int {
			return cmp.Compare(slices.Index(tableOrder, a.Name), slices.Index(tableOrder, b.Name))
		})
		i = slices.IndexFunc(s.Tables, func(t Table) bool { return t.Name == name })
	}
	return &s.Tables[i]
}

// names lists the tables.
func (s *Ruleset) names() []string {
	var out []string
	for _, t := range s.Tables {
		out = append(out, t.Name)
	}
	return out
}

// find returns the named chain of the named table, nil when the plan has none.
func (s *Ruleset) find(table, chain string) *Chain {
	for i := range s.Tables {
		if s.Tables[i].Name == table {
			for j := range s.Tables[i].Chains {
				if s.Tables[i].Chains[j].Name == chain {
					return &s.Tables[i].Chains[j]
				}
			}
		}
	}
	return nil
}

// chain returns the named chain, adding it when it is not there. Built-in chains stand first in the kernel's order,
// ours after them by name, as iptables-nft-save prints them.
func (t *Table) chain(name string) *Chain {
	i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name })
	if i < 0 {
		t.Chains = append(t.Chains, Chain{Name: name})
		slices.SortStableFunc(t.Chains, func(a, b Chain) int {
			if x := cmp.Compare(hookOrder(a.Name), hookOrder(b.Name)); x != 0 {
				return x
			}
			return strings.Compare(a.Name, b.Name)
		})
		i = slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == name })
	}
	return &t.Chains[i]
}

func hookOrder(chain string) int {
	i := slices.Index([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, chain)
	if i < 0 {
		return 5
	}
	return i
}
