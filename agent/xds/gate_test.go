package xds_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"wingman/agent/xds"
	"wingman/test/controlplane"
)

// gate serves an xds.Gate until the test ends.
func gate(t *testing.T) (*xds.Gate, discoveryv3.AggregatedDiscoveryServiceClient) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xds.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g := xds.NewGate()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- g.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return g, discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
}

// attach puts a client behind a gate; the function returned takes it away and waits until Attach has returned.
func attach(t *testing.T, g *xds.Gate, c *xds.Client) (detach func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Attach(ctx, c) }()
	return func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Attach = %v, want nil", err)
			}
		case <-time.After(patience):
			t.Fatal("Attach does not return after its context ended")
		}
	}
}

func TestEnvoyWaitsAtTheGateForAClientAndMovesOnToTheNext(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	clusters(istiod, "outbound|80||webapp")
	g, ads := gate(t)

	early := dialEnvoy(t, ads)
	early.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	first := newVM(t, istiod, true, nil)
	first.client.ReportHealth(xds.Health{Healthy: true})
	detach := attach(t, g, first.client)
	if r := early.recv(); len(r.GetResources()) != 1 {
		t.Fatalf("an Envoy that came before the client got %v, want its cluster", r)
	}
	first.wait(0, "health on Envoy's stream", kind(controlplane.HealthReported))

	// The client makes way: istiod hears its last word, Envoy is sent away and comes back to the next client.
	first.client.ReportHealth(xds.Health{Reason: "leaving"})
	detach()
	if !slices.ContainsFunc(istiod.Events(), func(e controlplane.Event) bool { return e.Kind == controlplane.HealthReported && e.Detail == "leaving" }) {
		t.Error("Attach has returned, and the last word has not reached istiod")
	}
	for {
		if _, err := early.stream.Recv(); err != nil {
			break
		}
	}
	again := dialEnvoy(t, ads)
	again.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	second := newVM(t, istiod, true, nil)
	defer attach(t, g, second.client)()
	if r := again.recv(); len(r.GetResources()) != 1 {
		t.Errorf("the next client's Envoy got %v, want its cluster", r)
	}
}

// An Envoy that was started when the machine had another address or other labels still has them in its bootstrap file.
func TestIstiodSeesTheAgentsNodeAndWhatEnvoyWasBuiltWith(t *testing.T) {
	bothWires(t, func(t *testing.T, delta bool) {
		v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
		g, ads := gate(t)
		defer attach(t, g, v.client)()
		stale := node("forum")
		stale.Id = "sidecar~10.99.0.9~old-name.forum-services~forum-services.svc.cluster.local"
		stale.Metadata.Fields["NAMESPACE"].Kind = nil
		stale.UserAgentName = "envoy"
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		var err error
		if delta {
			s, openErr := ads.DeltaAggregatedResources(ctx)
			err = errors.Join(openErr, s.Send(&discoveryv3.DeltaDiscoveryRequest{Node: stale, TypeUrl: controlplane.ClusterType,
				InitialResourceVersions: map[string]string{"outbound|80||webapp": "1"}}))
		} else {
			s, openErr := ads.StreamAggregatedResources(ctx)
			err = errors.Join(openErr, s.Send(&discoveryv3.DiscoveryRequest{Node: stale, TypeUrl: controlplane.ClusterType}))
		}
		if err != nil {
			t.Fatal(err)
		}
		if e := v.wait(0, "a stream", kind(controlplane.RequestReceived)); e.Node != node("forum").GetId() {
			t.Errorf("istiod was told node %q, want the agent's %q", e.Node, node("forum").GetId())
		}
	})
}

func TestAFirstRequestWithoutANodeIsNotPassedOn(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	g, ads := gate(t)
	defer attach(t, g, v.client)()
	e := dialEnvoy(t, ads)
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.ClusterType})
	if r, err := e.stream.Recv(); err == nil {
		t.Errorf("a stream that names no node got %v, want its end", r)
	}
}

