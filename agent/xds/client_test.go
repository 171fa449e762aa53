package xds_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"wingman/agent/xds"
	"wingman/agent/xds/discovery"
	"wingman/agent/xds/nds"
	"wingman/test/controlplane"
)

// patience bounds every wait of these tests; none of them takes a tenth of it.
const patience = 20 * time.Second

// vm is a client of a stand-in control plane, and what its handler was given.
type vm struct {
	t      *testing.T
	istiod *controlplane.Server
	client *xds.Client
	cancel context.CancelFunc
	done   chan error

	mu     sync.Mutex
	tables []*nds.NameTable // taken in, oldest first
	refuse string           // names tables to refuse: those that hold this host
}

func newIstiod(t *testing.T, cfg controlplane.Config) *controlplane.Server {
	t.Helper()
	s := controlplane.Run(t, cfg)
	s.AddGroup(controlplane.Group{Namespace: "forum-services", Name: "forum", ServiceAccount: "forum-sa"})
	s.AddService("istioinaction", "webapp", "10.96.97.98")
	return s
}

func newVM(t *testing.T, istiod *controlplane.Server, delta bool, change func(*xds.Config)) *vm {
	t.Helper()
	token, err := istiod.MintToken(controlplane.TokenOptions{Namespace: "forum-services", ServiceAccount: "forum-sa"})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(istiod.RootPEM())
	v := &vm{t: t, istiod: istiod, done: make(chan error, 1)}
	cfg := xds.Config{
		Address: istiod.Addr(),
		Delta:   delta,
		Node:    func(context.Context) (*discovery.Node, error) { return own(node("forum")), nil },
		TLS:     func() *tls.Config { return &tls.Config{RootCAs: roots, ServerName: istiod.ServerName()} },
		Token:   func() string { return token },
		Subscriptions: []xds.Subscription{{TypeURL: xds.TypeNameTable, Handle: func(p xds.Push) error {
			for _, r := range p.Resources {
				var table nds.NameTable
				if err := proto.Unmarshal(r.GetValue(), &table); err != nil {
					return err
				}
				v.mu.Lock()
				if _, bad := table.GetTable()[v.refuse]; bad {
					v.mu.Unlock()
					return errors.New("host " + v.refuse + " has no usable address")
				}
				v.tables = append(v.tables, &table)
				v.mu.Unlock()
			}
			return nil
		}}},
	}
	if change != nil {
		change(&cfg)
	}
	v.client, err = xds.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vm) run() {
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	go func() { v.done <- v.client.Run(ctx) }()
	v.t.Cleanup(v.stop)
}

func (v *vm) stop() {
	v.cancel()
	select {
	case err, open := <-v.done:
		if open && err != nil {
			v.t.Errorf("Run = %v, want nil after its context ended", err)
		}
	case <-time.After(patience):
		v.t.Error("Run does not return after its context ended")
	}
	select {
	case <-v.done:
	default:
		close(v.done)
	}
}

// wait returns the first event after the first n that matches.
func (v *vm) wait(n int, what string, match func(controlplane.Event) bool) controlplane.Event {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := v.istiod.WaitEventAfter(ctx, n, match)
	if err != nil {
		var seen []string
		for _, e := range v.istiod.Events() {
			seen = append(seen, e.String())
		}
		v.t.Fatalf("no event %q: %v; client %+v; events:\n%s", what, err, v.client.State(), strings.Join(seen, "\n"))
	}
	return e
}

func kind(k controlplane.EventKind) func(controlplane.Event) bool {
	return func(e controlplane.Event) bool { return e.Kind == k }
}

// node is a machine as Envoy names it.
func node(group string) *corev3.Node {
	md, err := structpb.NewStruct(map[string]any{
		"AUTO_REGISTER_GROUP": group, "NAMESPACE": "forum-services", "SERVICE_ACCOUNT": "forum-sa", "INSTANCE_IPS": "10.99.0.2",
		"PROXY_CONFIG": map[string]any{"readinessProbe": map[string]any{"httpGet": map[string]any{"port": 8080.0}}},
	})
	if err != nil {
		panic(err)
	}
	return &corev3.Node{Id: "sidecar~10.99.0.2~forum-vm.forum-services~forum-services.svc.cluster.local", Cluster: "forum.forum-services", Metadata: md}
}

