package iptables

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wingman/test/netns"
)

func TestMissingCommandsMeanTheNativeBackend(t *testing.T) {
	netns.New(t)
	a := applier(t)
	a.host.find = noCommands().find
	cfg, facts := vmDefault(BackendAuto)
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	st, err := a.Status(t.Context(), rules)
	if err != nil || st.State != Complete || !slices.Equal(st.Backends, []string{BackendNative}) {
		t.Errorf("status %+v, %v; want complete by native", st, err)
	}
	rules.Backend = BackendNFT
	if err := a.Apply(t.Context(), rules); err == nil || !strings.Contains(err.Error(), "iptables-nft-restore: command not found") || !strings.Contains(err.Error(), "native") {
		t.Errorf("Apply by nft without the command: %v; want its name and the way out", err)
	}
}

func TestATableThatIptablesRefusesMeansTheNativeBackend(t *testing.T) {
	netns.New(t)
	a := applier(t)
	a.host.run = func(_ context.Context, _ string, argv ...string) (string, error) { // as iptables 1.8.4 does
		const says = "iptables-nft-restore v1.8.4 (nf_tables): table `nat' is incompatible, use 'nft' tool."
		return "", &CommandError{Command: strings.Join(argv, " "), Stderr: says, Hint: hint(argv[0], says), Err: errors.New("exit status 1")}
	}
	cfg, facts := vmDefault(BackendNFT)
	rules, err := Plan(cfg, facts)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Apply(t.Context(), rules); err == nil || !strings.Contains(err.Error(), "choose backend native") {
		t.Errorf("Apply by nft: %v; want the way out", err)
	}
	rules.Backend = BackendAuto
	if err := a.Apply(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if st, err := a.Status(t.Context(), rules); err != nil || st.State != Complete || !slices.Equal(st.Backends, []string{BackendNative}) {
		t.Errorf("status %s by %v, %v; want complete by native", st.State, st.Backends, err)
	}
}

func TestNativeBackendStartsNoProcessAndADefaultVMAtMostThree(t *testing.T) {
	limits := map[string]map[string]int{
		BackendNative: {},
		BackendNFT:    {"first": 1, "second": 1, "changed": 2},
		BackendLegacy: {"first": 2, "second": 3, "changed": 4}, // a process for each table that holds something
	}
	for backend, most := range limits {
		t.Run(backend, func(t *testing.T) {
			netns.New(t)
			cfg, facts := vmDefault(backend)
			a := applier(t)
			started := 0
			run := a.host.run
			a.host.run = func(ctx context.Context, stdin string, argv ...string) (string, error) {
				started++
				return run(ctx, stdin, argv...)
			}
			for _, what := range []string{"first", "second", "changed"} {
				if what == "changed" {
					cfg.InboundExcludePorts = []uint16{9999}
				}
				rules, err := Plan(cfg, facts)
				if err != nil {
					t.Fatal(err)
				}
				started = 0
				if err := a.Apply(t.Context(), rules); err != nil {
					t.Fatal(err)
				}
				if started > most[what] {
					t.Errorf("the %s apply started %d processes, want at most %d", what, started, most[what])
				}
			}
		})
	}
}

func TestWithoutTheCapabilityTheErrorSaysSo(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			netns.New(t)
			for _, action := range []string{"apply", "remove", "status"} {
				err := startChild(t, asUser(t, nil), action, "redirect", backend)
				if err == nil || !strings.Contains(err.Error(), "NET_ADMIN") {
					t.Errorf("%s without capabilities: %v; want NET_ADMIN in it", action, err)
				}
			}
		})
	}
}

func TestANonRootAgentWithTwoCapabilitiesCanDoEverything(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			netns.New(t)
			if backend != BackendNative {
				load(t, "iptables-"+backend+"-restore", strangers)
			}
			before := save(t, backend)
			caps := []uintptr{12 /* CAP_NET_ADMIN */, 13 /* CAP_NET_RAW */}
			if err := startChild(t, asUser(t, caps), "apply", "tproxy", backend); err != nil {
				t.Fatal(err)
			}
			rules, err := Plan(childConfig("tproxy", backend))
			if err != nil {
				t.Fatal(err)
			}
			if diff, err := applier(t).Diff(t.Context(), rules); err != nil || len(diff) > 0 {
				t.Errorf("after apply: %v, %v; want no difference", diff, err)
			}
			once := save(t, backend)
			if err := startChild(t, asUser(t, caps), "apply", "tproxy", backend); err != nil {
				t.Fatalf("the second apply: %v", err)
			}
			if diff := cmp.Diff(once, save(t, backend)); diff != "" {
				t.Errorf("the second apply changed (-first +second):\n%s", diff)
			}
			if err := startChild(t, asUser(t, caps), "remove", "tproxy", backend); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, save(t, backend)); diff != "" {
				t.Errorf("remove left (-before +after):\n%s", diff)
			}
		})
	}
}

// asUser makes a child run as istio-proxy, with a copy of the test binary that it may read and a lock file that it may lock.
func asUser(t *testing.T, caps []uintptr) func(*exec.Cmd) {
	t.Helper()
	dir, err := os.MkdirTemp("", "wingman-iptables-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, lock := filepath.Join(dir, "test"), filepath.Join(dir, "xtables.lock")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(binary, os.O_CREATE|os.O_WRONLY, 0o755)
	if err == nil {
		_, err = io.Copy(to, from)
	}
	if err = errors.Join(err, to.Close(), os.WriteFile(lock, nil, 0o600), os.Chown(lock, proxyID, proxyID), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = binary, []string{binary}
		cmd.Env = append(cmd.Env, "XTABLES_LOCKFILE="+lock)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: proxyID, Gid: proxyID}, AmbientCaps: caps}
	}
}
