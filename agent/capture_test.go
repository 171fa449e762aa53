package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"wingman/bootstrap"
	"wingman/iptables"
)

func TestDecideCapture(t *testing.T) {
	joined := captureFacts{joined: true, exempt: true, user: "istio-proxy"}
	with := func(change func(*captureFacts)) captureFacts { f := joined; change(&f); return f }
	dns := func(level string) bootstrap.Capture { return bootstrap.Capture{Level: level, DNS: true} }
	none, dnsOnly, all := iptables.LevelNone, iptables.LevelDNS, iptables.LevelAll
	for _, tc := range []struct {
		name    string
		capture bootstrap.Capture
		facts   captureFacts
		wanted  iptables.Level
		level   iptables.Level
		why     string // part of it; "" means none
	}{
		{"before the first join nothing is captured", dns("auto"), with(func(f *captureFacts) { f.joined = false }), dnsOnly, none, ""},
		{"before the first join not even what is asked for by name", dns("all"), with(func(f *captureFacts) { f.joined, f.envoy = false, true }), all, none, ""},
		{"joined without Envoy means DNS", dns("auto"), joined, dnsOnly, dnsOnly, ""},
		{"joined with Envoy means all", dns("auto"), with(func(f *captureFacts) { f.envoy = true }), all, all, ""},
		{"all without Envoy would be a black hole: DNS, and said", dns("all"), joined, all, dnsOnly, "no Envoy"},
		{"all without Envoy and without DNS capture is nothing, and said", bootstrap.Capture{Level: "all"}, joined, all, none, "no Envoy"},
		{"no DNS capture and no Envoy is nothing", bootstrap.Capture{Level: "auto"}, joined, none, none, ""},
		{"none is none", dns("none"), with(func(f *captureFacts) { f.envoy = true }), none, none, ""},
		{"dns with Envoy stays DNS", dns("dns"), with(func(f *captureFacts) { f.envoy = true }), dnsOnly, dnsOnly, ""},
		{"leaving takes everything out", dns("all"), with(func(f *captureFacts) { f.envoy, f.leaving = true, true }), all, none, ""},
		{"a process that the rules would capture puts none in", dns("auto"), with(func(f *captureFacts) { f.exempt = false }), dnsOnly, none, "istio-proxy"},
	} {
		got := decideCapture(tc.capture, tc.facts)
		if got.wanted != tc.wanted || got.level != tc.level || (tc.why == "") != (got.why == "") || !strings.Contains(got.why, tc.why) || !got.hands {
			t.Errorf("%s: decideCapture = %+v, want wanted %v, level %v, why %q", tc.name, got, tc.wanted, tc.level, tc.why)
		}
	}
	byResolved := func(level string) bootstrap.Capture { return bootstrap.Capture{Level: level, DNSByResolved: true} }
	for _, tc := range []struct {
		name    string
		capture bootstrap.Capture
		facts   captureFacts
		level   iptables.Level
		names   bool
	}{
		{"systemd-resolved takes no rules", byResolved("auto"), joined, none, true},
		{"beside Envoy it takes none for DNS", byResolved("auto"), with(func(f *captureFacts) { f.envoy = true }), all, true},
		{"all without Envoy still has names", byResolved("all"), joined, none, true}, // and says that traffic is not captured
		{"DNS alone is names alone", byResolved("dns"), joined, none, true},
		{"before the first join there are no names", byResolved("auto"), with(func(f *captureFacts) { f.joined = false }), none, false},
		{"what leaves takes its names back", byResolved("auto"), with(func(f *captureFacts) { f.leaving = true }), none, false},
		{"none is none", byResolved("none"), joined, none, false},
		{"rules that the operator keeps are rules, not names", bootstrap.Capture{Level: "auto", DNSByResolved: true, CustomTables: true}, joined, none, true},
		{"a process that rules would capture is none's that there are", byResolved("auto"), with(func(f *captureFacts) { f.exempt = false }), none, true},
		{"redirected names are not registered", dns("auto"), joined, dnsOnly, false},
	} {
		if got := decideCapture(tc.capture, tc.facts); got.level != tc.level || got.names != tc.names || strings.Contains(got.why, "only DNS") != (tc.capture.Level == "all" && !tc.facts.envoy) || strings.Contains(got.why, "off") {
			t.Errorf("%s: decideCapture = %+v, want level %v, names %t", tc.name, got, tc.level, tc.names)
		}
	}
	open := dns("all")
	open.OpenInbound, open.OpenOutbound = true, true
	outbound := dns("auto")
	outbound.OpenOutbound = true
	up, down := with(func(f *captureFacts) { f.envoy = true }), with(func(f *captureFacts) { f.envoy, f.down = true, true })
	for _, tc := range []struct {
		name     string
		capture  bootstrap.Capture
		facts    captureFacts
		in, out  bool
		degraded string
	}{
		{"closed is the default", dns("all"), down, false, false, ""},
		{"open is not open while Envoy serves", open, up, false, false, ""},
		{"open is open while it does not, and said", open, down, true, true, "all traffic goes past it"},
		{"each direction by itself", outbound, down, false, true, "outbound traffic goes past it"},
	} {
		d := decideCapture(tc.capture, tc.facts)
		if d.level != all || d.openInbound != tc.in || d.openOutbound != tc.out || !strings.Contains(d.why, tc.degraded) || (tc.degraded == "") != (d.why == "") {
			t.Errorf("%s: %+v, want level all, open inbound %t, outbound %t, why %q", tc.name, d, tc.in, tc.out, tc.degraded)
		}
	}
	custom := decideCapture(bootstrap.Capture{Level: "all", DNS: true, CustomTables: true}, joined)
	if custom.hands {
		t.Errorf("with ISTIO_CUSTOM_IP_TABLES decideCapture = %+v, want hands off", custom)
	}
}

