package iptables

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

// BenchmarkApplyOnADefaultVM runs `wingman rules apply`, built as it is shipped, with the settings of a default VM, in turn with
// Istio's own tool in one namespace that holds nothing before each. It counts all of it: the start, reading settings and facts, the
// rules, and asking whether anybody listens. The figure that counts is the ratio of the medians.
func BenchmarkApplyOnADefaultVM(b *testing.B) {
	tool := pilotAgent(b)
	env := readEnv(b, "testdata/capture/vm-default/env")
	binary := buildCommand(b)
	for _, backend := range allBackends {
		b.Run(backend, func(b *testing.B) {
			root := defaultVM(b, backend)
			istio := exec.Command(tool, "istio-iptables", "--proxy-uid", "995", "--proxy-gid", "995")
			istio.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
			for k, v := range env {
				istio.Env = append(istio.Env, k+"="+v)
			}
			var theirs, ours []time.Duration
			onAVM(b, filepath.Join(root, "etc/resolv.conf"), func(run func(cmd *exec.Cmd) time.Duration) {
				for range b.N {
					theirs = append(theirs, run(again(istio)))
					ours = append(ours, run(exec.Command(binary, "--root", root, "rules", "apply")))
				}
			})
			slices.Sort(theirs)
			slices.Sort(ours)
			t, o := theirs[len(theirs)/2], ours[len(ours)/2]
			b.ReportMetric(float64(o.Microseconds())/1e3, "ms/apply")
			b.ReportMetric(float64(t.Microseconds())/1e3, "ms/pilot-agent")
			b.ReportMetric(float64(o)/float64(t), "ratio")
			b.ReportMetric(float64(ours[0])/float64(theirs[0]), "ratio-of-minima")
		})
	}
}

// buildCommand builds the program as the Makefile does.
func buildCommand(b *testing.B) string {
	b.Helper()
	binary := filepath.Join(b.TempDir(), "wingman")
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", binary, "wingman/cmd/wingman")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build the program: %v: %s", err, out)
	}
	return binary
}

// defaultVM makes the files of a default VM below a root of their own.
func defaultVM(b *testing.B, backend string) string {
	b.Helper()
	root := b.TempDir()
	env, err := os.ReadFile("testdata/capture/vm-default/env")
	if err != nil {
		b.Fatal(err)
	}
	for name, text := range map[string]string{
		"var/lib/istio/envoy/sidecar.env": strings.Replace(string(env), "FORCE_IPTABLES_BINARY=nft\n", "", 1),
		"var/lib/istio/envoy/cluster.env": "ISTIO_NAMESPACE=vm\n",
		"etc/wingman/wingman.yaml":        "rules:\n  backend: " + backend + "\n",
		"etc/resolv.conf":                 "nameserver 127.0.0.53\n",
		"etc/passwd":                      "istio-proxy:x:995:995::/:/bin/false\n",
		"etc/group":                       "istio-proxy:x:995:\n",
	} {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	return root
}

// onAVM calls f in a network namespace with an address, without which Istio's tool does nothing, and a resolv.conf of its own. run
// starts a command there, returns what it took, and takes out the rules that it left.
func onAVM(b *testing.B, resolvConf string, f func(run func(*exec.Cmd) time.Duration)) {
	b.Helper()
	ns := netns.Create(b)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: this thread ends with its mount namespace
		done <- errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(resolvConf, "/etc/resolv.conf", "", unix.MS_BIND, ""),
			ns.Do(func() error {
				if out, err := exec.Command(netns.Tool(b, "ip"), "addr", "add", "10.99.0.2/24", "dev", "lo").CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				f(func(cmd *exec.Cmd) time.Duration {
					start := time.Now()
					out, err := cmd.CombinedOutput()
					took := time.Since(start)
					if err != nil {
						b.Errorf("%s: %v: %s", cmd, err, out)
					}
					if err := applier(b).Remove(b.Context()); err != nil {
						b.Error(err)
					}
					return took
				})
				return nil
			}))
	}()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// again is a command to be run once more.
func again(cmd *exec.Cmd) *exec.Cmd {
	next := exec.Command(cmd.Path, cmd.Args[1:]...)
	next.Env = cmd.Env
	return next
}

// BenchmarkPlan is the pure part.
func BenchmarkPlan(b *testing.B) {
	cfg, facts := vmDefault(BackendAuto)
	cfg.DualStack = true
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Plan(cfg, facts); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSecondApply is what the agent does when nothing has changed.
func BenchmarkSecondApply(b *testing.B) {
	for _, backend := range allBackends {
		b.Run(backend, func(b *testing.B) {
			netns.New(b)
			cfg, facts := vmDefault(backend)
			rules, err := Plan(cfg, facts)
			if err != nil {
				b.Fatal(err)
			}
			a := applier(b)
			for b.Loop() {
				if err := a.Apply(b.Context(), rules); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
