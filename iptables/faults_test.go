package iptables

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

func TestAProcessKilledBetweenAnyTwoStepsIsMadeGoodByTheNext(t *testing.T) {
	steps := map[string][]string{
		BackendNFT:    {"routes", "rules ipv4", "rules ipv6", "tidied legacy", "tidied native"},
		BackendLegacy: {"routes", "rules ipv4", "rules ipv6", "tidied nft", "tidied native"},
		BackendNative: {"routes", "tidied nft", "tidied legacy"},
	}
	for backend, list := range steps {
		for _, step := range list {
			t.Run(backend+"/"+step, func(t *testing.T) {
				t.Parallel()
				netns.New(t)
				if backend != BackendNative {
					load(t, "iptables-"+backend+"-restore", strangers)
				}
				before := save(t, backend)
				if err := startChild(t, nil, "apply", "tproxy", backend, step); err == nil || !strings.Contains(err.Error(), "killed") {
					t.Fatalf("the process was not killed at step %q: %v", step, err)
				}
				a := applier(t)
				rules, err := Plan(childConfig("tproxy", backend))
				if err != nil {
					t.Fatal(err)
				}
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatalf("apply after the kill: %v", err)
				}
				if diff, err := a.Diff(t.Context(), rules); err != nil || len(diff) > 0 {
					t.Errorf("after the second apply: %v, %v; want no difference", diff, err)
				}
				if err := a.Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, save(t, backend)); diff != "" {
					t.Errorf("remove left (-before +after):\n%s", diff)
				}
			})
		}
	}
}

func TestRemoveThatWasKilledIsFinishedByTheNext(t *testing.T) {
	for _, step := range []string{"remove nft", "remove legacy", "remove native"} {
		t.Run(step, func(t *testing.T) {
			netns.New(t)
			load(t, "iptables-nft-restore", strangers)
			before := save(t, BackendNFT)
			if err := startChild(t, nil, "apply", "tproxy", BackendNFT); err != nil {
				t.Fatal(err)
			}
			if err := startChild(t, nil, "remove", "tproxy", BackendNFT, step); err == nil {
				t.Fatalf("the process was not killed at step %q", step)
			}
			if err := applier(t).Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, save(t, BackendNFT)); diff != "" {
				t.Errorf("left (-before +after):\n%s", diff)
			}
		})
	}
}

// spoil makes a command's input unacceptable from the given text on, as a kernel without some part would find it.
func spoil(h *host, command, from string) {
	run := h.run
	h.run = func(ctx context.Context, stdin string, argv ...string) (string, error) {
		if strings.HasPrefix(filepath.Base(argv[0]), command) && strings.Contains(stdin, from) {
			stdin = strings.Replace(stdin, from, from+"-A ISTIO_OUTPUT -m nonsense -j RETURN\n", 1)
		}
		return run(ctx, stdin, argv...)
	}
}

func TestAFailureInOneTableOrFamilyPutsBackWhatWas(t *testing.T) {
	tests := []struct {
		name    string
		command string // that fails
		from    string // after this text of its input
	}{
		{"the first table of IPv4", "iptables-", "*raw\n"},
		{"the last table of IPv4", "iptables-", ":ISTIO_OUTPUT - [0:0]\n"},
		{"IPv6, when IPv4 is in already", "ip6tables-", ":ISTIO_OUTPUT - [0:0]\n"},
	}
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		for _, tt := range tests {
			for _, former := range []string{"nothing of ours", "another configuration"} {
				t.Run(flavour+"/"+tt.name+"/"+former, func(t *testing.T) {
					t.Parallel()
					netns.New(t)
					load(t, "iptables-"+flavour+"-restore", strangers)
					cfg, facts := vmDefault(flavour)
					cfg.DualStack = true
					if former != "nothing of ours" {
						cfg.VirtualInterfaces, cfg.ExcludeInterfaces = []string{"virbr0"}, []string{"tun0"}
						mustApply(t, cfg, facts)
						cfg.VirtualInterfaces, cfg.ExcludeInterfaces = nil, nil
						cfg.OutboundExcludePorts = []PortRange{{3306, 3306}}
					}
					before := save(t, flavour)
					a := applier(t)
					spoil(a.host, tt.command, tt.from)
					cfg.Mode = ModeTProxy
					rules, err := Plan(cfg, facts)
					if err != nil {
						t.Fatal(err)
					}
					err = a.Apply(t.Context(), rules)
					var ce *CommandError
					if !errors.As(err, &ce) || !strings.Contains(err.Error(), "tables-"+flavour+"-restore") || !strings.Contains(err.Error(), "nonsense") {
						t.Errorf("Apply: %v; want an error that names the command and what it said", err)
					}
					if diff := cmp.Diff(before, save(t, flavour)); diff != "" {
						t.Errorf("the failure left (-before +after):\n%s", diff)
					}
				})
			}
		}
	}
}