func TestWhatEnvoyRefusesShowsUntilItTakesALaterPush(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	g, ads := gate(t)
	defer attach(t, g, v.client)()
	e := dialEnvoy(t, ads)
	e.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	r := e.recv()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &statuspb.Status{Code: 13, Message: "no such transport socket"}})
	v.wait(0, "istiod hears the reason", func(e controlplane.Event) bool {
		return e.Kind == controlplane.Nacked && e.Detail == "no such transport socket"
	})
	if s := v.client.State(); s.EnvoyNACKs != 1 || s.EnvoyNACK["Cluster"] != "no such transport socket" {
		t.Errorf("state %+v, want the refusal of a Cluster and its reason", s)
	}

	n := len(v.istiod.Events())
	clusters(v.istiod, "outbound|80||webapp", "outbound|80||catalog")
	r = e.recv()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	v.wait(n, "the next push is taken", func(e controlplane.Event) bool {
		return e.Kind == controlplane.Acked && e.TypeURL == controlplane.ClusterType
	})
	if s := v.client.State(); s.EnvoyNACKs != 1 || len(s.EnvoyNACK) != 0 {
		t.Errorf("state %+v, want one refusal that is over", s)
	}
}

// shout turns the names of clusters into capitals, and wants nothing but clusters.
type shout struct{ seen map[string]bool }

func (s shout) Wants(typeURL string) bool { return typeURL == controlplane.ClusterType }

func (s shout) Fit(typeURL string, frame mem.BufferSlice) mem.BufferSlice {
	s.seen[typeURL] = true
	defer frame.Free()
	return mem.BufferSlice{mem.SliceBuffer(bytes.ReplaceAll(frame.Materialize(), []byte("webapp"), []byte("WEBAPP")))}
}

func TestPushesAreFittedToEnvoyAndToNobodyElse(t *testing.T) {
	seen := map[string]bool{}
	var firsts int
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, func(c *xds.Config) {
		c.Fit = func(first []byte, delta bool) xds.Fitter {
			var r discoveryv3.DeltaDiscoveryRequest
			if err := proto.Unmarshal(first, &r); err != nil || !delta || r.GetNode().GetUserAgentName() != "envoy" {
				t.Errorf("Fit was given %v (delta %t, %v), want Envoy's first request", &r, delta, err)
			}
			firsts++
			if firsts > 1 {
				return nil
			}
			return shout{seen}
		}
	})
	clusters(v.istiod, "outbound|80||webapp")
	g, ads := gate(t)
	defer attach(t, g, v.client)()
	for _, want := range []string{"outbound|80||WEBAPP", "outbound|80||webapp"} { // the second has no fitter
		e := dialEnvoy(t, ads)
		n := node("forum")
		n.UserAgentName = "envoy"
		e.send(&discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: controlplane.ClusterType})
		if r := e.recv(); len(r.GetResources()) != 1 || string(r.GetResources()[0].GetResource().GetValue()) != want {
			t.Errorf("Envoy got %v, want %s", r, want)
		}
		v.wait(0, "a table for the agent", func(e controlplane.Event) bool {
			return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable
		})
		e.cancel()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.tables) == 0 || v.tables[0].GetTable()["webapp.istioinaction.svc.cluster.local"] == nil || seen[xds.TypeNameTable] {
		t.Errorf("the agent's tables %v, fitted types %v; want a table as istiod sent it", v.tables, seen)
	}
}

// istiod takes the end of a stream for the end of the machine only when no stream was opened after it: were the newest one closed first, the
// WorkloadEntry would stay for good. Here the agent's own stream is slow to open, and Envoy comes meanwhile.
func TestTheStreamThatStaysIsTheOneOpenedLast(t *testing.T) {
	dialling, slow := make(chan struct{}), make(chan struct{})
	var dials atomic.Int32
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, func(c *xds.Config) {
		c.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				close(dialling)
				select {
				case <-slow:
				case <-ctx.Done():
				}
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}
	})
	v.client.ReportHealth(xds.Health{Healthy: true})
	dial := v.serveEnvoy()
	v.run()
	<-dialling
	e := dialEnvoy(t, dial())
	e.begin()
	close(slow)
	v.wait(0, "health, which comes after the first answer", kind(controlplane.HealthReported))
	n := len(v.istiod.Events())
	v.istiod.AddService("istioinaction", "catalog", "10.96.1.2")
	v.wait(n, "a push to whoever is there", func(e controlplane.Event) bool { return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable })
	stays := v.oneStream("with Envoy").ID
	for _, ev := range v.istiod.Events() {
		if ev.Kind == controlplane.StreamOpened && ev.Stream > stays {
			t.Errorf("stream %d stays, and %d was opened after it", stays, ev.Stream)
		}
	}
}
