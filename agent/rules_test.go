package agent

import (
	"errors"
	"testing"

	"wingman/bootstrap"
	"wingman/iptables"
	"wingman/test/netns"
)

func TestRulesThatAreTheOperatorsAreNotComparedWithOurs(t *testing.T) {
	netns.New(t)
	applier, err := iptables.NewApplier(iptables.ApplierConfig{})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := iptables.Plan(iptables.Config{Level: iptables.LevelAll, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true, ProxyUID: 995, ProxyGID: 995}, iptables.Facts{})
	if err != nil {
		t.Fatal(err)
	}
	r := &Rules{cfg: &bootstrap.Config{Capture: bootstrap.Capture{CustomTables: true}}, plan: plan, applier: applier}
	if diff, err := r.Diff(t.Context()); !errors.Is(err, ErrCustomRules) || len(diff) > 0 {
		t.Errorf("Diff: %d differences, %v; want ErrCustomRules", len(diff), err)
	}
	if s, err := r.Status(t.Context()); err != nil || s.State != iptables.Absent || len(s.Diff) > 0 {
		t.Errorf("Status: %s with %d differences, %v; want absent, and nothing missing", s.State, len(s.Diff), err)
	}
	if _, err := r.Apply(t.Context()); !errors.Is(err, ErrCustomRules) {
		t.Errorf("Apply: %v, want ErrCustomRules", err)
	}
}