func TestChangingOneExclusionTouchesNothingElse(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			mustApply(t, cfg, facts)
			captured := flow{who: "outside", proto: "tcp", to: vmAddr, port: 8080, end: "15006"}
			dns := flow{who: "app", proto: "udp", to: "10.0.0.2", port: 53, end: "15053"}
			expect(t, w, []flow{captured, dns})
			cfg.OutboundExcludeCIDRs = append(cfg.OutboundExcludeCIDRs, mustPrefix("192.168.0.0/16"))
			rules := mustApply(t, cfg, facts)
			expect(t, w, []flow{{who: "app", proto: "tcp", to: "192.168.3.4", port: 80, end: "direct"}})
			st, err := applier(t).Status(t.Context(), rules)
			if err != nil || st.Counters.Inbound != 1 || st.Counters.DNS != 1 {
				t.Errorf("counters after the change: %+v, %v; want the two packets from before it", st.Counters, err)
			}
		})
	}
}

func TestTwoAgentsDoNotDoubleTheRules(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			ns := netns.New(t)
			cfg, facts := vmDefault(backend)
			rules, err := Plan(cfg, facts)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			for range 4 {
				a := applier(t)
				go func() { done <- ns.Do(func() error { return a.Apply(context.Background(), rules) }) }()
			}
			for range 4 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if diff, err := applier(t).Diff(t.Context(), rules); err != nil || len(diff) > 0 {
				t.Errorf("after four at once: %v, %v; want no difference", diff, err)
			}
		})
	}
}

func TestAHolderOfTheRulesIsWaitedForAndNamed(t *testing.T) {
	netns.New(t)
	l, err := net.Listen("unix", lockAddress)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApplier(ApplierConfig{LockWait: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	cfg, facts := vmDefault(BackendNative)
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	err = a.Apply(t.Context(), rules)
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("Apply while another holds the rules: %v; want ErrBusy with the holder's pid", err)
	}
	l.Close()
	if err := a.Apply(t.Context(), rules); err != nil {
		t.Errorf("Apply after the other let go: %v", err)
	}
}

func TestAStrangersHoldOnTheLockOfLegacyIsWaitedForAndNamed(t *testing.T) {
	netns.New(t)
	lock := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	f, err := os.Create(lock)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	x := &xtables{systemHost(), BackendLegacy}
	cmd, err := x.command(IPv4, "-restore")
	if err != nil {
		netns.Skip(t, "iptables-legacy is not installed")
	}
	_, err = x.host.run(t.Context(), "*nat\n:ISTIO_TEST - [0:0]\nCOMMIT\n", cmd, "--noflush", "--wait=1")
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d) holds %s", os.Getpid(), lock)) {
		t.Errorf("iptables-legacy-restore under a strange lock: %v; want who holds it", err)
	}
}

func TestRemoveFindsWhatIstiosOwnToolLeft(t *testing.T) {
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			netns.New(t)
			load(t, "iptables-nft-restore", strangers)
			load(t, "iptables-legacy-restore", strangers)
			before := byTable(sh(t, "iptables-nft-save")) + save(t, BackendLegacy)
			if nft := f.read(t, "nft"); nft != "" {
				loadFixture(t, &f)
			} else {
				leftovers(t, &f)
			}
			if err := applier(t).Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			after := byTable(sh(t, "iptables-nft-save")) + save(t, BackendLegacy)
			if left := sh(t, "nft", "list", "tables"); strings.Contains(left, "ip6") || strings.Contains(left, "inet") {
				t.Errorf("remove left tables:\n%s", left)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("remove left (-before +after):\n%s", diff)
			}
		})
	}
}

// leftovers adds the fixture's rules to what is in both flavours already, as Istio's tool does.
func leftovers(t *testing.T, f *fixture) {
	t.Helper()
	for _, flavour := range []string{BackendNFT, BackendLegacy} {
		if _, err := runCommand(t.Context(), f.read(t, "iptables-save"), netns.Tool(t, "iptables-"+flavour+"-restore"), "--noflush"); err != nil {
			t.Fatal(err)
		}
	}
	if f.cfg.DualStack {
		if _, err := runCommand(t.Context(), f.read(t, "ip6tables-save"), netns.Tool(t, "ip6tables-nft-restore"), "--noflush"); err != nil {
			t.Fatal(err)
		}
		ip(t, "addr add ::6/128 dev lo nodad")
	}
	if f.cfg.Mode == ModeTProxy {
		cfg := f.cfg.withDefaults()
		ip(t, fmt.Sprintf("rule add fwmark %d lookup %d", cfg.TProxyMark, cfg.TProxyTable), fmt.Sprintf("route add local default dev lo table %d", cfg.TProxyTable))
	}
}

