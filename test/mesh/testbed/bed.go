// Package testbed sets the stage of the book's chapter on virtual machines (Istio in Action, chapter 13) for tests: the real
// control plane, a resolver that answers for the world outside, and two machines, forum in forum-services and catalog in
// istioinaction, each with its WorkloadGroup, its application and the real wingman.
//
// Everything takes a testing.TB and fails it with what it knows: the step, and the end of the logs. A test that uses a Bed
// must run under Main.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/binaries"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/machine"
)

const (
	// StepTimeout bounds one thing that should take a second at most: a machine that does other things is slow.
	StepTimeout = 30 * time.Second

	startTimeout = 2 * time.Minute
)

// Main is the body of TestMain in packages that use a Bed: machine.Main, with everything that a Bed needs at hand.
func Main(m *testing.M) {
	machine.Main(m, func(dir string) error {
		ctx := context.Background() // go test's own deadline ends what hangs
		if _, err := binaries.Get(ctx, os.Stderr); err != nil {
			return err
		}
		wingman, err := binaries.Wingman(ctx, os.Stderr, dir)
		if err != nil {
			return err
		}
		return os.Setenv(binaries.WingmanVar, wingman)
	})
}

// Bed is the stage: control plane and resolver. Machines are added by VM.
type Bed struct {
	Mesh     *mesh.Mesh
	Resolver *Resolver

	set     binaries.Set
	wingman string // the program
	logs    string // folder
}

