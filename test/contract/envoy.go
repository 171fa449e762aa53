package contract

import (
	"slices"
	"testing"
)

// envoyStream holds what the agent's gate for Envoy leans on (agent/xds): one stream for Envoy's requests and the agent's, and a fresh one for each
// of Envoy's.
func envoyStream(t *testing.T, cp ControlPlane) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel() // most of these wait
			t.Run("Envoy's types and the agent's are answered on one stream, which registers the machine", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				a := openEnvoy(t, cp, m, kind.delta)
				a.send(message{typeURL: healthType})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "True" })
			})

			t.Run("an ACK gets no answer", func(t *testing.T) {
				t.Parallel()
				a := openEnvoy(t, cp, newVM(t, cp), kind.delta) // which accepts each answer
				a.send(message{typeURL: listenerType})
				a.quietUntil(listenerType)
			})

			t.Run("a NACK keeps the stream and gets no answer", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				a := openADS(t, cp, token(t, cp), kind.delta)
				a.send(message{typeURL: clusterType, node: m.node(t)})
				r := a.expect(clusterType)
				a.send(message{typeURL: clusterType, version: r.version, nonce: r.nonce, reason: "unknown filter"})
				a.seen = []response{r}
				a.send(message{typeURL: listenerType})
				a.quietUntil(listenerType)
			})

			t.Run("a fresh stream beside a living one answers everything, and keeps the entry when the old one ends", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				old := openEnvoy(t, cp, m, kind.delta)
				old.send(message{typeURL: healthType, reason: "down"})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "False" })
				fresh := openEnvoy(t, cp, m, kind.delta)
				old.close()
				staysFor(t, cp, m.entryName(), cp.Grace()+cp.Grace()/2)
				if e := waitEntry(t, cp, m.entryName(), nil); e.Healthy != "False" {
					t.Errorf("condition Healthy is %q after the old stream, want False still", e.Healthy)
				}
				fresh.send(message{typeURL: healthType})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "True" })
			})

			t.Run("Envoy's stream takes over from the agent's own and hands back to it", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				agents := join(t, cp, m, token(t, cp), kind.delta)
				envoys := openEnvoy(t, cp, m, kind.delta)
				agents.close()
				staysFor(t, cp, m.entryName(), cp.Grace()/4)
				join(t, cp, m, token(t, cp), kind.delta)
				envoys.close()
				staysFor(t, cp, m.entryName(), cp.Grace()+cp.Grace()/2)
			})

			t.Run("an ACK of an earlier stream is taken for a first request", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				a := openADS(t, cp, token(t, cp), kind.delta)
				a.send(message{typeURL: clusterType, node: m.node(t)})
				a.take(clusterType)
				a.send(message{typeURL: listenerType, version: "earlier", nonce: "of another stream"})
				a.quietUntil(listenerType)
			})
		})
	}

	for _, c := range []struct {
		name, typeURL string
		names         []string
	}{{"clusters", clusterType, nil}, {"routes", routeType, []string{"80"}}} {
		t.Run("a repeated first request for "+c.name+" gets no answer on a delta stream, and one on a fresh stream", func(t *testing.T) {
			m := newVM(t, cp)
			a := openADS(t, cp, token(t, cp), true)
			a.send(message{typeURL: c.typeURL, node: m.node(t), names: c.names})
			a.take(c.typeURL)
			a.send(message{typeURL: c.typeURL, names: c.names})
			a.send(message{typeURL: listenerType})
			a.quietUntil(listenerType)

			fresh := openADS(t, cp, token(t, cp), true)
			fresh.send(message{typeURL: c.typeURL, node: m.node(t), names: c.names})
			fresh.take(c.typeURL)
		})
	}

	t.Run("a repeated first request for clusters is answered on a state-of-the-world stream", func(t *testing.T) {
		a := openEnvoy(t, cp, newVM(t, cp), false)
		a.send(message{typeURL: clusterType})
		await(a, clusterType, func(response) bool { return true })
	})

	t.Run("what Envoy has of an earlier delta stream and is no more is named as removed", func(t *testing.T) {
		m := newVM(t, cp)
		a := openADS(t, cp, token(t, cp), true)
		const gone = "outbound|80||gone.nowhere.svc.cluster.local"
		a.send(message{typeURL: clusterType, node: m.node(t), known: []string{gone}})
		r := a.expect(clusterType)
		if !slices.Contains(r.removed, gone) {
			t.Errorf("removed are %v, want %s among them", r.removed, gone)
		}
	})
}

// openEnvoy opens a stream as the agent does for Envoy: Envoy's first request with the node, the agent's subscription. Both answers are taken.
func openEnvoy(t *testing.T, cp ControlPlane, m vm, delta bool) *ads {
	t.Helper()
	a := openADS(t, cp, token(t, cp), delta)
	a.send(message{typeURL: clusterType, node: m.node(t)})
	a.send(message{typeURL: nameTableType})
	a.take(clusterType, nameTableType)
	return a
}

// take accepts answers until there was one of each type.
func (a *ads) take(types ...string) {
	a.t.Helper()
	for len(types) > 0 {
		r, err := a.receive()
		if err != nil {
			a.t.Fatalf("stream ended, want answers of %q: %v", types, err)
		}
		a.seen = append(a.seen, r)
		a.ack(r)
		types = slices.DeleteFunc(types, func(t string) bool { return t == r.typeURL })
	}
}

// quietUntil reads until an answer of typeURL, and fails the test when one of another type comes that nothing has changed for: whose version was
// seen already. A real control plane may push at any time; then the version is another.
func (a *ads) quietUntil(typeURL string) {
	a.t.Helper()
	for {
		r, err := a.receive()
		if err != nil {
			a.t.Fatalf("stream ended, want an answer of %s: %v", typeURL, err)
		}
		if r.typeURL == typeURL {
			return
		}
		for _, before := range a.seen {
			if before.typeURL == r.typeURL && before.version == r.version {
				a.t.Fatalf("%s of version %s is sent a second time, want no answer before %s", r.typeURL, r.version, typeURL)
			}
		}
		a.seen = append(a.seen, r)
		a.ack(r)
	}
}
