package iptables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// vmDefault is a VM with everything on: all inbound, all outbound, DNS.
func vmDefault(backend string) (Config, Facts) {
	return Config{
			Level: LevelAll, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true, DNS: true,
			ProxyUID: proxyID, ProxyGID: proxyID, Backend: backend,
		}, Facts{
			Resolvers: []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("2001:db8::53")},
			SSH:       SSH{Listeners: []Listener{{2222, "sshd -T says so"}}},
		}
}

// mustApply plans and applies in the test's namespace.
func mustApply(t *testing.T, cfg Config, facts Facts) Rules {
	t.Helper()
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	if err := applier(t).Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	return rules
}

// expect runs flows and compares where they end.
func expect(t *testing.T, w *world, want []flow) {
	t.Helper()
	for _, f := range want {
		if got := f.run(t, w); got != f.end {
			t.Errorf("%s ends at %s, want %s", f, got, f.end)
		}
	}
}

func TestTProxyKeepsTheAddressesOfBothEnds(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			cfg.Mode, cfg.DualStack = ModeTProxy, true
			mustApply(t, cfg, facts)
			for _, tt := range []struct{ to, from string }{{vmAddr, hostAddr}, {vmAddr6, hostAddr6}} {
				to := netip.AddrPortFrom(netip.MustParseAddr(tt.to), 8080).String()
				var got string
				w.in(t, w.net, func() error { got = ask("tcp", "", to, patience); return nil })
				f := strings.Fields(got)
				if len(f) != 3 || f[0] != "vm:15006" || f[1] != to || !strings.Contains(f[2], tt.from) {
					t.Errorf("to %s: %q; want Envoy's inbound port to see %s and the client at %s", to, got, to, tt.from)
				}
			}
		})
	}
}

func TestWithoutEnvoyOnlyDNSGoesElsewhere(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			cfg.Level, cfg.DualStack = LevelDNS, true
			rules := mustApply(t, cfg, facts)
			for _, f := range flows {
				want := "direct"
				if f.port == 53 && (f.to == "10.0.0.2" || f.to == "2001:db8::53") && !strings.HasPrefix(f.who, "proxy") {
					want = "15053"
				}
				if got := f.run(t, w); got != want {
					t.Errorf("%s ends at %s, want %s", f, got, want)
				}
			}
			for _, fam := range []Family{IPv4, IPv6} {
				if text := rules.Save(fam); strings.Contains(text, "15001") || strings.Contains(text, "15006") {
					t.Errorf("the %s plan without Envoy names Envoy's ports:\n%s", fam, text)
				}
			}
		})
	}
}

