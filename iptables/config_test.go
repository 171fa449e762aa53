package iptables

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlanRefusesWhatWouldBeMisapplied(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   []string // sentences in the error
	}{
		{"an unknown group", func(c *Config) { c.OwnerGroupsAll, c.OwnerGroups = false, []string{"daemon", "nobodyatall"} }, []string{`owner group "nobodyatall": this machine has no group of that name; expected a gid or a name of /etc/group`}},
		{"an unknown excluded group", func(c *Config) { c.OwnerGroupsExclude = []string{"4294967296"} }, []string{`owner group "4294967296"`}},
		{"a proxy that is root", func(c *Config) { c.ProxyUID = 0 }, []string{"proxy uid 0, gid 995: the proxy must not run as root"}},
		{"port 0 in a list", func(c *Config) { c.InboundPorts = []uint16{80, 0} }, []string{"inbound ports: port 0 does not exist; expected 1 to 65535"}},
		{"a range that runs backwards", func(c *Config) { c.OutboundExcludePorts = []PortRange{{9, 8}} }, []string{"outbound exclude ports 9:8: the first port is above the last"}},
		{"an empty CIDR", func(c *Config) { c.OutboundCIDRs = make([]netip.Prefix, 1) }, []string{"outbound CIDRs: not a CIDR"}},
		{"a loopback that is none", func(c *Config) { c.LoopbackCIDR = mustPrefix("10.0.0.0/8") }, []string{"loopback CIDR 10.0.0.0/8: expected a range inside 127.0.0.0/8"}},
		{"a loopback that is everything", func(c *Config) { c.LoopbackCIDR = mustPrefix("127.0.0.1/0") }, []string{"loopback CIDR 127.0.0.1/0"}},
		{"an IPv6 loopback", func(c *Config) { c.LoopbackCIDR = mustPrefix("::1/128") }, []string{"loopback CIDR ::1/128"}},
		{"a mark that Istio uses itself", func(c *Config) { c.TProxyMark = 1338 }, []string{"TPROXY mark 1338"}},
		{"the kernel's main route table", func(c *Config) { c.TProxyTable = 254 }, []string{"TPROXY route table 254"}},
		{"an interface with a space", func(c *Config) { c.ExcludeInterfaces = []string{"eth 0"} }, []string{`exclude interfaces: interface "eth 0": a character`}},
		{"an interface that is too long", func(c *Config) { c.VirtualInterfaces = []string{"br-0123456789abc"} }, []string{`virtual interfaces: interface "br-0123456789abc": names have at most 15 characters`}},
		{"an interface with a wildcard inside", func(c *Config) { c.ExcludeInterfaces = []string{"a+b", "+"} }, []string{`interface "a+b": + stands`, `interface "+": + stands`}},
		{"too many groups", func(c *Config) { c.OwnerGroups = slices.Repeat([]string{"1"}, 65) }, []string{"owner groups: 65 of them; expected at most 64"}},
		{"a backend that nobody knows", func(c *Config) { c.Backend = "ipset" }, []string{`backend "ipset": expected auto, nft, legacy or native`}},
		{"several at once", func(c *Config) { c.ProxyGID, c.OutboundPorts, c.Level = 0, []uint16{0}, 9 }, []string{"level 9: expected none, dns or all", "proxy uid 995, gid 0", "outbound ports: port 0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, facts := vmDefault(BackendAuto)
			facts.Groups = map[string]uint32{"daemon": 1}
			tt.change(&cfg)
			rules, err := Plan(cfg, facts)
			if err == nil {
				t.Fatalf("Plan gave %d rules, want an error", len(rules.Families[IPv4].Tables))
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestIPv6IsCapturedWhereItIsWantedOrAllThereIs(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	tests := []struct {
		name  string
		dual  bool
		facts Facts
		want  bool
	}{
		{"a machine with IPv4", false, Facts{Addrs: addrs("127.0.0.1", "10.0.0.7", "::1", "2001:db8::7")}, false},
		{"dual stack", true, Facts{Addrs: addrs("127.0.0.1", "10.0.0.7", "2001:db8::7")}, true},
		{"dual stack before there is any address", true, Facts{}, true},
		{"a machine with IPv6 only", false, Facts{Addrs: addrs("127.0.0.1", "::1", "fe80::1", "2001:db8::7")}, true},
		{"link-local addresses of either family do not count", false, Facts{Addrs: addrs("169.254.1.1", "fe80::1")}, false},
		{"a kernel without IPv6", true, Facts{NoIPv6: true, Addrs: addrs("10.0.0.7")}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, _ := vmDefault(BackendAuto)
			cfg.DualStack = tt.dual
			rules, err := Plan(cfg, tt.facts)
			if err != nil || rules.Families[IPv6].Wanted != tt.want {
				t.Errorf("IPv6 captured: %t, %v; want %t", rules.Families[IPv6].Wanted, err, tt.want)
			}
		})
	}
}

func TestEveryGuardHasAReason(t *testing.T) {
	cfg, facts := vmDefault(BackendAuto)
	cfg.DualStack, cfg.DropInvalid, cfg.OpenInbound, cfg.OpenOutbound = true, true, true, true
	cfg.VirtualInterfaces = []string{"virbr0"}
	facts.SSH.Sessions = []Session{{Port: 2200, Peer: netip.MustParseAddr("192.0.2.7")}, {Port: 2222, Peer: netip.MustParseAddr("192.0.2.8")}}
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range rules.Families {
		for _, table := range set.Tables {
			for _, c := range table.Chains {
				for _, r := range c.Rules {
					if guard := strings.HasPrefix(c.Name, "WINGMAN_"); guard != (r.Reason != "") {
						t.Errorf("%s %s: rule %q has the reason %q", table.Name, c.Name, r.spec(IPv4), r.Reason)
					}
				}
			}
		}
	}
	var got []string
	for _, g := range rules.Guards {
		if strings.Contains(g.Reason, "SSH") {
			got = append(got, g.What+": "+g.Reason)
		}
	}
	want := []string{
		"TCP port 2222, both directions: SSH: sshd -T says so",
		"TCP port 2200 with 192.0.2.7, both directions: SSH: a session is established now", // 2222 is guarded as a whole already
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("guards of SSH (-want +got):\n%s", diff)
	}
	if !slices.ContainsFunc(rules.Guards, func(g Guard) bool { return strings.HasPrefix(g.What, "what user ") }) {
		t.Errorf("guards %v; want the agent's and Envoy's own traffic among them", rules.Guards)
	}
	if want := []string{"inbound", "outbound"}; !slices.Equal(rules.Open, want) {
		t.Errorf("open directions %v, want %v", rules.Open, want)
	}
}

func TestThePlanAsJSONHasNoNulls(t *testing.T) {
	for _, level := range []Level{LevelNone, LevelDNS, LevelAll} {
		cfg, facts := vmDefault(BackendAuto)
		cfg.Level = level
		rules, err := Plan(cfg, facts)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(rules)
		if err != nil || strings.Contains(string(b), "null") {
			t.Errorf("level %s: %s, %v; want no null", level, b, err)
		}
		var back struct {
			Level    string
			Families []struct {
				Family   string
				Captured bool
				Tables   []struct {
					Table  string
					Chains []struct {
						Chain string
						Rules []struct{ Rule, Reason string }
					}
				}
			}
		}
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if back.Level != level.String() || len(back.Families) != 2 || back.Families[0].Captured != (level != LevelNone) {
			t.Errorf("level %s came back as %+v", level, back)
		}
		if level == LevelAll {
			i := slices.Index(tableOrder, "raw")
			first := back.Families[0].Tables[i].Chains[0]
			if first.Chain != "PREROUTING" || len(first.Rules) == 0 || first.Rules[0].Rule != "-A PREROUTING -j ISTIO_INBOUND" {
				t.Errorf("first chain %+v, want PREROUTING of raw with Istio's jump", first)
			}
		}
	}
}

func TestACommandsWordsLeadToTheNextStep(t *testing.T) {
	tests := []struct{ name, stderr, want string }{
		{"no privileges", "Fatal: can't open lock file /run/xtables.lock: Permission denied", "tmpfiles.d"},
		{"not root", "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)", "NET_ADMIN"},
		{"no table", "iptables-legacy-restore v1.8.9: can't initialize iptables table `raw': Table does not exist (do you need to insmod?)", "load its modules"},
		{"no match", "Warning: Extension owner revision 0 not supported, missing kernel module?\niptables-nft-restore: line 9: RULE_APPEND failed (No such file or directory)", "xt_owner"},
		{"a held lock", "Another app is currently holding the xtables lock; still 9s 0us time ahead to have a chance to grab the lock...", "holds"},
		{"anything else", "line 3 failed", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := hint("iptables-restore", tt.stderr)
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("hint for %q: %q, want it to say %q", tt.stderr, got, tt.want)
			}
		})
	}
}

func TestCanonicalForgivesOtherVersionsOfIptables(t *testing.T) {
	tests := []struct{ name, a, b string }{
		{"protocols by number", "-p 6 -m tcp --dport 53 -j REDIRECT --to-ports 15053", "-p tcp -m tcp --dport 53 -j REDIRECT --to-ports 15053"},
		{"a match that says nothing", "-p tcp -m tcp -j RETURN", "-p tcp -j RETURN"},
		{"states in another order", "-m conntrack --ctstate ESTABLISHED,RELATED -j ISTIO_DIVERT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if a, b := canonical(tt.a), canonical(tt.b); a != b {
				t.Errorf("%q and %q are different: %q, %q", tt.a, tt.b, a, b)
			}
		})
	}
	if canonical("-p tcp -m tcp --dport 53 -j RETURN") == canonical("-p tcp -m tcp --dport 54 -j RETURN") {
		t.Error("two ports are the same")
	}
}

func TestConfigAndFactsSurviveJSON(t *testing.T) {
	type both struct {
		Config Config
		Facts  Facts
	}
	in := both{
		Config{Level: LevelAll, Mode: ModeTProxy, InboundAll: true, OutboundExcludePorts: []PortRange{{22, 23}}, OutboundCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, LoopbackCIDR: netip.MustParsePrefix("127.0.0.0/8"), ProxyUID: 995},
		Facts{Resolvers: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Groups: map[string]uint32{"a": 7}, SSH: SSH{Listeners: []Listener{{2222, "sshd -T says so"}}},
			InterfaceAddrs: map[string][]netip.Addr{"br0": {netip.MustParseAddr("fd00::1")}}},
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out both
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, out, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("%s became (-want +got):\n%s", b, diff)
	}
	var l Level
	if err := json.Unmarshal([]byte(`"everything"`), &l); err == nil {
		t.Error("an unknown level is taken")
	}
}