// own is the same as the agent names it.
func own(n *corev3.Node) *discovery.Node {
	return &discovery.Node{Id: n.GetId(), Cluster: n.GetCluster(), Metadata: n.GetMetadata()}
}

// bothWires runs a test in delta and in state of the world.
func bothWires(t *testing.T, f func(t *testing.T, delta bool)) {
	for _, delta := range []bool{true, false} {
		t.Run(fmt.Sprintf("delta=%v", delta), func(t *testing.T) { f(t, delta) })
	}
}

func TestNameTableIsTheFirstRequestAndIsAcknowledged(t *testing.T) {
	bothWires(t, func(t *testing.T, delta bool) {
		v := newVM(t, newIstiod(t, controlplane.Config{}), delta, nil)
		v.client.ReportHealth(xds.Health{Healthy: true})
		v.run()
		v.wait(0, "health", kind(controlplane.HealthReported))
		var order []string
		for _, e := range v.istiod.Events() {
			switch e.Kind {
			case controlplane.RequestReceived, controlplane.Acked, controlplane.Nacked, controlplane.HealthReported, controlplane.Violation:
				order = append(order, string(e.Kind))
			}
		}
		want := "request received, acked, health reported"
		if got := strings.Join(order, ", "); got != want {
			t.Errorf("istiod saw %s, want %s", got, want)
		}
		if e := v.wait(0, "ack", kind(controlplane.Acked)); e.TypeURL != xds.TypeNameTable {
			t.Errorf("acked %s, want the name table", e.TypeURL)
		}
	})
}

