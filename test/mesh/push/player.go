package push

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Types that Envoy subscribes to, in its order: the next one when the answer to the one before is taken in.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeEndpoint = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
)

// Envoy's windows (source/common/http/http2/codec_impl.h): of a stream, and of a connection.
const (
	streamWindow     = 16 << 20
	connectionWindow = 24 << 20
)

// bytesCodec hands messages through gRPC as bytes: the player decodes when it has them all, so that what it does not take part in
// the time until it has them.
type bytesCodec struct{}

var _ encoding.CodecV2 = bytesCodec{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// player speaks delta ADS as Envoy does.
type player struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	ended  chan struct{} // closed when the stream has ended

	listening bool     // listeners were subscribed to
	routes    []string // watched so far

	mu   sync.Mutex // guards everything below
	had  []arrival
	news chan struct{} // closed and replaced when had grows
	err  error         // set before ended is closed
}

// arrival is one push that the player was sent.
type arrival struct {
	typeURL   string
	resources []string // their names
	bytes     int
	at        time.Time // when all of it was there
}

// play connects to an agent's ADS socket by dial and says the first words of a stream. From then on it takes in whatever comes.
func play(ctx context.Context, node *corev3.Node, dial func(context.Context) (net.Conn, error)) (*player, error) {
	conn, err := grpc.NewClient("passthrough:///agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(1<<30)),
	)
	if err != nil {
		return nil, err
	}
	p := &player{conn: conn, ended: make(chan struct{}), news: make(chan struct{})}
	const method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	if p.stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if err := p.send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: typeCluster}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go p.run()
	return p, nil
}

// close ends the connection and waits until nothing more comes.
func (p *player) close() error {
	err := p.conn.Close()
	<-p.ended
	return err
}

// run takes pushes in until the stream ends.
func (p *player) run() {
	defer close(p.ended)
	for {
		err := p.receive()
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			return
		}
	}
}

func (p *player) receive() error {
	var b []byte
	if err := p.stream.RecvMsg(&b); err != nil {
		return err
	}
	a := arrival{bytes: len(b), at: time.Now()}
	r := new(discoveryv3.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(b, r); err != nil {
		return err
	}
	a.typeURL = r.TypeUrl
	for _, x := range r.Resources {
		a.resources = append(a.resources, x.Name)
	}
	if err := p.take(r); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.had = append(p.had, a)
	close(p.news)
	p.news = make(chan struct{})
	return nil
}

func (p *player) send(r *discoveryv3.DeltaDiscoveryRequest) error {
	b, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	return p.stream.SendMsg(&b)
}

// seen returns the pushes so far, from the given one on.
func (p *player) seen(from int) []arrival {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.had[from:]
}

// until waits until enough is true of the pushes from the given one on.
func (p *player) until(ctx context.Context, from int, enough func([]arrival) bool) error {
	for {
		p.mu.Lock()
		had, news := p.had[from:], p.news
		p.mu.Unlock()
		if enough(had) {
			return nil
		}
		select {
		case <-news:
		case <-p.ended:
			return fmt.Errorf("the agent ended the stream: %w", p.err)
		case <-ctx.Done():
			return fmt.Errorf("%w after %d pushes", ctx.Err(), len(had))
		}
	}
}

// take subscribes to what an answer leads to, and acknowledges it.
func (p *player) take(a *discoveryv3.DeltaDiscoveryResponse) error {
	var next string
	var names []string
	switch a.TypeUrl {
	case typeCluster:
		next = typeEndpoint
		for _, r := range a.Resources {
			c := new(clusterv3.Cluster)
			if err := r.Resource.UnmarshalTo(c); err != nil {
				return err
			}
			if c.GetType() == clusterv3.Cluster_EDS {
				names = append(names, c.GetEdsClusterConfig().GetServiceName())
			}
		}
	case typeEndpoint:
		if !p.listening {
			next, p.listening = typeListener, true
		}
	case typeListener:
		next = typeRoute
		for _, r := range a.Resources {
			found, err := routesOf(r)
			if err != nil {
				return err
			}
			for _, name := range found {
				if !slices.Contains(p.routes, name) {
					p.routes, names = append(p.routes, name), append(names, name)
				}
			}
		}
	}
	if next == typeListener || len(names) > 0 {
		if err := p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: next, ResourceNamesSubscribe: names}); err != nil {
			return err
		}
	}
	return p.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: a.TypeUrl, ResponseNonce: a.Nonce})
}

// routesOf names the route configurations that a listener wants.
func routesOf(r *discoveryv3.Resource) (names []string, err error) {
	l := new(listenerv3.Listener)
	if err := r.Resource.UnmarshalTo(l); err != nil {
		return nil, err
	}
	for _, chain := range append(l.FilterChains, l.DefaultFilterChain) {
		for _, f := range chain.GetFilters() {
			m := new(hcmv3.HttpConnectionManager)
			if !f.GetTypedConfig().MessageIs(m) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				return nil, err
			}
			if rds := m.GetRds(); rds != nil {
				names = append(names, rds.RouteConfigName)
			}
		}
	}
	return names, nil
}
