package join

import (
	"errors"
	"strings"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// istiod reads labels when it makes an entry, and removes one only after it saw the machine leave. A label that changes while istiod is away must not
// end in an entry that says the old one for good: with tlsMode that would be a black hole.
func TestLabelsThatChangeWhileIstiodIsAwayReachTheMesh(t *testing.T) {
	bed := testbed.New(t, mesh.Options{IstiodEnv: shortGrace})
	vm := bed.VM(t, testbed.Forum)
	vm.App(t, 8080)
	tier := func(name string) {
		t.Helper()
		vm.WriteSettings(t, "workload: {entryGrace: 4s, labels: {tier: "+name+"}}\n")
	}
	labelled := func(name string) {
		t.Helper()
		vm.Entry(t, "the entry says "+name, func(o kube.Object) bool { return o.String("spec", "labels", "tier") == name })
		vm.Healthy(t, "True")
	}
	tier("front")
	vm.StartAgent(t)
	labelled("front")

	bed.Mesh.KillIstiod()
	tier("back")
	vm.Reload(t)
	vm.AwaitStatus(t, "the status says what is missing", func(s testbed.Status) error {
		if !strings.Contains(strings.Join(s.Degraded, "; "), "another WorkloadEntry") {
			return errors.New(strings.Join(s.Degraded, "; "))
		}
		return nil
	})
	if err := bed.Mesh.StartIstiod(t.Context()); err != nil {
		t.Fatal(err)
	}
	labelled("back")
	vm.AwaitStatus(t, "all is well", func(s testbed.Status) error {
		if len(s.Degraded) > 0 {
			return errors.New(strings.Join(s.Degraded, "; "))
		}
		return joined(s)
	})
}
