package iptables

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	goiptables "github.com/coreos/go-iptables/iptables"
	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

// TestOtherToolsFindIstiosChains looks at our rules through the library that docker's, flannel's and other people's tools
// use, and changes rules of its own beside them.
func TestOtherToolsFindIstiosChains(t *testing.T) {
	netns.New(t)
	netns.Tool(t, "iptables")
	cfg, facts := vmDefault(BackendNFT)
	mustApply(t, cfg, facts)
	stranger, err := goiptables.New(goiptables.Path(netns.Tool(t, "iptables-nft")))
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range []string{chainInbound, chainInRedirect, chainOutput, chainOutputDNS, chainRedirect} {
		if ok, err := stranger.ChainExists("nat", chain); err != nil || !ok {
			t.Errorf("chain %s: %t, %v; want it there", chain, ok, err)
		}
	}
	if ok, err := stranger.Exists("nat", "OUTPUT", "-j", chainOutput); err != nil || !ok {
		t.Errorf("Istio's jump: %t, %v; want it there", ok, err)
	}
	if err := stranger.InsertUnique("nat", "PREROUTING", 1, "-p", "tcp", "--dport", "8081", "-j", "ACCEPT"); err != nil {
		t.Fatal(err)
	}
	cfg.OutboundExcludePorts = []PortRange{{25, 25}}
	mustApply(t, cfg, facts)
	if err := applier(t).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if ok, err := stranger.Exists("nat", "PREROUTING", "-p", "tcp", "--dport", "8081", "-j", "ACCEPT"); err != nil || !ok {
		t.Errorf("the stranger's rule after apply and remove: %t, %v; want it there", ok, err)
	}
	if chains, err := stranger.ListChains("nat"); err != nil || len(chains) != 4 {
		t.Errorf("chains after remove: %v, %v; want the built-in four", chains, err)
	}
}

// firewalld is what firewalld leaves on a machine with its defaults, shortened: a table of its own with verdicts in every hook.
const firewalld = `table inet firewalld {
	chain mangle_PREROUTING {
		type filter hook prerouting priority mangle + 10; policy accept;
		jump mangle_PREROUTING_ZONES
	}
	chain mangle_PREROUTING_ZONES {
		goto mangle_PRE_public
	}
	chain mangle_PRE_public {
	}
	chain nat_PREROUTING {
		type nat hook prerouting priority dstnat + 10; policy accept;
		goto nat_PRE_public
	}
	chain nat_PRE_public {
	}
	chain nat_OUTPUT {
		type nat hook output priority -90; policy accept;
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		goto filter_IN_public
	}
	chain filter_IN_public {
		tcp dport 22 accept
		ip6 daddr fe80::/64 udp dport 546 accept
		reject with icmpx admin-prohibited
	}
	chain filter_OUTPUT {
		type filter hook output priority filter + 10; policy accept;
		ct state { established, related } accept
		oifname "lo" accept
	}
}
`

// oneHook are tables with the names of iptables' that use one hook of theirs each.
const oneHook = `table ip raw {
	chain PREROUTING {
		type filter hook prerouting priority raw; policy accept;
	}
}
table ip mangle {
	chain PREROUTING {
		type filter hook prerouting priority mangle; policy accept;
	}
}
table ip6 nat {
	chain OUTPUT {
		type nat hook output priority -100; policy accept;
	}
}
`

// sharedRoutes are policy routes and addresses of others in the places that TPROXY and IPv6 need, one set each.
var sharedRoutes = [][]string{
	{},
	{"rule add fwmark 77 lookup 133", "route add local default dev lo table 133", "-6 rule add fwmark 77 lookup 133", "-6 route add local default dev lo table 133"},
	{"route add 10.77.0.0/16 dev lo table 133", "rule add fwmark 77 lookup 133"},
	{"rule add from 10.0.0.0/8 fwmark 1337 lookup 133", "route add local default dev lo table 133"},
	{"addr add ::6/128 dev lo nodad"},
}

func loadRoutes(t *testing.T, commands []string) {
	t.Helper()
	for _, c := range commands { // not as one batch, which is of one family
		sh(t, append([]string{"ip"}, strings.Fields(c)...)...)
	}
}

func loadNFT(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, "nft", "-f", file)
}

// ruleset is all of nf_tables without what packets counted.
func ruleset(t *testing.T) string {
	t.Helper()
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(sh(t, "nft", "list", "ruleset"), "packets N bytes N")
}

func TestRemoveIsTheIdentityBesideStrangersOfOneHookOrSharedRoutes(t *testing.T) {
	for _, backend := range allBackends {
		for i, routes := range sharedRoutes {
			t.Run(fmt.Sprintf("%s/%d", backend, i), func(t *testing.T) {
				t.Parallel()
				netns.New(t)
				loadRoutes(t, routes)
				loadNFT(t, firewalld)
				loadNFT(t, oneHook)
				before := save(t, backend) + ruleset(t)
				if err := applier(t).Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, save(t, backend)+ruleset(t)); diff != "" {
					t.Fatalf("remove without apply left (-before +after):\n%s", diff)
				}
				for _, mode := range []string{"redirect", "tproxy"} { // the second needs chains that the first did not
					rules, err := Plan(childConfig(mode, backend))
					if err != nil {
						t.Fatal(err)
					}
					for range 2 {
						if err := applier(t).Apply(t.Context(), rules); err != nil {
							t.Fatal(err)
						}
						if st, err := applier(t).Status(t.Context(), rules); err != nil || st.State != Complete {
							t.Fatalf("%s: %s, %v: %v", mode, st.State, err, st.Diff)
						}
					}
				}
				if err := applier(t).Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, save(t, backend)+ruleset(t)); diff != "" {
					t.Errorf("apply and remove left (-before +after):\n%s", diff)
				}
			})
		}
	}
}
