// Package faults does to two machines of a mesh what happens to machines: agents restart, Envoys are killed, control planes go away, pushes are
// refused. Nothing is stood in for: wingman, the real Envoy, the real istiod. Traffic runs meanwhile, and what becomes of it is printed.
package faults

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

// pair are the book's two machines, each with wingman as a unit would run it, and Envoy.
type pair struct {
	bed                      *testbed.Bed
	client, server           *testbed.VM
	clientUnit               *testbed.Unit
	serverUnit               *testbed.Unit
	clientEnvoy, serverEnvoy *testbed.Envoy
	serverApp                *testbed.App
}

const (
	forumID = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	service = testbed.PairHost
)

// newPair starts the machines and waits until the client reaches the server by mutual TLS.
func newPair(t *testing.T, o mesh.Options) *pair {
	made := testbed.NewPair(t, o, "")
	p := &pair{
		bed: made.Bed, client: made.Client, server: made.Server, clientUnit: made.ClientUnit, serverUnit: made.ServerUnit,
		clientEnvoy: made.ClientEnvoy, serverEnvoy: made.ServerEnvoy, serverApp: made.ServerApp,
	}
	p.wellAgain(t)
	return p
}

// wellAgain waits until everything is as it should be, and a request comes through. Each fault ends with it.
func (p *pair) wellAgain(t *testing.T) {
	t.Helper()
	for vm, envoy := range map[*testbed.VM]*testbed.Envoy{p.client: p.clientEnvoy, p.server: p.serverEnvoy} {
		envoy.Await(t)
		vm.AwaitStatus(t, "all is well", joined)
		vm.Healthy(t, "True")
	}
	p.reaches(t, "/well")
}

// reaches waits until the client gets an answer of the server.
func (p *pair) reaches(t *testing.T, path string) {
	t.Helper()
	testbed.Await(t, "the client reaches the server", func() error {
		r, err := p.client.Get(t.Context(), service, path)
		if err == nil && r.Status != 200 {
			err = fmt.Errorf("status %d: %s", r.Status, r.Body)
		}
		return err
	})
}

// serviceAddr is the address of the server's Service.
func (p *pair) serviceAddr(t *testing.T) string {
	t.Helper()
	o, err := p.bed.Mesh.Kube.Get(t.Context(), kube.Ref{APIVersion: "v1", Kind: "Service", Namespace: "istioinaction", Name: "catalog"})
	if err != nil {
		t.Fatal(err)
	}
	return o.String("spec", "clusterIP")
}

// afterLoad waits until n more requests of a load have ended.
func afterLoad(t *testing.T, l *testbed.Load, n int) {
	t.Helper()
	before, _ := l.Outcome().Sent()
	testbed.Await(t, "requests go on", func() error {
		if now, _ := l.Outcome().Sent(); now < before+n {
			return fmt.Errorf("%d requests", now-before)
		}
		return nil
	})
}

// One pair of machines goes through the first group, one fault after the other. What waits for long has a machine of its own, and is beside it.
func TestFaults(t *testing.T) {
	p := newPair(t, istiodLog)
	type fault struct {
		name string
		test func(*testing.T, *pair)
	}
	all := func(faults ...fault) func(*testing.T) {
		return func(t *testing.T) {
			t.Parallel()
			for _, f := range faults {
				t.Run(f.name, func(t *testing.T) { f.test(t, p) })
			}
		}
	}
	// The time that these take is a promise: they have the processors for themselves.
	t.Run("a restart of istiod is not noticed", func(t *testing.T) { istiodRestarts(t, p) })
	t.Run("a crash of Envoy costs less than a second", func(t *testing.T) { envoyCrashes(t, p) })
	// Not beside others, which make Services: where one push brings a cluster that Envoy refuses and one that it has to warm, Envoy was seen to say nothing
	// about clusters any more until its stream ends.
	t.Run("a refused push changes nothing and is told", func(t *testing.T) { pushIsRefused(t, p) })
	t.Run("faults", func(t *testing.T) {
		t.Run("of the pair", all(
			fault{"restarts of the agent are not noticed", agentRestarts},
			fault{"names and health go on without Envoy", envoyHangs},
			fault{"Envoy goes on without an agent", agentIsDead},
			fault{"a reload reaches istiod under the same Envoy", agentReloads},
			fault{"certificates rotate under traffic", certificatesRotate},
		))
		t.Run("of a machine that changes", all(
			fault{"Envoy comes and goes", envoyComesAndGoes},
		))
		t.Run("of machines that start", all(
			fault{"who is in the way is named", startIsObstructed},
			fault{"another label makes another entry", labelChanges},
			fault{"a silent resolver does not hold Envoy up", resolverIsSilent},
		))
	})
}

// withinASecond fails unless something took less than a second at its best, and never as long as a wait of the agent's: a machine that does other things is slow.
func withinASecond(t *testing.T, what string, took []time.Duration) {
	t.Helper()
	if best, worst := slices.Min(took), slices.Max(took); best > time.Second || worst > 10*time.Second {
		t.Errorf("%s: it took %v, want a second at most", what, took)
	}
}

// seconds prints a duration as figures are printed here.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }

// joined says what a member that has Envoy still lacks.
func joined(s testbed.Status) error {
	switch {
	case s.XDS.Phase != "connected" || !s.Envoy.Stream:
		return fmt.Errorf("stream: %+v, envoy: %+v", s.XDS, s.Envoy)
	case s.Capture.Level != "all":
		return fmt.Errorf("capture: %+v", s.Capture)
	case len(s.Degraded) > 0:
		return fmt.Errorf("degraded: %q", s.Degraded)
	}
	return nil
}
