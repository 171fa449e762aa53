package iptables

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wingman/test/netns"
)

// kept is a Keeper that runs in the test's namespace, with the states it went through.
type kept struct {
	*Keeper
	states chan KeeperState
	stop   func(t *testing.T) // ends Run and waits for it
}

func keep(t *testing.T, ns *netns.NS, cfg KeeperConfig) *kept {
	t.Helper()
	k := &kept{states: make(chan KeeperState, 1000)}
	if cfg.Applier == nil {
		cfg.Applier = applier(t)
	}
	cfg.OnChange = func(s KeeperState) { k.states <- s }
	var err error
	if k.Keeper, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- ns.Do(func() error { return k.Run(ctx) }) }()
	k.stop = func(t *testing.T) {
		if cancel != nil {
			cancel()
			cancel = nil
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		}
	}
	t.Cleanup(func() { k.stop(t) })
	select {
	case <-k.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("the rules are not in place: %+v", k.State())
	}
	return k
}

// until returns the first state from now on that fits.
func (k *kept) until(t *testing.T, what string, fits func(KeeperState) bool) KeeperState {
	t.Helper()
	for len(k.states) > 0 { // of the past
		<-k.states
	}
	if s := k.State(); fits(s) {
		return s
	}
	deadline := time.After(time.Minute)
	for {
		select {
		case s := <-k.states:
			if fits(s) {
				return s
			}
		case <-deadline:
			t.Fatalf("never %s: %+v", what, k.State())
		}
	}
}

// eventually returns once the kernel is so.
func (k *kept) eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("not yet: %s; %+v", what, k.State())
		}
	}
}

func fixedPlan(t *testing.T, cfg Config, facts Facts) (Rules, func(context.Context) (Rules, error)) {
	t.Helper()
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	return rules, func(context.Context) (Rules, error) { return rules, nil }
}

func TestRulesThatSomebodyTookOutAreBackWithinASecond(t *testing.T) {
	tests := []struct {
		backend, name string
		harm          [][]string
	}{
		{BackendNFT, "nft flush ruleset", [][]string{{"nft", "flush", "ruleset"}}},
		{BackendNFT, "iptables -t nat -F", [][]string{{"iptables-nft", "-t", "nat", "-F"}}},
		{BackendNFT, "one jump deleted", [][]string{{"iptables-nft", "-t", "nat", "-D", "OUTPUT", "-j", "ISTIO_OUTPUT"}}},
		{BackendNFT, "one chain emptied", [][]string{{"iptables-nft", "-t", "raw", "-F", "ISTIO_OUTPUT_DNS"}}},
		{BackendNFT, "a rule pushed between ours", [][]string{{"iptables-nft", "-t", "nat", "-I", "ISTIO_OUTPUT", "1", "-j", "RETURN"}}},
		{BackendNative, "nft flush ruleset", [][]string{{"nft", "flush", "ruleset"}}},
		{BackendNative, "table deleted", [][]string{{"nft", "delete", "table", "inet", "wingman"}}},
		{BackendNative, "one chain emptied", [][]string{{"nft", "flush", "chain", "inet", "wingman", "nat-istio-output"}}},
		{BackendNative, "a rule pushed between ours", [][]string{{"nft", "insert", "rule", "inet", "wingman", "nat-istio-output", "return"}}},
		{BackendNative, "table switched off", [][]string{{"nft", "add table inet wingman { flags dormant; }"}}},
		{BackendNative, "policy of a chain changed", [][]string{{"nft", "chain inet wingman nat-output { policy drop; }"}}},
		{BackendLegacy, "iptables -F", [][]string{{"iptables-legacy", "-t", "nat", "-F"}, {"iptables-legacy", "-t", "raw", "-F"}}},
		{BackendLegacy, "one jump deleted", [][]string{{"iptables-legacy", "-t", "nat", "-D", "PREROUTING", "-p", "tcp", "-j", "ISTIO_INBOUND"}}},
		{BackendNFT, "policy rule deleted", [][]string{{"ip", "rule", "del", "fwmark", "1337"}}},
	}
	for _, tt := range tests {
		t.Run(tt.backend+"/"+tt.name, func(t *testing.T) {
			t.Parallel()
			ns := netns.New(t)
			cfg, facts := vmDefault(tt.backend)
			if strings.Contains(tt.name, "policy rule") {
				cfg.Mode = ModeTProxy
			}
			rules, plan := fixedPlan(t, cfg, facts)
			k := keep(t, ns, KeeperConfig{Plan: plan})
			start := time.Now()
			for _, argv := range tt.harm {
				sh(t, argv...)
			}
			s := k.until(t, "repaired", func(s KeeperState) bool { return s.Repairs > 0 && s.InPlace })
			took := time.Since(start)
			if diff, err := k.applier.Diff(t.Context(), rules); err != nil || len(diff) > 0 {
				t.Errorf("after the repair: %d differences, first %v, %v; want none", len(diff), diff[:min(len(diff), 1)], err)
			}
			if len(s.Lost) == 0 {
				t.Errorf("state %+v does not say what was lost", s)
			}
			if took > 20*time.Second { // a second is the promise; a test machine may be busy, and the next look of its own would be a minute away
				t.Errorf("the repair took %s", took)
			}
			t.Logf("repaired after %s; lost: %v by %q", took, s.Lost[0], s.LostBy)
		})
	}
}

