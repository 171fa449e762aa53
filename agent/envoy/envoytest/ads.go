package envoytest

import (
	"net"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Types that an ADS serves.
const (
	TypeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// Resource is a named message of one type.
type Resource struct {
	Name string
	proto.Message
}

// ADS is a control plane for one Envoy: it answers each type's first request with what Set put there, and nothing else.
type ADS struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	mu      sync.Mutex // guards everything below
	types   map[string][]Resource
	refused []string // reasons of NACKs
	nodes   []string // ids of the nodes that came
}

// NewADS serves on a unix socket until the test ends.
func NewADS(t testing.TB, socket string) *ADS {
	t.Helper()
	a := &ADS{types: map[string][]Resource{}}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.WaitForHandlers(true))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, a)
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Errorf("control plane: %v", err)
		}
	})
	return a
}

// Set replaces what a type's next first request is answered with.
func (a *ADS) Set(typeURL string, resources ...Resource) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.types[typeURL] = resources
}

// Refused are the reasons of every NACK so far.
func (a *ADS) Refused() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.refused...)
}

// Nodes are the ids of the nodes that opened streams, in order.
func (a *ADS) Nodes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.nodes...)
}

// DeltaAggregatedResources is the incremental protocol.
func (a *ADS) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	seen := map[string]bool{}
	for {
		req, err := s.Recv()
		if err != nil {
			return nil // Envoy went away
		}
		resources, first := a.note(seen, req.Node.GetId(), req.TypeUrl, req.ErrorDetail.GetMessage())
		if !first {
			continue
		}
		res := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: req.TypeUrl}
		for _, r := range resources {
			packed, err := anypb.New(r.Message)
			if err != nil {
				return err
			}
			res.Resources = append(res.Resources, &discoveryv3.Resource{Name: r.Name, Version: "1", Resource: packed})
		}
		if err := s.Send(res); err != nil {
			return nil
		}
	}
}

// StreamAggregatedResources is the state-of-the-world protocol.
func (a *ADS) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	seen := map[string]bool{}
	for {
		req, err := s.Recv()
		if err != nil {
			return nil // Envoy went away
		}
		resources, first := a.note(seen, req.Node.GetId(), req.TypeUrl, req.ErrorDetail.GetMessage())
		if !first {
			continue
		}
		res := &discoveryv3.DiscoveryResponse{TypeUrl: req.TypeUrl, Nonce: req.TypeUrl, VersionInfo: "1"}
		for _, r := range resources {
			packed, err := anypb.New(r.Message)
			if err != nil {
				return err
			}
			res.Resources = append(res.Resources, packed)
		}
		if err := s.Send(res); err != nil {
			return nil
		}
	}
}

// note takes a request in, and returns the answer to a type's first one.
func (a *ADS) note(seen map[string]bool, node, typeURL, refusal string) (answer []Resource, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if node != "" {
		a.nodes = append(a.nodes, node)
	}
	if refusal != "" {
		a.refused = append(a.refused, refusal)
	}
	first = !seen[typeURL]
	seen[typeURL] = true
	return a.types[typeURL], first
}
