package controlplane

import (
	"slices"
	"testing"
)

// TestSubscriptionSteps walks streams request by request: who gets an answer is what clients lean on.
func TestSubscriptionSteps(t *testing.T) {
	type exchange struct {
		request request
		kind    EventKind
		respond bool
		only    []string
		sent    string // nonce of the answer that is then sent
	}
	eds := EndpointType
	for _, c := range []struct {
		name  string
		delta bool
		steps []exchange
	}{
		{"delta: a first request is answered, its ACK is not", true, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType, nonce: "n1"}, kind: Acked},
		}},
		{"delta: a repeated first request is not answered", true, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType}, kind: RequestReceived},
		}},
		{"delta: a repeated request for * is answered, because * is never kept", true, []exchange{
			{request: request{typeURL: ClusterType, names: []string{"*"}}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: ClusterType, names: []string{"*"}}, kind: RequestReceived, respond: true},
		}},
		{"delta: an ACK with an old nonce is stale and changes nothing", true, []exchange{
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, respond: true, only: []string{"a"}, sent: "n1"},
			{request: request{typeURL: eds, names: []string{"b"}}, kind: RequestReceived, respond: true, only: []string{"b"}, sent: "n2"},
			{request: request{typeURL: eds, nonce: "n1", names: []string{"c"}}, kind: StaleNonce},
			{request: request{typeURL: eds, names: []string{"c"}}, kind: RequestReceived, respond: true, only: []string{"c"}},
		}},
		{"delta: names known from before count as subscribed", true, []exchange{
			{request: request{typeURL: eds, initial: []string{"b", "a"}}, kind: RequestReceived, respond: true, only: []string{"a", "b"}, sent: "n1"},
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, only: []string{"a"}},
		}},
		{"delta: nothing but removals is not answered", true, []exchange{
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, respond: true, only: []string{"a"}, sent: "n1"},
			{request: request{typeURL: eds, unsubscribe: []string{"a"}}, kind: RequestReceived},
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, respond: true, only: []string{"a"}},
		}},
		{"delta: a NACK is noted and not answered", true, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType, nonce: "n1", nack: true, message: "no"}, kind: Nacked},
		}},
		{"delta: a NACK for a type that was never asked for crashes istiod", true, []exchange{
			{request: request{typeURL: NameTableType, nonce: "n1", nack: true}, kind: Violation},
		}},
		{"sotw: a repeated first request is answered again", false, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType, nonce: "n1"}, kind: Acked},
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true},
		}},
		{"sotw: an ACK with more names asks for those", false, []exchange{
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: eds, nonce: "n1", names: []string{"a", "c", "b"}}, kind: Acked, respond: true, only: []string{"b", "c"}},
		}},
		{"sotw: an ACK with fewer names is only an ACK", false, []exchange{
			{request: request{typeURL: eds, names: []string{"a", "b"}}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: eds, nonce: "n1", names: []string{"a"}}, kind: Acked},
		}},
		{"sotw: no names end the subscription of a type that has no wildcard", false, []exchange{
			{request: request{typeURL: eds, names: []string{"a"}}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: eds, nonce: "n1"}, kind: RequestReceived},
			{request: request{typeURL: eds, nonce: "n1", names: []string{"a"}}, kind: RequestReceived, respond: true},
		}},
		{"sotw: a nonce that was never sent is stale", false, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType, nonce: "n0"}, kind: StaleNonce},
		}},
		{"sotw: an ACK clears the error of a NACK", false, []exchange{
			{request: request{typeURL: NameTableType}, kind: RequestReceived, respond: true, sent: "n1"},
			{request: request{typeURL: NameTableType, nonce: "n1", nack: true, message: "no"}, kind: Nacked},
			{request: request{typeURL: NameTableType, nonce: "n1"}, kind: Acked},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			step := stepSotW
			if c.delta {
				step = stepDelta
			}
			var w *watch
			for i, x := range c.steps {
				next, v := step(w, x.request)
				if v.kind != x.kind || v.respond != x.respond || x.respond && !slices.Equal(v.only, x.only) {
					t.Fatalf("step %d, %+v: got %+v, want %s, respond %v, only %q", i, x.request, v, x.kind, x.respond, x.only)
				}
				if v.drop {
					next = nil
				}
				w = next
				if x.sent != "" {
					w = w.clone()
					w.sent = x.sent
				}
				if w != nil && x.kind == Nacked && w.lastError != x.request.message {
					t.Errorf("step %d: last error is %q, want %q", i, w.lastError, x.request.message)
				}
				if w != nil && x.kind == Acked && (w.lastError != "" || w.acked != x.request.nonce) {
					t.Errorf("step %d: after an ACK last error is %q and acked %q", i, w.lastError, w.acked)
				}
			}
		})
	}
}
