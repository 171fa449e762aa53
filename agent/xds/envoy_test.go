package xds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/xds"
	"wingman/test/controlplane"
)

// serveEnvoy opens the agent's ADS socket and returns a way for Envoys to dial it.
func (v *vm) serveEnvoy() func() discoveryv3.AggregatedDiscoveryServiceClient {
	v.t.Helper()
	g, ads := gate(v.t)
	v.t.Cleanup(attach(v.t, g, v.client))
	return func() discoveryv3.AggregatedDiscoveryServiceClient { return ads }
}

// envoy is a delta client as Envoy is one: it subscribes, acknowledges, and keeps what it was sent.
type envoy struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc
}

func dialEnvoy(t *testing.T, ads discoveryv3.AggregatedDiscoveryServiceClient) *envoy {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	s, err := ads.DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &envoy{t: t, stream: s, cancel: cancel}
}

func (e *envoy) send(r *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	if err := e.stream.Send(r); err != nil {
		e.t.Fatal(err)
	}
}

func (e *envoy) recv() *discoveryv3.DeltaDiscoveryResponse {
	e.t.Helper()
	r, err := e.stream.Recv()
	if err != nil {
		e.t.Fatal(err)
	}
	return r
}

// begin subscribes to clusters as the first words of a stream and acknowledges the answer.
func (e *envoy) begin() *discoveryv3.DeltaDiscoveryResponse {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	r := e.recv()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return r
}

func clusters(s *controlplane.Server, names ...string) {
	m := map[string]*anypb.Any{}
	for _, n := range names {
		m[n] = &anypb.Any{TypeUrl: controlplane.ClusterType, Value: []byte(n)}
	}
	s.SetResources(controlplane.ClusterType, m)
}

func (v *vm) oneStream(what string) controlplane.Stream {
	v.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if s := v.istiod.Streams(); len(s) == 1 {
			return s[0]
		} else if time.Now().After(deadline) {
			v.t.Fatalf("%s: istiod has %d streams, want 1: %+v", what, len(s), s)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestEnvoysStreamCarriesTheAgentsTypes(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	v.client.ReportHealth(xds.Health{Healthy: true})
	dial := v.serveEnvoy()
	v.run()
	v.wait(0, "health on the agent's own stream", kind(controlplane.HealthReported))
	own := v.oneStream("before Envoy")

	n := len(v.istiod.Events())
	e := dialEnvoy(t, dial())
	if r := e.begin(); r.GetTypeUrl() != controlplane.ClusterType || len(r.GetResources()) != 1 || string(r.GetResources()[0].GetResource().GetValue()) != "outbound|80||webapp" {
		t.Errorf("Envoy got %v, want its cluster as istiod sent it", r)
	}
	v.wait(n, "health on Envoy's stream", kind(controlplane.HealthReported))
	v.wait(n, "name table acknowledged there", func(e controlplane.Event) bool {
		return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable
	})
	v.wait(n, "clusters acknowledged there", func(e controlplane.Event) bool {
		return e.Kind == controlplane.Acked && e.TypeURL == controlplane.ClusterType
	})
	if s := v.oneStream("with Envoy"); s.ID == own.ID {
		t.Error("the agent's own stream stays, and Envoy's is gone")
	}
	if st := v.client.State(); !st.Envoy || st.Phase != xds.PhaseConnected {
		t.Errorf("state %+v, want connected by Envoy's stream", st)
	}

	// Pushes of the agent's types are its own business, the others Envoy's.
	n = len(v.istiod.Events())
	v.istiod.AddService("istioinaction", "catalog", "10.96.1.2")
	v.wait(n, "table acknowledged", func(e controlplane.Event) bool { return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable })
	clusters(v.istiod, "outbound|80||webapp", "outbound|80||catalog")
	for seen := false; !seen; {
		r := e.recv()
		if r.GetTypeUrl() == xds.TypeNameTable {
			t.Fatal("Envoy was sent a name table")
		}
		for _, res := range r.GetResources() {
			seen = seen || res.GetName() == "outbound|80||catalog"
		}
	}
}

func TestARestartedEnvoyGetsEverythingAgain(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	dial := v.serveEnvoy()
	v.run()
	for i := range 5 {
		e := dialEnvoy(t, dial())
		if r := e.begin(); len(r.GetResources()) != 1 {
			t.Fatalf("start %d: Envoy got %d clusters, want 1", i, len(r.GetResources()))
		}
		e.cancel() // killed
	}
	last := dialEnvoy(t, dial())
	last.begin()
	v.oneStream("after five restarts")
	for _, e := range v.istiod.Events() {
		if e.Kind == controlplane.Violation {
			t.Errorf("istiod was sent what crashes it: %s", e)
		}
		if e.Kind == controlplane.EntryRemoved {
			t.Errorf("the entry was removed meanwhile: %s", e)
		}
	}
}

func TestTheAgentGoesOnWhenEnvoyIsGone(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	dial := v.serveEnvoy()
	v.run()
	e := dialEnvoy(t, dial()) // at the same time as the agent's own: Envoy's is the one that stays
	e.begin()
	v.oneStream("with Envoy")
	if r := v.client.State(); !r.Envoy {
		t.Fatalf("state %+v, want Envoy's stream", r)
	}
	n := len(v.istiod.Events())
	e.cancel()
	opened := v.wait(n, "a stream of the agent's own", kind(controlplane.StreamOpened))
	v.wait(n, "a table on it", func(e controlplane.Event) bool {
		return e.Kind == controlplane.Acked && e.TypeURL == xds.TypeNameTable && e.Stream == opened.Stream
	})
	if st := v.client.State(); st.Envoy || st.Phase != xds.PhaseConnected {
		t.Errorf("state %+v, want connected by the agent's own stream", st)
	}
}

func TestIstiodsEndEndsEnvoysStream(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	dial := v.serveEnvoy()
	v.run()
	e := dialEnvoy(t, dial())
	e.begin()
	v.istiod.Stop()
	for {
		if _, err := e.stream.Recv(); err != nil {
			break // whatever the status: Envoy comes back
		}
	}
	// Envoy is back before istiod is: it waits, and is served as soon as the port is open.
	again := dialEnvoy(t, dial())
	again.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	if err := v.istiod.Start(); err != nil {
		t.Fatal(err)
	}
	if r := again.recv(); len(r.GetResources()) != 1 {
		t.Errorf("after istiod's restart Envoy got %v, want its cluster", r)
	}
}

func TestWhatBelongsToAnOlderStreamIsNotPassedOn(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	clusters(v.istiod, "outbound|80||webapp")
	dial := v.serveEnvoy()
	v.run()
	e := dialEnvoy(t, dial())
	e.begin()
	// A NACK of a type that this stream never asked for crashed istiod; a stray request for the agent's own types would confuse it.
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.ListenerType, ResponseNonce: "of another stream", ErrorDetail: &statuspb.Status{Code: 13, Message: "no"}})
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: xds.TypeHealth})
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.RouteType, ResourceNamesSubscribe: []string{"80"}})
	v.wait(0, "the route request, sent last", func(e controlplane.Event) bool {
		return e.Kind == controlplane.RequestReceived && e.TypeURL == controlplane.RouteType
	})
	for _, e := range v.istiod.Events() {
		if e.Kind == controlplane.Violation || e.TypeURL == controlplane.ListenerType || e.Kind == controlplane.HealthReported {
			t.Errorf("passed on: %s", e)
		}
	}
}

