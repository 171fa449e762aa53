package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// envoyPart is Envoy's side of an agent.
type envoyPart struct {
	bootstrap string // the file that the agent makes for Envoy
	socket    string // where it serves ADS
}

// play takes Envoy's part until stop is called: what comes is taken in, and acknowledged.
func (e envoyPart) play(ctx context.Context) (stop func(), err error) {
	node, err := awaitNode(ctx, e.bootstrap)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix:"+e.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		return nil, err
	}
	streams, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for streams.Err() == nil {
			if err := subscribe(streams, conn, node); errors.Is(err, errRefused) {
				fmt.Fprintf(os.Stderr, "bench: %s: %v\n", e.socket, err)
				return
			}
		}
	}()
	return func() { cancel(); conn.Close(); <-ended }, nil
}

var errRefused = errors.New("it refuses the stream")

// subscribe keeps one stream for as long as it lasts.
func subscribe(ctx context.Context, conn *grpc.ClientConn, node *corev3.Node) error {
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	var names []string
	for i := range services {
		names = append(names, "outbound|80||"+host(i))
	}
	for _, r := range []*discoveryv3.DeltaDiscoveryRequest{
		{Node: node, TypeUrl: clusterType}, {TypeUrl: endpointType, ResourceNamesSubscribe: names},
		{TypeUrl: listenerType}, {TypeUrl: routeType, ResourceNamesSubscribe: []string{routes}},
	} {
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	for {
		r, err := stream.Recv()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), status.Code(err) == codes.Unavailable, status.Code(err) == codes.Canceled:
			return err
		default:
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
	}
}

// awaitNode reads who the agent says that Envoy is.
func awaitNode(ctx context.Context, bootstrap string) (*corev3.Node, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var file struct{ Node json.RawMessage }
		raw, err := os.ReadFile(bootstrap)
		if err == nil {
			err = json.Unmarshal(raw, &file)
		}
		if err == nil {
			node := new(corev3.Node)
			return node, protojson.Unmarshal(file.Node, node)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the agent made no bootstrap file for Envoy: %w", err)
		case <-tick.C:
		}
	}
}

// What Envoy asks for, in its order. Only when it asks for listeners does pilot-agent ask for names.
const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// routes is the one route configuration, of all services at port 80.
const routes = "80"

// envoyResources are what istiod tells Envoy of the services, by type, in about as many bytes: 18 MB (test/mesh/push).
func envoyResources() map[string]map[string]*anypb.Any {
	pack := func(m proto.Message) *anypb.Any {
		packed, err := anypb.New(m)
		if err != nil {
			panic(err) // no message of ours is too large for protobuf
		}
		return packed
	}
	all := map[string]map[string]*anypb.Any{clusterType: {}, endpointType: {}, routeType: {}}
	route := &routev3.RouteConfiguration{Name: routes}
	for i := range services {
		name := "outbound|80||" + host(i)
		all[clusterType][name] = pack(clusterOf(i, name))
		all[endpointType][name] = pack(endpointsOf(i, name))
		route.VirtualHosts = append(route.VirtualHosts, virtualHostOf(i, name))
	}
	all[routeType][routes] = pack(route)
	return all
}

// about is metadata as Istio adds it to everything.
func about(i int) *corev3.Metadata {
	field := structpb.NewStringValue
	service := structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
		"host": field(host(i)), "name": field(fmt.Sprintf("service-%d", i)), "namespace": field(fmt.Sprintf("namespace-%d", i%namespaces))}})
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
		"config":            field(fmt.Sprintf("/apis/networking.istio.io/v1/namespaces/namespace-%d/destination-rule/service-%d", i%namespaces, i)),
		"default_original":  structpb.NewNumberValue(80),
		"services":          structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{service}}),
		"subjectAltNames":   field(fmt.Sprintf("spiffe://cluster.local/ns/namespace-%d/sa/service-%d", i%namespaces, i)),
		"canonicalRevision": field("latest")}}}}
}

// clusterOf is pilot/pkg/networking/core/cluster.go's.
func clusterOf(i int, name string) *clusterv3.Cluster {
	most := wrapperspb.UInt32(1<<32 - 1)
	return &clusterv3.Cluster{
		Name:                 name,
		AltStatName:          name + ";",
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{ServiceName: name, EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}, ResourceApiVersion: corev3.ApiVersion_V3, InitialFetchTimeout: durationpb.New(0)}},
		ConnectTimeout: durationpb.New(10 * time.Second),
		LbPolicy:       clusterv3.Cluster_LEAST_REQUEST,
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{
			{MaxConnections: most, MaxPendingRequests: most, MaxRequests: most, MaxRetries: most, TrackRemaining: true}}},
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{},
		Metadata:       about(i),
	}
}

func endpointsOf(i int, name string) *endpointv3.ClusterLoadAssignment {
	at := &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: "10.97.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 80}}}}
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
		{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: at}}, LoadBalancingWeight: wrapperspb.UInt32(1),
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
				"workload": structpb.NewStringValue(fmt.Sprintf(";namespace-%d;service-%d;latest;west-cluster", i%namespaces, i))}}}}}}}}}
}

func virtualHostOf(i int, name string) *routev3.VirtualHost {
	short := fmt.Sprintf("service-%d.namespace-%d", i, i%namespaces)
	return &routev3.VirtualHost{
		Name: host(i) + ":80", Domains: []string{host(i), short, short + ".svc", address(i)}, IncludeRequestAttemptCount: true,
		Routes: []*routev3.Route{{
			Name:  "default",
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{
				ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}, Timeout: durationpb.New(0),
				RetryPolicy: &routev3.RetryPolicy{RetryOn: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", NumRetries: wrapperspb.UInt32(2)}}},
			Decorator: &routev3.Decorator{Operation: host(i) + ":80/*"},
		}},
	}
}
