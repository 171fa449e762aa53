package contract

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wingman/agent/xds/nds"
)

func nameTable(t *testing.T, cp ControlPlane) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Run("the first request may be for the name table, and a new Service is pushed", func(t *testing.T) {
				m := newVM(t, cp)
				a := openADS(t, cp, token(t, cp), kind.delta)
				a.send(message{typeURL: nameTableType, node: m.node(t)})
				before := a.expect(nameTableType)
				a.ack(before)
				name := fmt.Sprintf("svc-%d", vmCount.Add(1))
				host := name + "." + namespace + ".svc.cluster.local"
				if table(t, before).GetTable()[host] != nil {
					t.Fatalf("%s is there before it was made", host)
				}
				addr, err := cp.AddService(step(t), namespace, name)
				if err != nil {
					t.Fatal(err)
				}
				after := await(a, nameTableType, func(r response) bool { return table(t, r).GetTable()[host] != nil })
				info := table(t, after).GetTable()[host]
				if len(info.GetIps()) != 1 || info.GetIps()[0] != addr || info.GetRegistry() != "Kubernetes" ||
					info.GetShortname() != name || info.GetNamespace() != namespace {
					t.Errorf("%s is %v, want address %s of the service", host, info, addr)
				}
				if after.nonce == before.nonce || after.nonce == "" || after.version == "" {
					t.Errorf("nonce %q and version %q after nonce %q, want new ones", after.nonce, after.version, before.nonce)
				}
			})

			t.Run("a NACK keeps the stream, and the next table still comes", func(t *testing.T) {
				m := newVM(t, cp)
				a := openADS(t, cp, token(t, cp), kind.delta)
				a.send(message{typeURL: nameTableType, node: m.node(t)})
				r := a.expect(nameTableType)
				a.send(message{typeURL: nameTableType, version: r.version, nonce: r.nonce, reason: "unusable table"})
				name := fmt.Sprintf("svc-%d", vmCount.Add(1))
				if _, err := cp.AddService(step(t), namespace, name); err != nil {
					t.Fatal(err)
				}
				await(a, nameTableType, func(r response) bool {
					return table(t, r).GetTable()[name+"."+namespace+".svc.cluster.local"] != nil
				})
			})

			t.Run("types without an answer do not hold up the next one", func(t *testing.T) {
				m := newVM(t, cp)
				a := join(t, cp, m, token(t, cp), kind.delta)
				a.send(message{typeURL: proxyConfig}) // unanswered unless istiod has ISTIO_MULTIROOT_MESH
				a.send(message{typeURL: clusterType})
				a.expect(clusterType)
			})
		})
	}

	t.Run("a repeated first request gets no answer on a delta stream", func(t *testing.T) {
		a := join(t, cp, newVM(t, cp), token(t, cp), true)
		a.send(message{typeURL: nameTableType})
		a.send(message{typeURL: clusterType})
		a.expect(clusterType)
	})

	t.Run("a repeated first request is answered again on a state-of-the-world stream", func(t *testing.T) {
		a := join(t, cp, newVM(t, cp), token(t, cp), false)
		a.send(message{typeURL: nameTableType})
		a.expect(nameTableType)
	})
}

// table decodes an answer's one resource, which has no name.
func table(t *testing.T, r response) *nds.NameTable {
	t.Helper()
	if len(r.resources) != 1 || len(r.names) == 1 && r.names[0] != "" {
		t.Fatalf("answer has %d resources named %q, want one without a name", len(r.resources), r.names)
	}
	var out nds.NameTable
	if err := r.resources[0].UnmarshalTo(&out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// await accepts answers of one type until match is true of one; others may come first, because a real control plane
// pushes whenever anything changed.
func await(a *ads, typeURL string, match func(response) bool) response {
	a.t.Helper()
	for {
		r := a.expect(typeURL)
		a.ack(r)
		if match(r) {
			return r
		}
	}
}

// RunConnectionAge needs a control plane whose connections end at about age: an idle stream must end then (and the
// grace of ten seconds that istiod gives), gracefully, and a new one must open on the same channel at once.
func RunConnectionAge(t *testing.T, cp ControlPlane, age, grace time.Duration) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel()
			m, cred := newVM(t, cp), token(t, cp)
			conn := dial(t, cp, cred)
			a := joinOn(t, cp, conn, m, cred, kind.delta)
			opened := time.Now()
			err := a.end(2*age + grace + stepTimeout)
			lived := time.Since(opened)
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "NO_ERROR") {
				t.Errorf("stream ended with %v, want Unavailable after a GOAWAY with NO_ERROR", err)
			}
			if lived < age/2 {
				t.Errorf("stream ended after %s, want about %s", lived, age+grace)
			}
			joinOn(t, cp, conn, m, cred, kind.delta)
		})
	}
}
