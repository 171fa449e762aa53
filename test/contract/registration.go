package contract

import (
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kinds are the two ways to stream; every test of streams runs with both.
var kinds = []struct {
	name  string
	delta bool
}{{"delta", true}, {"state of the world", false}}

// join opens a stream for a machine, asks for the name table as the first request, and takes the answer.
func join(t *testing.T, cp ControlPlane, m vm, c credential, delta bool) *ads {
	t.Helper()
	return joinOn(t, cp, dial(t, cp, c), m, c, delta)
}

// joinOn is join over a connection that is there. Right after another stream of the machine has closed istiod may still be writing that into the entry,
// loses the race against itself and ends the new stream (Unknown, "Operation cannot be fulfilled"): a client tries again.
func joinOn(t *testing.T, cp ControlPlane, conn *grpc.ClientConn, m vm, c credential, delta bool) *ads {
	t.Helper()
	for deadline := time.Now().Add(stepTimeout); ; {
		a := openADSOn(t, cp, conn, c, delta)
		a.send(message{typeURL: nameTableType, node: m.node(t)})
		r, err := a.receive()
		switch {
		case err == nil && r.typeURL == nameTableType:
			a.ack(r)
			return a
		case err == nil:
			t.Fatalf("answer is of %s, want %s", r.typeURL, nameTableType)
		case !strings.Contains(err.Error(), "Operation cannot be fulfilled") || time.Now().After(deadline):
			t.Fatalf("stream ended, want an answer of %s: %v", nameTableType, err)
		}
	}
}

func registration(t *testing.T, cp ControlPlane) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel() // most of these wait
			t.Run("a stream makes an entry named by group, address and network, with the node's labels over the group's", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				join(t, cp, m, token(t, cp), kind.delta)
				e := waitEntry(t, cp, m.entryName(), nil)
				if e.Address != m.address || e.Network != m.network || e.ServiceAccount != account {
					t.Errorf("entry is %+v, want address %s, network %s, account %s", e, m.address, m.network, account)
				}
				if want := map[string]string{"app": "forum", "from": "node", "team": "forum"}; !maps.Equal(e.Labels, want) {
					t.Errorf("labels are %v, want %v", e.Labels, want)
				}
			})

			t.Run("colons of an IPv6 address become dashes in the name", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				m.address = "2001:db8:99::" + strings.TrimPrefix(m.address[strings.LastIndex(m.address, "."):], ".")
				join(t, cp, m, token(t, cp), kind.delta)
				e := waitEntry(t, cp, m.group+"-"+strings.ReplaceAll(m.address, ":", "-")+"-"+m.network, nil)
				if e.Address != m.address {
					t.Errorf("address is %s, want %s", e.Address, m.address)
				}
			})

			t.Run("a node without a network has a name without it", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				m.network = ""
				join(t, cp, m, token(t, cp), kind.delta)
				waitEntry(t, cp, m.group+"-"+m.address, nil)
			})

			t.Run("a certificate registers as well as a token", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				join(t, cp, m, credential{cert: buy(t, cp, token(t, cp), 600)}, kind.delta)
				waitEntry(t, cp, m.entryName(), nil)
			})

			t.Run("an entry goes when the grace period after its last stream is over, and not before", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				a := join(t, cp, m, token(t, cp), kind.delta)
				waitEntry(t, cp, m.entryName(), nil)
				a.close()
				staysFor(t, cp, m.entryName(), cp.Grace()/2)
				waitNoEntry(t, cp, m.entryName(), cp.Grace()+stepTimeout)
			})

			t.Run("an entry outlives one of its two streams", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				first := join(t, cp, m, token(t, cp), kind.delta)
				join(t, cp, m, token(t, cp), kind.delta)
				waitEntry(t, cp, m.entryName(), nil)
				first.close()
				staysFor(t, cp, m.entryName(), cp.Grace()+cp.Grace()/2)
			})

			t.Run("who comes back in the grace period keeps the entry", func(t *testing.T) {
				t.Parallel()
				m := newVM(t, cp)
				a := join(t, cp, m, token(t, cp), kind.delta)
				waitEntry(t, cp, m.entryName(), nil)
				a.close()
				staysFor(t, cp, m.entryName(), cp.Grace()/4)
				join(t, cp, m, token(t, cp), kind.delta)
				staysFor(t, cp, m.entryName(), cp.Grace()+cp.Grace()/2)
			})

			t.Run("who may not register is told why", func(t *testing.T) { refusals(t, cp, kind.delta) })
		})
	}
}

