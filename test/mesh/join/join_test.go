// Package join tests an agent's main job on the real istiod: a machine becomes a member of the mesh, stays one whatever
// happens to token, agent and control plane, and leaves.
package join

import (
	"fmt"
	"testing"
	"time"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// shortGrace lets an entry go soon after its last stream; istiod's default is ten seconds.
var shortGrace = map[string]string{"PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": "2s"}

// joined says what a member that has no Envoy still lacks.
func joined(s testbed.Status) error {
	switch {
	case s.Phase != "joined":
		return fmt.Errorf("phase is %q; identity: %q, stream: %q", s.Phase, s.Identity.LastError, s.XDS.LastError)
	case s.XDS.Phase != "connected":
		return fmt.Errorf("the stream's phase is %q: %s", s.XDS.Phase, s.XDS.LastError)
	case s.DNS.Source != "istiod":
		return fmt.Errorf("names are from %q", s.DNS.Source)
	case s.Capture.Level != "dns":
		return fmt.Errorf("capture is %q: %s", s.Capture.Level, s.Capture.Why)
	}
	return nil
}

func clusterIP(t *testing.T, bed *testbed.Bed, namespace, name string) string {
	t.Helper()
	made, err := bed.Mesh.Kube.Get(t.Context(), kube.Ref{APIVersion: "v1", Kind: "Service", Namespace: namespace, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return made.String("spec", "clusterIP")
}

// resolvesNew makes a Service, waits until the machine resolves it, and returns how long that took.
func resolvesNew(t *testing.T, bed *testbed.Bed, vm *testbed.VM, name string) time.Duration {
	t.Helper()
	addr := bed.Service(t, "istioinaction", name)
	return testbed.Await(t, "a new Service resolves", func() error {
		return vm.Resolves(t.Context(), name+".istioinaction", addr)
	})
}