// New starts a control plane with the book's objects in it (see Objects), and the resolver. Both end with the test.
func New(t testing.TB, o mesh.Options) *Bed {
	t.Helper()
	machine.Require(t)
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	b := &Bed{logs: machine.Scratch(t)}
	var err error
	if b.set, err = binaries.Get(ctx, os.Stderr); err != nil {
		t.Fatal(err)
	}
	if b.wingman, err = binaries.Wingman(ctx, os.Stderr, b.logs); err != nil {
		t.Fatal(err)
	}
	o.Binaries = b.set
	o.Objects = Objects + "\n---\n" + o.Objects
	o.Dir = filepath.Join(b.logs, "mesh")
	if b.Mesh, err = mesh.Start(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Mesh.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Resolver = startResolver(t)
	return b
}

// machine starts a machine that ends with the test.
func (b *Bed) machine(t testing.TB, cfg machine.Config) *machine.Machine {
	t.Helper()
	cfg.Logs = b.logs
	m, err := machine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Apply makes or changes objects in the cluster.
func (b *Bed) Apply(t testing.TB, yaml string) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	if err := b.Mesh.Kube.Apply(ctx, yaml); err != nil {
		t.Fatal(err)
	}
}

// ReplaceCA gives the mesh a new root, as mesh.ReplaceCA does, for both machines' namespaces.
func (b *Bed) ReplaceCA(t testing.TB) {
	t.Helper()
	ctx, cancel := step(t)
	defer cancel()
	if err := b.Mesh.ReplaceCA(ctx, Forum.Namespace, Catalog.Namespace); err != nil {
		t.Fatal(err)
	}
}

// Service makes a Service with one port and no endpoints, and returns its address.
func (b *Bed) Service(t testing.TB, namespace, name string) string {
	t.Helper()
	b.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {ports: [{name: http, port: 80}]}
`, name, namespace))
	ctx, cancel := step(t)
	defer cancel()
	made, err := b.Mesh.Kube.Get(ctx, kube.Ref{APIVersion: "v1", Kind: "Service", Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return made.String("spec", "clusterIP")
}

// Entries waits until match is true of the WorkloadEntries of a namespace, and returns them.
func (b *Bed) Entries(t testing.TB, namespace, what string, match func([]kube.Object) bool) []kube.Object {
	t.Helper()
	return b.ExpectEntries(t, namespace, what, match)()
}

// ExpectEntries begins what Entries does, and returns the function that waits for its end: for a state that may be over by
// the time that the test gets around to looking.
func (b *Bed) ExpectEntries(t testing.TB, namespace, what string, match func([]kube.Object) bool) (wait func() []kube.Object) {
	t.Helper()
	type result struct {
		entries []kube.Object
		err     error
	}
	done := make(chan result, 1)
	ctx, cancel := step(t)
	go func() {
		defer cancel()
		ref := kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "WorkloadEntry", Namespace: namespace}
		entries, err := b.Mesh.Kube.Wait(ctx, ref, match)
		done <- result{entries, err}
	}()
	return func() []kube.Object {
		t.Helper()
		r := <-done
		if r.err != nil {
			t.Fatalf("%s: %v", what, r.err)
		}
		return r.entries
	}
}

// WatchEntries watches the WorkloadEntries of a namespace from now on for what must not be. The function that it returns ends
// the watch, and says whether bad was ever true, and of what.
func (b *Bed) WatchEntries(t testing.TB, namespace string, bad func([]kube.Object) bool) (stop func() (seen []kube.Object, was bool)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		seen []kube.Object
		err  error
	}
	done := make(chan result, 1)
	go func() {
		ref := kube.Ref{APIVersion: "networking.istio.io/v1", Kind: "WorkloadEntry", Namespace: namespace}
		seen, err := b.Mesh.Kube.Wait(ctx, ref, bad)
		done <- result{seen, err}
	}()
	return func() ([]kube.Object, bool) {
		t.Helper()
		cancel()
		r := <-done
		if r.err != nil && !errors.Is(r.err, context.Canceled) {
			t.Fatal(r.err)
		}
		return r.seen, r.err == nil
	}
}

// Reject makes every TCP connection from one address to another one fail at once, as a firewall between networks does, those
// that stand included. The function that it returns lets them through again.
func (b *Bed) Reject(t testing.TB, from, to netip.Addr) (undo func()) {
	t.Helper()
	return firewall(t, "-s", from.String(), "-d", to.String())
}

// Forbid makes every new TCP connection from one address to another one fail at once. Those of the other direction pass.
func (b *Bed) Forbid(t testing.TB, from, to netip.Addr) (undo func()) {
	t.Helper()
	return firewall(t, "-s", from.String(), "-d", to.String(), "--syn")
}

// Silence drops every question of a machine to its resolver, which then says nothing at all.
func (b *Bed) Silence(t testing.TB, vm *VM) {
	t.Helper()
	for _, protocol := range []string{"udp", "tcp"} {
		cmd := exec.Command("/usr/sbin/iptables", "-A", "INPUT", "-s", vm.IP().String(), "-p", protocol, "--dport", "53", "-j", "DROP")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
}

// firewall rejects TCP packets that match, to and through the test's side of the cables.
func firewall(t testing.TB, match ...string) (undo func()) {
	t.Helper()
	rules := func(action string) {
		t.Helper()
		for _, chain := range []string{"INPUT", "FORWARD"} {
			args := append([]string{action, chain, "-p", "tcp"}, match...)
			cmd := exec.Command("/usr/sbin/iptables", append(args, "-j", "REJECT", "--reject-with", "tcp-reset")...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", cmd, err, out)
			}
		}
	}
	rules("-A")
	return func() { rules("-D") }
}

// step is a context for one step of a test.
func step(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), StepTimeout)
}

// Await asks until ask answers nil, and fails the test with its last answer after StepTimeout. It is for what offers no way
// to wait for it: another process's socket, a query's answer. It returns how long that took.
func Await(t testing.TB, what string, ask func() error) time.Duration {
	t.Helper()
	return AwaitFor(t, StepTimeout, what, ask)
}

// AwaitFor is Await for what takes long.
func AwaitFor(t testing.TB, limit time.Duration, what string, ask func() error) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%s: the test ends: %v", what, err)
		}
	}
}