func TestPortsThatTheSettingsMovedAreGuarded(t *testing.T) {
	cfg := &bootstrap.Config{}
	cfg.Status.Port, cfg.Status.ReadinessPort, cfg.Status.PrometheusPort = 15020, 16021, 15090
	cfg.Envoy.AdminPort = 15000
	cfg.DNS.Listen = netip.MustParseAddrPort("127.0.0.1:16053")
	if got, want := movedPorts(cfg), []uint16{16021, 16053}; !slices.Equal(got, want) {
		t.Errorf("moved %v, want %v", got, want)
	}
}

func TestSomePortsAreTheirOwnLevel(t *testing.T) {
	for _, tt := range []struct {
		setting string
		level   iptables.Level
		want    string
	}{
		{"ports", iptables.LevelAll, "ports"},
		{"ports", iptables.LevelDNS, "dns"},
		{"all", iptables.LevelAll, "all"},
		{"auto", iptables.LevelNone, "none"},
	} {
		w := captureWish{cfg: &bootstrap.Config{Capture: bootstrap.Capture{Level: tt.setting}}}
		if got := w.name(tt.level); got != tt.want || !slices.Contains(captureNames, got) {
			t.Errorf("capture %s at level %s is called %q, want %q", tt.setting, tt.level, got, tt.want)
		}
	}
}

// Who waits for the mesh must not start before its traffic is captured: Envoy is live a moment before the rules are in.
func TestNotReadyBeforeTheRulesAreIn(t *testing.T) {
	all := captureWish{decision: decision{hands: true, wanted: iptables.LevelAll, level: iptables.LevelAll}}
	dns := captureWish{decision: decision{hands: true, wanted: iptables.LevelAll, level: iptables.LevelDNS}}
	for _, c := range []struct {
		what  string
		wish  captureWish
		state iptables.KeeperState
		ready bool
	}{
		{"nothing is wanted", captureWish{decision: decision{hands: true}}, iptables.KeeperState{}, true},
		{"the operator keeps the rules", captureWish{decision: decision{level: iptables.LevelAll}}, iptables.KeeperState{}, true},
		{"none are in", all, iptables.KeeperState{}, false},
		{"those of DNS alone are in", all, iptables.KeeperState{Level: iptables.LevelDNS, InPlace: true}, false},
		{"they are in", all, iptables.KeeperState{Level: iptables.LevelAll, InPlace: true}, true},
		{"they were taken out", all, iptables.KeeperState{Level: iptables.LevelAll}, false},
		{"others are on trial", all, iptables.KeeperState{Level: iptables.LevelAll, Trial: true}, true},
		{"without Envoy DNS is enough", dns, iptables.KeeperState{Level: iptables.LevelDNS, InPlace: true}, true},
	} {
		live := presence{announced: true, proven: true, live: true}
		why := notReadyBecause(nil, &joinState{}, live, uncaptured(c.wish, c.state), false, false)
		if got := len(why) == 1; got != c.ready { // there is no certificate here
			t.Errorf("%s: not ready because %q, want ready %v", c.what, why, c.ready)
		}
	}
}
