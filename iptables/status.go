package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Completeness compares the kernel with a plan.
type Completeness string

// The states of the rules.
const (
	Absent   Completeness = "absent"   // nothing of ours is in the kernel
	Partial  Completeness = "partial"  // some of it, or more than planned
	Complete Completeness = "complete" // exactly the plan
	Present  Completeness = "present"  // something is there, and no plan was given to compare it with
)

// Status is what is in the kernel now.
type Status struct {
	State    Completeness  `json:"state"`
	Backends []string      `json:"backends"` // that hold something of ours; one when all is well
	Chains   int           `json:"chains"`
	Rules    int           `json:"rules"`
	Diff     []Difference  `json:"diff,omitempty"` // against the plan
	Counters Counters      `json:"counters"`
	Routes   []PolicyRoute `json:"routes,omitempty"`
	// TrialUntil is when the rules on trial are taken back; zero when none are.
	TrialUntil time.Time `json:"trialUntil,omitzero"`
	// TrialOrphaned says that rules are on trial, but their guardian was killed: nobody will take them back.
	TrialOrphaned bool `json:"trialOrphaned,omitempty"`
}

// Counters counts what the rules in the kernel did since they went in: first packets of connections, for nat sees no others.
type Counters struct {
	Outbound uint64 `json:"outbound"` // sent to Envoy's outbound port
	Inbound  uint64 `json:"inbound"`  // sent to Envoy's inbound port; with TPROXY all packets of them
	DNS      uint64 `json:"dns"`      // sent to the DNS proxy
	Guarded  uint64 `json:"guarded"`  // kept out of capture by a guard
}

func (c *Counters) add(o Counters) {
	c.Outbound += o.Outbound
	c.Inbound += o.Inbound
	c.DNS += o.DNS
	c.Guarded += o.Guarded
}

// Status reads back what is in the kernel and compares it with a plan; the zero plan stands for "not known".
func (a *Applier) Status(ctx context.Context, rules Rules) (Status, error) {
	s, err := a.host.look()
	if err != nil {
		return Status{}, err
	}
	st := Status{State: Absent, Backends: []string{}}
	if until, err := TrialUntil(ctx); err == nil {
		st.TrialUntil = until
	} else if errors.Is(err, ErrNoTrial) && s.trialMarked() {
		st.TrialOrphaned = true
	}
	for _, name := range allBackends {
		b := a.backend(name)
		sections, err := b.sections(ctx, &Rules{}, s)
		if err != nil {
			return Status{}, err
		}
		here := false
		for _, sec := range sections {
			if sec.have != nil {
				here = true
				st.Rules += len(sec.have)
				if f := strings.Fields(sec.where); !builtins[f[len(f)-1]] {
					st.Chains++
				}
			}
		}
		if !here {
			continue
		}
		st.Backends = append(st.Backends, name)
		counters, err := b.counters(ctx, s)
		if err != nil {
			return Status{}, err
		}
		st.Counters.add(counters)
		st.State = Present
	}
	if st.Routes, err = staleRoutes(nil, s.marks); err != nil {
		return Status{}, err
	}
	if rules.Empty() {
		return st, nil
	}
	if st.Diff, err = a.Diff(ctx, rules); err != nil {
		return Status{}, err
	}
	switch {
	case len(st.Diff) == 0:
		st.State = Complete
	case st.State == Present:
		st.State = Partial
	}
	return st, nil
}

// counters reads iptables-save -c of both families.
func (x *xtables) counters(ctx context.Context, s *seen) (Counters, error) {
	var c Counters
	for _, fam := range []Family{IPv4, IPv6} {
		if !s.ours(x.flavour, fam) {
			continue
		}
		save, err := x.command(fam, "-save")
		if err != nil {
			return c, err
		}
		for _, table := range ourTables {
			if !slices.Contains(s.tables(x.flavour, fam), table) {
				continue
			}
			out, err := x.host.run(ctx, "", save, "-c", "-t", table)
			if err != nil {
				return c, fmt.Errorf("read the counters: %w", err)
			}
			c.add(countSave(out))
		}
	}
	return c, nil
}

// countSave sums up what iptables-save -c counted for the rules that end a packet's way through ours.
func countSave(text string) Counters {
	var c Counters
	for line := range strings.Lines(text) {
		var packets, bytes uint64
		if n, _ := fmt.Sscanf(line, "[%d:%d]", &packets, &bytes); n != 2 {
			continue
		}
		chain, spec, ok := cutRule(strings.TrimSpace(line))
		if !ok {
			continue
		}
		switch verdict := target(spec); {
		case chain == chainRedirect:
			c.Outbound += packets
		case chain == chainInRedirect, chain == chainTProxy:
			c.Inbound += packets
		case verdict == "REDIRECT":
			c.DNS += packets
		case verdict == "ACCEPT" && strings.HasPrefix(chain, "WINGMAN_"):
			c.Guarded += packets
		}
	}
	return c
}

func sortedKeys(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }
