package agent

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wingman/bootstrap"
	"wingman/iptables"
	"wingman/test/netns"
)

// lastRun leaves what a daemon leaves that captured everything, and returns its root and settings.
func lastRun(t *testing.T, j joinState) (root string, cfg *bootstrap.Config, from bootRules) {
	t.Helper()
	root = t.TempDir()
	cfg = &bootstrap.Config{Root: root, Paths: bootstrap.DefaultPaths(root)}
	if err := os.MkdirAll(cfg.Paths.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJoined(cfg.Paths.StateDir, j); err != nil {
		t.Fatal(err)
	}
	from.Config = iptables.Config{Level: iptables.LevelAll, InboundAll: true, OutboundAll: true, OwnerGroupsAll: true, DNS: true, ProxyUID: 995, ProxyGID: 995}
	from.Facts = iptables.Facts{
		Resolvers: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.2")},
		SSH: iptables.SSH{Listeners: []iptables.Listener{{Port: 2222, How: "sshd -T says so"}}, Sessions: []iptables.Session{{Port: 2222, Peer: netip.MustParseAddr("192.0.2.7")}}},
	}
	return root, cfg, from
}

// kernelRules are those of this thread's network namespace.
func kernelRules(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(netns.Tool(t, "iptables-save")).CombinedOutput()
	if err != nil {
		t.Fatalf("iptables-save: %v: %s", err, out)
	}
	return string(out)
}

func TestTrafficRulesAreBackBeforeTheNetwork(t *testing.T) {
	netns.New(t)
	root, cfg, from := lastRun(t, joinState{Served: true})
	if err := saveBootRules(cfg, from); err != nil {
		t.Fatal(err)
	}
	restored, err := RestoreRules(context.Background(), root)
	if err != nil || !restored {
		t.Fatalf("RestoreRules = %t, %v", restored, err)
	}
	rules := kernelRules(t)
	for _, want := range []string{"--to-ports 15001", "--to-ports 15006", "--dport 2222"} {
		if !strings.Contains(rules, want) {
			t.Errorf("no rule has %q:\n%s", want, rules)
		}
	}
	if strings.Contains(rules, "--to-ports 15053") {
		t.Errorf("queries go to a DNS proxy that is not there yet:\n%s", rules)
	}
}

func TestNoRulesBeforeTheNetworkWhereNothingWasCaptured(t *testing.T) {
	for _, tt := range []struct {
		name string
		join joinState
		save func(t *testing.T, cfg *bootstrap.Config, from bootRules)
	}{
		{"the machine has never had an Envoy that served", joinState{}, func(t *testing.T, cfg *bootstrap.Config, from bootRules) { mustSave(t, cfg, from) }},
		{"capture was switched off since", joinState{Served: true}, func(t *testing.T, cfg *bootstrap.Config, from bootRules) {
			mustSave(t, cfg, from)
			mustSave(t, cfg, bootRules{})
		}},
		{"the policy is open in both directions", joinState{Served: true}, func(t *testing.T, cfg *bootstrap.Config, from bootRules) {
			cfg.Capture.OpenInbound, cfg.Capture.OpenOutbound = true, true
			mustSave(t, cfg, from)
		}},
		{"nothing was noted", joinState{Served: true}, func(*testing.T, *bootstrap.Config, bootRules) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netns.New(t)
			root, cfg, from := lastRun(t, tt.join)
			tt.save(t, cfg, from)
			if restored, err := RestoreRules(context.Background(), root); restored || err != nil {
				t.Errorf("RestoreRules = %t, %v; want nothing done", restored, err)
			}
			if rules := kernelRules(t); strings.Contains(rules, "ISTIO") || strings.Contains(rules, "WINGMAN") {
				t.Errorf("rules are in:\n%s", rules)
			}
		})
	}
}

func mustSave(t *testing.T, cfg *bootstrap.Config, from bootRules) {
	t.Helper()
	if err := saveBootRules(cfg, from); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedNoteIsSaid(t *testing.T) {
	root, cfg, _ := lastRun(t, joinState{Served: true})
	if err := os.WriteFile(filepath.Join(cfg.Paths.StateDir, bootRulesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if restored, err := RestoreRules(context.Background(), root); restored || err == nil {
		t.Errorf("RestoreRules = %t, %v; want an error", restored, err)
	}
}