func TestATableThatSomebodyBeginsToUseIsNotDeleted(t *testing.T) {
	netns.New(t)
	sh(t, "nft", "add", "table", "ip", "raw")
	generation := nftGeneration()
	idle, err := idleTables(IPv4, []string{"raw", "mangle"})
	if err != nil || !slices.Equal(idle, []string{"raw"}) {
		t.Fatalf("idle tables %v, %v; want raw", idle, err)
	}
	sh(t, "nft", "add", "chain", "ip", "raw", "theirs") // between our look and our change
	var b rawBatch
	b.add(unix.NFT_MSG_DELTABLE, 0, nftFamilies[IPv4], []netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte("raw\x00")}})
	if err := b.send(generation); !errors.Is(err, unix.ERESTART) {
		t.Errorf("deleting what is not as we saw it: %v, want ERESTART", err)
	}
	if err := dropIdleTables(IPv4, []string{"raw"}); err != nil {
		t.Errorf("dropIdleTables: %v, want it to leave the table", err)
	}
	if out := sh(t, "nft", "list", "tables"); !strings.Contains(out, "ip raw") {
		t.Error("the table with their chain is gone")
	}
}

// withoutTableOrder is all that is in the kernel, but for the order in which nft lists tables: one that went and came back is last.
func withoutTableOrder(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(save(t, BackendNFT) + save(t, BackendLegacy)) {
		if !strings.HasPrefix(line, "table ") {
			b.WriteString(line)
		}
	}
	tables := strings.Split(ruleset(t)+"\n", "\n}\n")
	slices.Sort(tables)
	return b.String() + strings.Join(tables, "\n}\n")
}

func TestAChangeOfBackendIsAllOrNothing(t *testing.T) {
	for _, from := range []string{BackendNFT, BackendLegacy} { // native goes in one transaction
		for _, to := range allBackends {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				netns.New(t)
				load(t, "iptables-nft-restore", strangers)
				load(t, "iptables-legacy-restore", strangers)
				cfg, facts := childConfig("redirect", from)
				mustApply(t, cfg, facts)
				before := withoutTableOrder(t)

				rules, err := Plan(childConfig("tproxy", to))
				if err != nil {
					t.Fatal(err)
				}
				a := applier(t)
				a.host = refuseRemoval(a.host, from)
				if err := a.Apply(t.Context(), rules); err == nil || !strings.Contains(err.Error(), "former rules are put back") {
					t.Errorf("Apply: %v; want it to fail and say what became of the rules", err)
				}
				if diff := cmp.Diff(before, withoutTableOrder(t)); diff != "" {
					t.Errorf("a change of backend that failed left (-before +after):\n%s", diff)
				}
				if err := applier(t).Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				if st, err := applier(t).Status(t.Context(), rules); err != nil || st.State != Complete || !slices.Equal(st.Backends, []string{to}) {
					t.Errorf("the next change: %s by %v, %v; want complete by %s alone", st.State, st.Backends, err, to)
				}
			})
		}
	}
}

// refuseRemoval is a host on which a backend's rules cannot be taken out any more, IPv6 first: as with a lock that a stranger
// holds, or a ruleset that keeps changing.
func refuseRemoval(h *host, backend string) *host {
	out := *h
	out.run = func(ctx context.Context, stdin string, argv ...string) (string, error) {
		if strings.HasPrefix(filepath.Base(argv[0]), "ip6tables-"+backend+"-restore") && !strings.Contains(stdin, "-A ISTIO_") {
			return "", errors.New("a stranger holds the lock")
		}
		return h.run(ctx, stdin, argv...)
	}
	return &out
}

func TestAChangeOfBackendWaitsForTheXtablesLockBeforeItsFirstStep(t *testing.T) {
	netns.New(t)
	lock := filepath.Join(t.TempDir(), "xtables.lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	load(t, "iptables-legacy-restore", strangers)
	cfg, facts := childConfig("redirect", BackendLegacy)
	mustApply(t, cfg, facts)
	before := save(t, BackendNFT) + save(t, BackendLegacy) + ruleset(t)
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	rules, err := Plan(childConfig("redirect", BackendNFT))
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewApplier(ApplierConfig{LockWait: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	a.host.step = func(step string) { t.Errorf("step %q was taken under a stranger's lock", step) }
	if err := a.Apply(t.Context(), rules); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d) holds %s", os.Getpid(), lock)) {
		t.Errorf("Apply: %v; want ErrBusy and the holder of the lock", err)
	}
	if diff := cmp.Diff(before, save(t, BackendNFT)+save(t, BackendLegacy)+ruleset(t)); diff != "" {
		t.Errorf("a change that found the lock held left (-before +after):\n%s", diff)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	a.host.step = func(string) {}
	if err := a.Apply(t.Context(), rules); err != nil {
		t.Errorf("with the lock free again: %v", err)
	}
}
