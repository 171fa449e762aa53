package iptables

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// awaitTrialEnd returns when no rules are on trial any more.
func awaitTrialEnd(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := TrialUntil(t.Context())
		if errors.Is(err, ErrNoTrial) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the trial does not end")
		}
	}
}

func TestRulesOnTrialAreTakenBackThoughWhoTriesThemIsDead(t *testing.T) {
	for _, backend := range allBackends {
		for _, former := range []string{"nothing", "ours"} {
			t.Run(backend+"/"+former, func(t *testing.T) {
				t.Parallel()
				netns.New(t)
				if backend != BackendNative {
					load(t, "iptables-"+backend+"-restore", strangers)
				}
				if former == "ours" {
					cfg, facts := childConfig("tproxy", backend)
					cfg.OutboundExcludePorts = []PortRange{{25, 25}}
					cfg.VirtualInterfaces = []string{"virbr0"}
					cfg.Mode = ModeRedirect
					mustApply(t, cfg, facts)
				}
				before := save(t, backend) + listingOrNothing(t)
				if err := startChild(t, nil, "try", "tproxy", backend, "1s"); err != nil { // the child ends once the rules are in
					t.Fatal(err)
				}
				rules, err := Plan(childConfig("tproxy", backend))
				if err != nil {
					t.Fatal(err)
				}
				if diff, err := applier(t).Diff(t.Context(), rules); err != nil || len(diff) > 0 {
					t.Errorf("on trial: %d differences, %v; want the tried rules in place", len(diff), err)
				}
				awaitTrialEnd(t)
				if diff := cmp.Diff(before, save(t, backend)+listingOrNothing(t)); diff != "" {
					t.Errorf("after the trial (-before +after):\n%s", diff)
				}
			})
		}
	}
}

// listingOrNothing is our native table, "" when there is none.
func listingOrNothing(t *testing.T) string {
	t.Helper()
	if !strings.Contains(sh(t, "nft", "list", "tables"), "inet "+nativeTable) {
		return ""
	}
	return listing(t)
}

func TestConfirmedRulesStay(t *testing.T) {
	netns.New(t)
	if err := Confirm(t.Context()); !errors.Is(err, ErrNoTrial) {
		t.Fatalf("Confirm without a trial: %v, want ErrNoTrial", err)
	}
	if err := startChild(t, nil, "try", "tproxy", BackendNFT, "1h"); err != nil {
		t.Fatal(err)
	}
	until, err := TrialUntil(t.Context())
	if left := time.Until(until); err != nil || left < 50*time.Minute || left > time.Hour {
		t.Errorf("TrialUntil: %s left, %v; want about an hour", left, err)
	}
	if err := startChild(t, nil, "try", "redirect", BackendNFT, "1h"); err == nil || !strings.Contains(err.Error(), "on trial already") {
		t.Errorf("a second trial: %v; want it refused", err)
	}
	if err := Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitTrialEnd(t)
	rules, err := Plan(childConfig("tproxy", BackendNFT))
	if err != nil {
		t.Fatal(err)
	}
	if diff, err := applier(t).Diff(t.Context(), rules); err != nil || len(diff) > 0 {
		t.Errorf("after confirm: %d differences, %v; want the tried rules in place", len(diff), err)
	}
}

func TestARefusedPlanLeavesNoGuardianBehind(t *testing.T) {
	netns.New(t)
	a := applier(t)
	spoil(a.host, "iptables-", "*raw\n")
	rules, err := Plan(childConfig("redirect", BackendNFT))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Try(t.Context(), rules, guardianCommand("1h")); err == nil {
		t.Error("a plan that the kernel refuses was taken")
	}
	awaitTrialEnd(t)
}

func TestTheKeeperLeavesRulesOnTrialAlone(t *testing.T) {
	ns := netns.New(t)
	netns.Tool(t, "nft")
	cfg, facts := vmDefault(BackendNative)
	rules, plan := fixedPlan(t, cfg, facts)
	k := keep(t, ns, KeeperConfig{Plan: plan})
	if err := startChild(t, nil, "try", "tproxy", BackendNative, "1h"); err != nil {
		t.Fatal(err)
	}
	k.until(t, "on trial", func(s KeeperState) bool { return s.Trial })
	tried, err := Plan(childConfig("tproxy", BackendNative))
	if err != nil {
		t.Fatal(err)
	}
	if diff, err := k.applier.Diff(t.Context(), tried); err != nil || len(diff) > 0 {
		t.Errorf("on trial: %d differences, %v; want the tried rules in place", len(diff), err)
	}
	if err := Confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	// This Keeper's plan is still the old one, and holds again.
	k.until(t, "back to its plan", func(s KeeperState) bool { return !s.Trial && s.InPlace })
	if diff, err := k.applier.Diff(t.Context(), rules); err != nil || len(diff) > 0 {
		t.Errorf("after the trial: %d differences, %v; want the Keeper's plan", len(diff), err)
	}
}
