package join

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// The main job of issue 3, told once for each kind of stream.
func TestAMachineJoinsStaysAndLeaves(t *testing.T) {
	for _, c := range []struct{ name, sidecar string }{
		{"delta", "SECRET_TTL=20s\n"},
		{"state of the world", "SECRET_TTL=20s\nISTIO_DELTA_XDS=false\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
			spec := testbed.Forum
			spec.Sidecar = c.sidecar
			tell(t, bed, bed.VM(t, spec))
		})
	}
}

func tell(t *testing.T, bed *testbed.Bed, vm *testbed.VM) {
	app := vm.App(t, 8080)

	// Join by token: a certificate of istiod's CA, the name table, capture, the entry.
	vm.StartAgent(t)
	first := vm.AwaitStatus(t, "the agent joins", joined)
	if got, want := first.Identity.SPIFFEID, "spiffe://cluster.local/ns/forum-services/sa/forum-sa"; got != want {
		t.Errorf("identity is %q, want %q", got, want)
	}
	if first.Identity.Credential != "token" {
		t.Errorf("the first certificate came by %q, want the token", first.Identity.Credential)
	}
	checkEntry(t, vm, vm.Entry(t, "the entry appears", nil))
	vm.Healthy(t, "True")

	// DNS through the kernel's redirect: names of the mesh from istiod, others from the resolver.
	webapp := clusterIP(t, bed, "istioinaction", "webapp")
	names := map[string]string{
		"webapp.istioinaction": webapp, "webapp.istioinaction.svc": webapp, "webapp.istioinaction.svc.cluster.local": webapp,
		"www.example.com": "192.0.2.80",
	}
	testbed.Await(t, "a Service resolves", func() error { return vm.Resolves(t.Context(), "webapp.istioinaction", webapp) })
	checkNames(t, vm, names)
	t.Logf("a new Service was resolvable after %s", resolvesNew(t, bed, vm, "new-one"))

	// Health follows the application.
	app.Kill()
	vm.Healthy(t, "False")
	app.Start(t)
	vm.Healthy(t, "True")

	// The token goes and the agent dies: it comes back as the same member by its certificate, and renews by it.
	vm.RemoveToken(t)
	vm.KillAgent()
	vm.StartAgent(t)
	back := vm.AwaitStatus(t, "the agent is back without its token", joined)
	vm.AwaitStatus(t, "the certificate renews itself", func(s testbed.Status) error {
		if s.Identity.Serial == back.Identity.Serial || s.Identity.Credential != "certificate" {
			return fmt.Errorf("serial %s came by %q", s.Identity.Serial, s.Identity.Credential)
		}
		return nil
	})
	vm.Healthy(t, "True")

	// istiod dies: every name still resolves. It comes back, and the stream with it.
	bed.Mesh.KillIstiod()
	vm.AwaitStatus(t, "the agent notices that istiod is gone", func(s testbed.Status) error {
		if s.XDS.Phase == "connected" {
			return errors.New("still connected")
		}
		return nil
	})
	checkNames(t, vm, names)
	if err := bed.Mesh.StartIstiod(t.Context()); err != nil {
		t.Fatal(err)
	}
	vm.AwaitStatus(t, "the stream is back after istiod's restart", joined)
	t.Logf("after istiod's restart a new Service was resolvable after %s", resolvesNew(t, bed, vm, "new-two"))
	vm.Healthy(t, "True")

	// Leave: first unhealthy, then gone, and nothing of the agent stays in the kernel.
	unhealthy := vm.ExpectHealthy(t, "False")
	vm.StopAgent(t)
	unhealthy()
	bed.Entries(t, "forum-services", "the entry goes", func(all []kube.Object) bool { return len(all) == 0 })
	if rules := vm.Rules(t); len(rules) > 0 {
		t.Errorf("the kernel still has rules: %v", rules)
	}
	checkNames(t, vm, map[string]string{"www.example.com": "192.0.2.80"})
}

func checkEntry(t *testing.T, vm *testbed.VM, entry kube.Object) {
	t.Helper()
	for path, want := range map[string]string{"address": vm.IP().String(), "network": "vm-network", "serviceAccount": "forum-sa"} {
		if got := entry.String("spec", path); got != want {
			t.Errorf("the entry's %s is %q, want %q", path, got, want)
		}
	}
	want := map[string]string{
		"app": "forum", "service.istio.io/canonical-name": "forum", "service.istio.io/canonical-revision": "latest",
		"security.istio.io/tlsMode": "disabled", // no Envoy here: DESIGN.md, promise 9
	}
	if got := entry.Labels("spec", "labels"); !maps.Equal(got, want) {
		t.Errorf("the entry's labels are %v, want %v", got, want)
	}
}

// checkNames checks what applications on the machine get for names.
func checkNames(t *testing.T, vm *testbed.VM, want map[string]string) {
	t.Helper()
	for name, addr := range want {
		if err := vm.Resolves(t.Context(), name, addr); err != nil {
			t.Error(err)
		}
	}
}