func TestUnusablePushIsRefusedAndTheNextOneTaken(t *testing.T) {
	bothWires(t, func(t *testing.T, delta bool) {
		v := newVM(t, newIstiod(t, controlplane.Config{}), delta, nil)
		v.refuse = "bad.corp.internal"
		v.run()
		good := v.wait(0, "first ack", kind(controlplane.Acked))
		n := len(v.istiod.Events())
		v.istiod.SetNames(controlplane.Names(map[string][]string{"bad.corp.internal": {"10.0.0.1"}}))
		nack := v.wait(n, "nack", kind(controlplane.Nacked))
		if !strings.Contains(nack.Detail, "bad.corp.internal") {
			t.Errorf("NACK says %q, want the reason", nack.Detail)
		}
		if s := v.client.State(); s.NACKs != 1 || !strings.Contains(s.LastNACK, "bad.corp.internal") {
			t.Errorf("state %+v, want one NACK and its reason", s)
		}
		for _, s := range v.istiod.Streams() {
			if w := s.Watches[xds.TypeNameTable]; w.Acked != good.Nonce && w.Acked == nack.Nonce {
				t.Errorf("istiod believes that the refused push was acknowledged: %+v", w)
			}
		}
		n = len(v.istiod.Events())
		v.istiod.SetNames(controlplane.Names(map[string][]string{"good.corp.internal": {"10.0.0.1"}}))
		v.wait(n, "second ack", kind(controlplane.Acked))
		if s := v.client.State(); s.LastNACK != "" {
			t.Errorf("state still says %q after a good push", s.LastNACK)
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if len(v.tables) != 2 {
			t.Errorf("handler took %d tables, want 2: the first and the last", len(v.tables))
		}
	})
}

func TestHealthIsSentOnChangeAndOnEachNewStream(t *testing.T) {
	bothWires(t, func(t *testing.T, delta bool) {
		v := newVM(t, newIstiod(t, controlplane.Config{}), delta, nil)
		v.run()
		v.wait(0, "ack", kind(controlplane.Acked))
		v.client.ReportHealth(xds.Health{Reason: "GET http://10.99.0.2:8080/: connection refused"})
		if e := v.wait(0, "health", kind(controlplane.HealthReported)); e.Healthy || !strings.Contains(e.Detail, "connection refused") {
			t.Errorf("istiod was told %+v, want unhealthy with the reason", e)
		}
		n := len(v.istiod.Events())
		v.client.ReportHealth(xds.Health{Healthy: true})
		if e := v.wait(n, "health", kind(controlplane.HealthReported)); !e.Healthy {
			t.Errorf("istiod was told %+v, want healthy", e)
		}
		n = len(v.istiod.Events())
		v.istiod.Faults().DropConnections()
		if e := v.wait(n, "health on the new stream", kind(controlplane.HealthReported)); !e.Healthy {
			t.Errorf("istiod was told %+v, want healthy", e)
		}
	})
}

func TestClientComesBack(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(*controlplane.Server)
	}{
		{"after a reset", func(s *controlplane.Server) { s.Faults().DropConnections() }},
		{"after connection age", func(s *controlplane.Server) { s.Faults().DrainConnections(0) }},
		{"after the end of the stream", func(s *controlplane.Server) { s.Faults().EndStreams(codes.OK, "") }},
		{"after istiod's restart", func(s *controlplane.Server) {
			s.Stop()
			if err := s.Start(); err != nil {
				panic(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
			v.run()
			v.wait(0, "ack", kind(controlplane.Acked))
			n := len(v.istiod.Events())
			tc.fault(v.istiod)
			v.wait(n, "ack on a new stream", kind(controlplane.Acked))
		})
	}
}

func TestGracefulEndIsQuiet(t *testing.T) {
	var states []xds.State
	var mu sync.Mutex
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, func(c *xds.Config) {
		c.OnState = func(s xds.State) { mu.Lock(); states = append(states, s); mu.Unlock() }
	})
	v.run()
	v.wait(0, "ack", kind(controlplane.Acked))
	n := len(v.istiod.Events())
	v.istiod.Faults().DrainConnections(2 * time.Second) // the GOAWAY is read before the connection goes
	v.wait(n, "ack on a new stream", kind(controlplane.Acked))
	mu.Lock()
	defer mu.Unlock()
	for _, s := range states {
		if s.LastError != "" {
			t.Errorf("state %+v after a graceful end, want no error", s)
		}
	}
}

func TestUnknownGroupNamesIt(t *testing.T) {
	waiting := make(chan xds.State, 16)
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, func(c *xds.Config) {
		c.Node = func(context.Context) (*discovery.Node, error) { return own(node("nobody")), nil }
		c.OnState = func(s xds.State) {
			if s.Phase == xds.PhaseWaiting {
				select {
				case waiting <- s:
				default:
				}
			}
		}
	})
	v.run()
	select {
	case s := <-waiting:
		if !strings.Contains(s.LastError, "WorkloadGroup forum-services/nobody") {
			t.Errorf("error %q, want the group's name in it", s.LastError)
		}
	case <-time.After(patience):
		t.Fatal("no refusal")
	}
	// The operator makes the group: the client is let in by itself, at once when something tells it to try.
	v.istiod.AddGroup(controlplane.Group{Namespace: "forum-services", Name: "nobody", ServiceAccount: "forum-sa"})
	v.client.Retry()
	v.wait(0, "ack", kind(controlplane.Acked))
}

func TestStopSaysTheLastWord(t *testing.T) {
	bothWires(t, func(t *testing.T, delta bool) {
		v := newVM(t, newIstiod(t, controlplane.Config{Grace: time.Millisecond}), delta, nil)
		v.client.ReportHealth(xds.Health{Healthy: true})
		v.run()
		v.wait(0, "health", kind(controlplane.HealthReported))
		n := len(v.istiod.Events())
		v.client.ReportHealth(xds.Health{Reason: "leaving"})
		v.stop()
		if e := v.wait(n, "last health", kind(controlplane.HealthReported)); e.Healthy || e.Detail != "leaving" {
			t.Errorf("last word %+v, want unhealthy: leaving", e)
		}
		v.wait(n, "entry removed", kind(controlplane.EntryRemoved))
	})
}

func TestHealthIsSentEvenIfNobodyAnswersNameTables(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	istiod.Faults().Mute(xds.TypeNameTable)
	v := newVM(t, istiod, true, nil)
	v.client.ReportHealth(xds.Health{Healthy: true})
	v.run()
	v.wait(0, "health", kind(controlplane.HealthReported))
}
