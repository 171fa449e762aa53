package iptables

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// strangers are rules of other tools, as they stand on real machines: docker's, ufw's and a hand-made one each in tables
// that we use, one of them empty.
const strangers = `*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A INPUT -m comment --comment "two  spaces" -j ufw-user-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
`

// load feeds rules of others to iptables-restore.
func load(t *testing.T, command, rules string) {
	t.Helper()
	if _, err := runCommand(context.Background(), rules, netns.Tool(t, command)); err != nil {
		t.Fatal(err)
	}
}

// everything is the whole state of netfilter and policy routing in the test's namespace.
func everything(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{
		{"nft", "-a", "list", "ruleset"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		{"ip", "addr", "show", "lo"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"},
	} {
		for line := range strings.Lines(settled(sh(t, argv...))) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func TestApplyingTwiceChangesNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, f fixture) {
		netns.New(t)
		a := applier(t)
		rules, err := Plan(f.cfg, f.facts)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Apply(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		before := everything(t)
		if err := a.Apply(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, everything(t)); diff != "" {
			t.Errorf("the second apply changed the kernel (-first +second):\n%s", diff)
		}
		st, err := a.Status(t.Context(), rules)
		if err != nil || st.State != Complete {
			t.Errorf("status after apply: %+v, %v; want complete", st, err)
		}
	})
}

// eachBackend runs a test for every fixture over every backend.
func eachBackend(t *testing.T, test func(t *testing.T, f fixture)) {
	for _, backend := range allBackends {
		for _, f := range fixtures(t) {
			f.cfg.Backend = backend
			t.Run(backend+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				test(t, f)
			})
		}
	}
}

func TestRemoveLeavesTheRulesOfOthersAsTheyWere(t *testing.T) {
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		for _, f := range fixtures(t) {
			t.Run(flavour+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				netns.New(t)
				load(t, "iptables-"+flavour+"-restore", strangers)
				before := save(t, flavour)
				a := applier(t)
				f.cfg.Backend = BackendAuto
				rules, err := Plan(f.cfg, f.facts)
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				st, err := a.Status(t.Context(), rules)
				if err != nil || st.State != Complete || len(st.Backends) != 1 || st.Backends[0] != flavour {
					t.Fatalf("status after apply: %+v, %v; want complete by %s, which holds the others' rules", st, err, flavour)
				}
				if err := a.Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, save(t, flavour)); diff != "" {
					t.Errorf("apply and remove left (-before +after):\n%s", diff)
				}
				if err := a.Remove(t.Context()); err != nil {
					t.Errorf("remove of nothing: %v", err)
				}
			})
		}
	}
}

// save is everything that matters of the kernel: with legacy, tables without rules stay behind and are left out.
func save(t *testing.T, flavour string) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{"rule", "-6 rule", "route show table all", "-6 route show table all", "addr show lo"} {
		b.WriteString(settled(sh(t, append([]string{"ip"}, strings.Fields(c)...)...)))
	}
	if flavour == BackendLegacy {
		return b.String() + byTable(withoutOwn(sh(t, "iptables-legacy-save"))) + byTable(withoutOwn(sh(t, "ip6tables-legacy-save")))
	}
	for _, argv := range [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}, {"nft", "list", "tables"}} {
		for line := range strings.Lines(sh(t, argv...)) {
			if !strings.HasPrefix(line, "#") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

// settled leaves out what the kernel adds to a new IPv6 address some time after it was made: its route, and the end of its
// trial.
func settled(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "local ::6 dev lo table local") {
			b.WriteString(strings.ReplaceAll(line, " tentative", ""))
		}
	}
	return b.String()
}

func TestOneConfigurationAfterAnother(t *testing.T) {
	tests := []struct {
		name          string
		first, second func(*Config)
	}{
		{"another mark keeps the route of the same table", func(c *Config) { c.Mode = ModeTProxy }, func(c *Config) { c.Mode, c.TProxyMark = ModeTProxy, 1400 }},
		{"another route table", func(c *Config) { c.Mode = ModeTProxy }, func(c *Config) { c.Mode, c.TProxyTable = ModeTProxy, 140 }},
		{"a table that is needed no more", func(c *Config) { c.Mode, c.DropInvalid, c.DualStack = ModeTProxy, true, true }, func(c *Config) {}},
		{"rules between those of others that name none of our chains", func(c *Config) { c.ExcludeInterfaces, c.VirtualInterfaces = []string{"tun0"}, []string{"virbr0"} }, func(c *Config) { c.ExcludeInterfaces = []string{"wg0"} }},
		{"only DNS after all", func(c *Config) {}, func(c *Config) { c.Level = LevelDNS }},
		{"all after only DNS", func(c *Config) { c.Level = LevelDNS }, func(c *Config) {}},
		{"nothing after all", func(c *Config) { c.Mode, c.DualStack = ModeTProxy, true }, func(c *Config) { c.Level = LevelNone }},
	}
	for _, backend := range allBackends {
		for _, tt := range tests {
			t.Run(backend+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				netns.New(t)
				if backend != BackendNative {
					load(t, "iptables-"+backend+"-restore", strangers)
				}
				empty := save(t, backend)
				cfg, facts := vmDefault(backend)
				tt.second(&cfg)
				mustApply(t, cfg, facts)
				want := save(t, backend)
				if err := applier(t).Remove(t.Context()); err != nil {
					t.Fatal(err)
				}

				cfg, facts = vmDefault(backend)
				tt.first(&cfg)
				mustApply(t, cfg, facts)
				cfg, facts = vmDefault(backend)
				tt.second(&cfg)
				mustApply(t, cfg, facts)
				// The kernel numbers a policy rule before those that are there.
				got := strings.ReplaceAll(save(t, backend), "32764:", "32765:")
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("after the other configuration the kernel is not as without it (-without +with):\n%s", diff)
				}
				if err := applier(t).Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(empty, save(t, backend)); diff != "" {
					t.Errorf("remove left (-before +after):\n%s", diff)
				}
			})
		}
	}
}
