// Package capture tests which way a machine's traffic takes on the real mesh: step by step into Envoy and back, past an Envoy that is down, and from
// containers. Package iptables tests the rules themselves.
package capture

import (
	"fmt"
	"testing"

	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// shortGrace lets an entry go soon after its last stream; istiod's default is ten seconds.
var shortGrace = map[string]string{"PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": "2s"}

// joined says what a member that has no Envoy still lacks.
func joined(s testbed.Status) error {
	if s.Phase != "joined" || s.DNS.Source != "istiod" || s.Capture.Level != "dns" {
		return fmt.Errorf("phase %q, stream %q, names from %q, captured %+v", s.Phase, s.XDS.LastError, s.DNS.Source, s.Capture)
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