func TestTheSocketServesNothingElse(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	dial := v.serveEnvoy()
	v.run()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	sotw, err := dial().StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := sotw.Send(&discoveryv3.DiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if r, err := sotw.Recv(); err != nil || r.GetTypeUrl() != controlplane.ClusterType {
		t.Errorf("state of the world by Envoy's choice = %v, %v; want clusters", r, err)
	}
	if err := sotw.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := sotw.Recv(); err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() != nil {
				t.Errorf("after Envoy's end: %v", err)
			}
			break
		}
	}
}

// istiod does not read while it sends, so a push that nobody reads and a request that nobody reads would wait for each other.
func TestLargeRequestsAndLargePushesDoNotWaitForEachOther(t *testing.T) {
	v := newVM(t, newIstiod(t, controlplane.Config{}), true, nil)
	const requests = 8
	routes := map[string]*anypb.Any{}
	for i := range requests {
		routes[fmt.Sprint("route-", i)] = &anypb.Any{TypeUrl: controlplane.RouteType, Value: make([]byte, 2<<20)}
	}
	v.istiod.SetResources(controlplane.RouteType, routes)
	v.istiod.SetResources(controlplane.ClusterType, map[string]*anypb.Any{"large": {TypeUrl: controlplane.ClusterType, Value: make([]byte, 3<<20)}})
	dial := v.serveEnvoy()
	v.run()
	e := dialEnvoy(t, dial())
	e.send(&discoveryv3.DeltaDiscoveryRequest{Node: node("forum"), TypeUrl: controlplane.ClusterType})
	for i := range requests {
		names := []string{fmt.Sprint("route-", i)}
		for n := range 10_000 { // as many as a large mesh has clusters: the request is larger than what is sent unread
			names = append(names, fmt.Sprintf("outbound|80||service-%d.namespace-%d.svc.cluster.local", n, i))
		}
		e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.RouteType, ResourceNamesSubscribe: names})
	}
	for waiting := 1 + requests; waiting > 0; {
		r, err := e.stream.Recv()
		if err != nil {
			t.Fatalf("%d answers are missing: %v", waiting, err)
		}
		waiting -= len(r.GetResources())
	}
}
