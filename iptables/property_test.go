package iptables

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// randomConfig makes up a configuration and facts that Plan takes.
func randomConfig(r *rand.Rand, t *testing.T) (Config, Facts) {
	env, resolv, machine := randomEnv(r)
	cfg := configFromEnv(t, env)
	moreFromEnv(t, env, &cfg)
	cfg.Level = []Level{LevelAll, LevelAll, LevelAll, LevelDNS}[r.IntN(4)]
	if r.IntN(8) == 0 {
		cfg.Mode = ModeNone
	}
	cfg.OpenInbound, cfg.OpenOutbound, cfg.CaptureMetadata = r.IntN(4) == 0, r.IntN(4) == 0, r.IntN(4) == 0
	facts := Facts{Resolvers: nameservers(resolv), Addrs: addressesOf(machine), Groups: map[string]uint32{"daemon": 1}}
	for range r.IntN(3) {
		facts.SSH.Listeners = append(facts.SSH.Listeners, Listener{uint16(1 + r.IntN(65535)), "a test says so"})
	}
	for _, peer := range []string{"192.0.2.7", "2001:db8:7::7"}[:r.IntN(3)] {
		facts.SSH.Sessions = append(facts.SSH.Sessions, Session{uint16(1 + r.IntN(65535)), netip.MustParseAddr(peer)})
	}
	for range r.IntN(20) { // more than one multiport match takes
		facts.AgentPorts = append(facts.AgentPorts, uint16(1+r.IntN(65535)))
	}
	return cfg, facts
}

// TestRandomConfigurations walks from one random configuration to the next on a kernel that has rules of others, by random
// backends: each step is complete, repeatable and says so, and removal leaves what was there before.
func TestRandomConfigurations(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("WINGMAN_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("WINGMAN_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	netns.Tool(t, "iptables-nft")
	netns.Tool(t, "iptables-legacy")
	for walk := range 4 {
		t.Run(strconv.Itoa(walk), func(t *testing.T) {
			netns.New(t)
			load(t, "iptables-legacy-restore", strangers)
			if r.IntN(2) == 0 {
				load(t, "iptables-nft-restore", strangers)
			} else {
				loadNFT(t, oneHook)
			}
			loadNFT(t, firewalld)
			loadRoutes(t, sharedRoutes[r.IntN(len(sharedRoutes))])
			before := save(t, BackendNFT) + save(t, BackendLegacy) + ruleset(t)
			a := applier(t)
			for step := range 6 {
				cfg, facts := randomConfig(r, t)
				cfg.Backend = append([]string{BackendAuto}, allBackends...)[r.IntN(4)]
				rules, err := Plan(cfg, facts)
				if err != nil {
					t.Fatalf("step %d: %v\n%+v\n%+v", step, err, cfg, facts)
				}
				if again, _ := Plan(cfg, facts); !reflect.DeepEqual(rules, again) {
					t.Fatalf("step %d: the same input gave two plans:\n%+v\n%+v", step, rules, again)
				}
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatalf("step %d: %v\n%+v\n%+v", step, err, cfg, facts)
				}
				if diff, err := a.Diff(t.Context(), rules); err != nil || len(diff) > 0 {
					t.Fatalf("step %d, backend %s: %d differences after apply, first %v, %v\n%+v\n%+v", step, cfg.Backend, len(diff), diff[:min(1, len(diff))], err, cfg, facts)
				}
				once := everything(t)
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(once, everything(t)); diff != "" {
					t.Fatalf("step %d: a second apply changed (-first +second):\n%s\n%+v\n%+v", step, diff, cfg, facts)
				}
			}
			if err := a.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, save(t, BackendNFT)+save(t, BackendLegacy)+ruleset(t)); diff != "" {
				t.Errorf("remove left (-before +after):\n%s", diff)
			}
		})
	}
}