func TestOnlyInboundPortsAreAStepOfAdoption(t *testing.T) {
	w := newWorld(t)
	cfg, facts := vmDefault(BackendNative)
	cfg.InboundExcludePorts, cfg.OutboundPorts = []uint16{9090}, []uint16{443}
	mustApply(t, cfg.OnlyInbound([]uint16{8080}), facts)
	expect(t, w, []flow{
		{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"},
		{who: "outside", proto: "tcp", to: vmAddr, port: 9090, end: "direct"},
		{who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "direct"},
		{who: "app", proto: "udp", to: "10.0.0.2", port: 53, end: "15053"},
	})
}

func TestLevelNoneLeavesTheKernelAlone(t *testing.T) {
	cfg, facts := vmDefault(BackendAuto)
	cfg.Level = LevelNone
	rules, err := Plan(cfg, facts)
	if err != nil || !rules.Empty() {
		t.Fatalf("Plan: %+v, %v; want nothing", rules, err)
	}
	newWorld(t)
	before := everything(t)
	if err := applier(t).Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if after := everything(t); after != before {
		t.Errorf("the kernel changed from\n%s\nto\n%s", before, after)
	}
}

func TestWhenTheProxyIsDownThePolicyDecidesAndDNSGoesOn(t *testing.T) {
	for _, backend := range allBackends {
		for _, mode := range []Mode{ModeRedirect, ModeTProxy} {
			t.Run(fmt.Sprintf("%s/%s", backend, mode), func(t *testing.T) {
				t.Parallel()
				outbound := flow{who: "app", proto: "tcp", to: "203.0.113.9", port: 443}
				inbound := flow{who: "outside", proto: "tcp", to: vmAddr, port: 8080}
				ssh := flow{who: "outside", proto: "tcp", to: vmAddr, port: 2222, end: "direct"}
				w := newWorld(t)
				cfg, facts := vmDefault(backend)
				cfg.Mode = mode
				w.stopProxy()
				closed := map[Mode]string{ModeRedirect: "refused", ModeTProxy: "dropped"}[mode]

				mustApply(t, cfg, facts)
				outbound.end, inbound.end = "refused", closed
				expect(t, w, []flow{outbound, inbound, ssh})

				cfg.OpenOutbound = true
				mustApply(t, cfg, facts)
				outbound.end = "direct"
				dns := flow{who: "app", proto: "tcp", to: "10.0.0.2", port: 53, end: "refused"} // goes to the agent, which is down here too
				expect(t, w, []flow{outbound, inbound, ssh, dns})

				cfg.OpenOutbound, cfg.OpenInbound = false, true
				mustApply(t, cfg, facts)
				outbound.end, inbound.end = "refused", "direct"
				expect(t, w, []flow{outbound, inbound, ssh})
			})
		}
	}
}

func TestContainersBehindANamedBridgeAreCaptured(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			cfg.VirtualInterfaces = []string{"virbr0"}
			rules := mustApply(t, cfg, facts)
			expect(t, w, []flow{
				{who: "container", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
				{who: "container", proto: "udp", to: "8.8.8.8", port: 53, end: "15053"},
				{who: "container", proto: "tcp", to: "8.8.8.8", port: 53, end: "15053"},
				{who: "container", proto: "udp", to: bridgeAddr, port: 53, end: "direct"},
				{who: "container", proto: "tcp", to: "169.254.169.254", port: 80, end: "direct"},
				{who: "container", proto: "tcp", to: bridgeAddr, port: 2222, end: "direct"},
				{who: "container", proto: "udp", to: "203.0.113.9", port: 443, end: "direct"},
				{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"},
				{who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
			})
			st, err := applier(t).Status(t.Context(), rules)
			if err != nil || st.State != Complete {
				t.Errorf("status %+v, %v; want complete", st, err)
			}
			want := []netip.Addr{netip.MustParseAddr(bridgeAddr)}
			if got := DNSListenAddrs(cfg, map[string][]netip.Addr{"virbr0": want, "eth0": {netip.MustParseAddr(vmAddr)}}); len(got) != 1 || got[0] != want[0] {
				t.Errorf("the DNS proxy is told to listen on %v, want %v", got, want)
			}
			if backend != BackendNative && !strings.Contains(rules.Save(IPv4), "\n-A PREROUTING -i virbr0 -j ISTIO_REDIRECT\n-A PREROUTING -i virbr0 -j RETURN\n") {
				t.Errorf("Istio's own rules for the bridge are not there:\n%s", rules.Save(IPv4))
			}
		})
	}
}

func TestCountersSayWhatWasCaptured(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			rules := mustApply(t, cfg, facts)
			expect(t, w, []flow{
				{who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
				{who: "app", proto: "tcp", to: "203.0.113.9", port: 443, end: "15001"},
				{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"},
				{who: "app", proto: "udp", to: "10.0.0.2", port: 53, end: "15053"},
				{who: "outside", proto: "tcp", to: vmAddr, port: 2222, end: "direct"},
			})
			st, err := applier(t).Status(t.Context(), rules)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Counters{Outbound: 2, Inbound: 1, DNS: 1, Guarded: 1}); st.Counters != want {
				t.Errorf("counters %+v, want %+v", st.Counters, want)
			}
		})
	}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