// refusals are the ways a first request fails: each ends the stream with a status.
func refusals(t *testing.T, cp ControlPlane, delta bool) {
	for _, c := range []struct {
		name string
		edit func(*vm)
		cred func(*testing.T) credential
		code codes.Code
		says string
	}{
		{
			name: "an unknown group is FailedPrecondition and named",
			edit: func(m *vm) { m.group = "nobody" },
			code: codes.FailedPrecondition, says: "cannot find WorkloadGroup " + namespace + "/nobody",
		},
		{
			name: "another namespace than the identity's is PermissionDenied",
			edit: func(m *vm) { m.namespace = "default" },
			code: codes.PermissionDenied, says: "authorization failed",
		},
		{
			name: "another service account than the identity's is PermissionDenied",
			edit: func(m *vm) { m.account = "other-sa" },
			code: codes.PermissionDenied, says: "authorization failed",
		},
		{
			name: "a node that hides its account is held to the group's",
			edit: func(m *vm) { m.account = "" },
			cred: func(t *testing.T) credential {
				return credential{token: mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: "other-sa", Audience: caAudience})}
			},
			code: codes.Unknown, says: "service account mismatch",
		},
		{
			name: "no credential is Unauthenticated",
			cred: func(*testing.T) credential { return credential{} },
			code: codes.Unauthenticated, says: "authentication failure",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, cred := newVM(t, cp), token(t, cp)
			if c.edit != nil {
				c.edit(&m)
			}
			if c.cred != nil {
				cred = c.cred(t)
			}
			a := openADS(t, cp, cred, delta)
			a.send(message{typeURL: nameTableType, node: m.node(t)})
			_, err := a.receive()
			if got := status.Convert(err); got.Code() != c.code || !strings.Contains(got.Message(), c.says) {
				t.Errorf("stream ended with %v: %q, want %v with %q", got.Code(), got.Message(), c.code, c.says)
			}
		})
	}

	t.Run("a first request without a node is InvalidArgument", func(t *testing.T) {
		a := openADS(t, cp, token(t, cp), delta)
		a.send(message{typeURL: nameTableType})
		if _, err := a.receive(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("stream ended with %v, want InvalidArgument", err)
		}
	})
}

func health(t *testing.T, cp ControlPlane) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			t.Run("reports become the condition Healthy of the entry", func(t *testing.T) {
				m := newVM(t, cp)
				a := join(t, cp, m, token(t, cp), kind.delta)
				if e := waitEntry(t, cp, m.entryName(), nil); e.Healthy != "" {
					t.Errorf("condition Healthy is %q before any report, want none", e.Healthy)
				}
				a.send(message{typeURL: healthType})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "True" })
				a.send(message{typeURL: healthType, reason: "connection refused"})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "False" && e.Message == "connection refused" })
				a.send(message{typeURL: healthType})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "True" })
			})

			t.Run("the condition outlives a reconnect", func(t *testing.T) {
				m := newVM(t, cp)
				a := join(t, cp, m, token(t, cp), kind.delta)
				waitEntry(t, cp, m.entryName(), nil)
				a.send(message{typeURL: healthType, reason: "gone"})
				waitEntry(t, cp, m.entryName(), func(e Entry) bool { return e.Healthy == "False" })
				a.close()
				join(t, cp, m, token(t, cp), kind.delta)
				if e := waitEntry(t, cp, m.entryName(), nil); e.Healthy != "False" {
					t.Errorf("condition Healthy is %q after a reconnect, want False still", e.Healthy)
				}
			})

			t.Run("a report before the first request is dropped", func(t *testing.T) {
				m := newVM(t, cp)
				a := openADS(t, cp, token(t, cp), kind.delta)
				a.send(message{typeURL: healthType})
				a.send(message{typeURL: nameTableType, node: m.node(t)})
				a.expect(nameTableType)
				if e := waitEntry(t, cp, m.entryName(), nil); e.Healthy != "" {
					t.Errorf("condition Healthy is %q, want none", e.Healthy)
				}
			})
		})
	}
}