func TestAStrangerWhoKeepsDeletingIsLeftAloneForAWhile(t *testing.T) {
	ns := netns.New(t)
	cfg, facts := vmDefault(BackendNative)
	_, plan := fixedPlan(t, cfg, facts)
	k := keep(t, ns, KeeperConfig{Plan: plan, MaxRepairs: 2})
	for i := 1; i <= 2; i++ {
		sh(t, "nft", "delete", "table", "inet", "wingman")
		k.until(t, "repaired again", func(s KeeperState) bool { return s.Repairs == i && s.InPlace })
	}
	sh(t, "nft", "delete", "table", "inet", "wingman")
	s := k.until(t, "contested", func(s KeeperState) bool { return s.Contested })
	if s.InPlace || s.RetryAt.IsZero() || !strings.HasPrefix(s.LostBy, "nft (pid ") {
		t.Errorf("state %+v; want not in place, a time of the next try, and nft named", s)
	}
	if out := sh(t, "nft", "list", "tables"); strings.Contains(out, "wingman") {
		t.Errorf("the rules were put back all the same:\n%s", out)
	}
}

func TestRulesOfOthersAreNoReasonToRepair(t *testing.T) {
	ns := netns.New(t)
	cfg, facts := vmDefault(BackendNFT)
	_, plan := fixedPlan(t, cfg, facts)
	k := keep(t, ns, KeeperConfig{Plan: plan})
	sh(t, "iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "udp", "--dport", "9", "-j", "ACCEPT")
	sh(t, "iptables-nft", "-t", "nat", "-N", "DOCKER")
	sh(t, "nft", "delete", "table", "ip", "raw") // harm, after which the first two are old news
	s := k.until(t, "repaired", func(s KeeperState) bool { return s.Repairs > 0 && s.InPlace })
	if s.Repairs != 1 {
		t.Errorf("%d repairs, want the one of raw", s.Repairs)
	}
	if out := sh(t, "iptables-nft-save", "-t", "nat"); !strings.Contains(out, "--dport 9 -j ACCEPT") || !strings.Contains(out, ":DOCKER") {
		t.Errorf("the others' rules are gone:\n%s", out)
	}
}

func TestANewResolverIsFollowedInPlace(t *testing.T) {
	ns := netns.New(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		tmp := resolv + ".new"
		if err := errors.Join(os.WriteFile(tmp, []byte(text), 0o600), os.Rename(tmp, resolv)); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 10.0.0.2\n")
	plan := func(context.Context) (Rules, error) {
		cfg, facts := vmDefault(BackendNFT)
		var err error
		if facts.Resolvers, err = readResolvers(resolv); err != nil {
			return Rules{}, err
		}
		return Plan(cfg, facts)
	}
	k := keep(t, ns, KeeperConfig{Plan: plan, Files: []string{resolv}})
	write("nameserver 10.0.0.3\n")
	k.eventually(t, "the new resolver is captured", func() bool { return strings.Contains(sh(t, "iptables-nft-save", "-t", "nat"), "-d 10.0.0.3/32") })
	if out := sh(t, "iptables-nft-save"); strings.Contains(out, "10.0.0.2") {
		t.Errorf("the old resolver is still captured:\n%s", out)
	}
	if s := k.State(); s.Repairs != 0 {
		t.Errorf("a new plan counted as a repair: %+v", s)
	}
}

// resolv.conf is a link on most machines, and leads elsewhere when another program takes DNS over.
func TestAResolverBehindAnotherLinkIsFollowed(t *testing.T) {
	ns := netns.New(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(name, server string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(at(name)), 0o755), os.WriteFile(at(name), []byte("nameserver "+server+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to string) {
		t.Helper()
		if err := errors.Join(os.Symlink(to, at("new")), os.Rename(at("new"), at("resolv.conf"))); err != nil {
			t.Fatal(err)
		}
	}
	put("networkmanager/conf", "10.0.0.2")
	link("networkmanager/conf")
	k := keep(t, ns, KeeperConfig{Files: []string{at("resolv.conf")}, Plan: func(context.Context) (Rules, error) {
		cfg, facts := vmDefault(BackendNFT)
		var err error
		if facts.Resolvers, err = readResolvers(at("resolv.conf")); err != nil {
			return Rules{}, err
		}
		return Plan(cfg, facts)
	}})
	captured := func(server string) func() bool {
		return func() bool { return strings.Contains(sh(t, "iptables-nft-save", "-t", "nat"), "-d "+server+"/32") }
	}
	put("resolved/conf", "10.0.0.3")
	link("resolved/conf")
	k.eventually(t, "the server behind another link is captured", captured("10.0.0.3"))
	put("resolved/conf", "10.0.0.4")
	k.eventually(t, "the next server behind that link is captured", captured("10.0.0.4"))
}

func TestAPlanThatFailsLeavesTheLastOneInPlaceAndIsTriedAgain(t *testing.T) {
	ns := netns.New(t)
	cfg, facts := vmDefault(BackendNative)
	rules, _ := fixedPlan(t, cfg, facts)
	answers := make(chan error, 3)
	answers <- nil
	k := keep(t, ns, KeeperConfig{Plan: func(context.Context) (Rules, error) {
		return rules, <-answers
	}})
	answers <- errors.New("no such group")
	answers <- nil
	k.Refresh()
	s := k.until(t, "failed", func(s KeeperState) bool { return s.Error != "" })
	if s.InPlace || !strings.Contains(s.Error, "no such group") {
		t.Errorf("state %+v; want the error", s)
	}
	if diff, err := k.applier.Diff(t.Context(), rules); err != nil || len(diff) > 0 {
		t.Errorf("meanwhile: %v, %v; want the last plan in place", diff, err)
	}
	k.until(t, "well again", func(s KeeperState) bool { return s.InPlace && s.Error == "" })
}

// The kernel's word of a change may come after the Keeper has seen the loss: it waits a moment for it, once.
func TestWhoDidItIsWaitedForOnce(t *testing.T) {
	netns.New(t)
	cfg, facts := vmDefault(BackendNative)
	_, plan := fixedPlan(t, cfg, facts)
	k, err := NewKeeper(KeeperConfig{Applier: applier(t), Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	k.stale = true
	k.look(t.Context(), time.Now())
	for i, by := range []string{"nft (pid 7)", ""} {
		sh(t, "nft", "delete", "table", "inet", "wingman")
		if again, s := k.look(t.Context(), time.Now()), k.State(); again != settle || s.Repairs != i {
			t.Errorf("a loss by nobody known: another look after %s, %d repairs; want one after %s, and %d", again, s.Repairs, settle, i)
		}
		k.lostBy = by // as Run does when the word comes
		if again, s := k.look(t.Context(), time.Now()), k.State(); again != 0 || s.Repairs != i+1 || s.LostBy != by || !s.InPlace {
			t.Errorf("the look after that: another after %s, %+v; want a repair of what was lost by %q", again, s, by)
		}
	}
}

// Rules may go on trial while the Keeper looks, and their guardian does not answer while it takes them back: neither is a loss to repair, nor an error.
func TestATrialIsLeftAloneFromItsBeginningToItsEnd(t *testing.T) {
	for _, begins := range []string{"while the rules are read", "while they are planned anew"} {
		t.Run(begins, func(t *testing.T) {
			netns.New(t)
			cfg, facts := vmDefault(BackendNFT)
			rules, _ := fixedPlan(t, cfg, facts)
			began := func() {}
			k, err := NewKeeper(KeeperConfig{Applier: applier(t), Plan: func(context.Context) (Rules, error) { began(); return rules, nil }})
			if err != nil {
				t.Fatal(err)
			}
			k.stale = true
			k.look(t.Context(), time.Now())
			if s := k.State(); !s.InPlace {
				t.Fatalf("the rules are not in place: %+v", s)
			}
			sh(t, "iptables-nft", "-t", "nat", "-F", "ISTIO_OUTPUT")
			begin := sync.OnceFunc(func() { silentGuardian(t) })
			if begins == "while the rules are read" {
				run := k.applier.host.run
				k.applier.host.run = func(ctx context.Context, stdin string, argv ...string) (string, error) {
					begin()
					return run(ctx, stdin, argv...)
				}
			} else {
				began, k.stale, k.planned = begin, true, false
			}
			for _, when := range []string{"a trial that has just begun", "a trial whose guardian does not answer"} {
				if again, s := k.look(t.Context(), time.Now()), k.State(); again != trialPoll || !s.Trial || s.Repairs != 0 || s.Error != "" {
					t.Errorf("%s: another look after %s, %+v; want one after %s, no repair and no error", when, again, s, trialPoll)
				}
			}
		})
	}
}

// silentGuardian has the name of a trial's guardian taken, and no question answered.
func silentGuardian(t *testing.T) {
	l, err := net.Listen("unix", trialAddress)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}

func TestRepairLimitCountsAMinute(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	l := repairLimit{max: 2}
	var got []time.Duration
	for _, at := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 59 * time.Second, 60 * time.Second, 61 * time.Second, 70 * time.Second} {
		got = append(got, l.take(start.Add(at)))
	}
	want := []time.Duration{0, 0, 40 * time.Second, time.Second, 0, 9 * time.Second, 0}
	if !slices.Equal(got, want) {
		t.Errorf("waits %v, want %v", got, want)
	}
}
