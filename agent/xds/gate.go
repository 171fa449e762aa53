package xds

import (
	"context"
	"errors"
	"math"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Gate is where Envoy asks for its configuration: it serves ADS on one socket and hands each stream to the Client that there is at the moment. A
// Client lives as long as a set of settings and an address, the socket and Envoy live longer. Make it with NewGate.
type Gate struct {
	mu      sync.Mutex // guards everything below
	behind  *attachment
	changed chan struct{} // closed and replaced when behind changes
}

// attachment is a Client for as long as it serves.
type attachment struct {
	client  *Client
	ctx     context.Context
	streams sync.WaitGroup
}

// errDetached ends Envoy's streams when their Client makes way for another.
var errDetached = errors.New("the agent joins again")

// NewGate returns a gate with nobody behind it: streams wait until somebody is.
func NewGate() *Gate { return &Gate{changed: make(chan struct{})} }

// Attach sends Envoy's streams to c until ctx ends, and returns nil when the last of them has ended. One Client at a time.
func (g *Gate) Attach(ctx context.Context, c *Client) error {
	a := &attachment{client: c, ctx: ctx}
	g.put(a)
	<-ctx.Done()
	g.put(nil)
	a.streams.Wait()
	return nil
}

func (g *Gate) put(a *attachment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.behind = a
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits for a Client and counts a stream of its; leave ends the count. It returns nil when ctx ends first.
func (g *Gate) enter(ctx context.Context) *attachment {
	for {
		g.mu.Lock()
		a, changed := g.behind, g.changed
		if a != nil && a.ctx.Err() == nil {
			a.streams.Add(1)
			g.mu.Unlock()
			return a
		}
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Serve serves ADS to Envoy on l until ctx ends, and returns nil then. Each stream that Envoy opens gets a fresh stream to istiod, because on a
// living delta stream istiod leaves a repeated first request without an answer (pilot/pkg/xds/delta.go). Messages pass as
// bytes; the types that the agent owns are added to the stream and kept from Envoy.
func (g *Gate) Serve(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.MaxRecvMsgSize(math.MaxInt32),
		grpc.WaitForHandlers(true), // their last words to istiod are still on the way
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return g.handle(stream) }),
	)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// handle lives as long as one stream of Envoy.
func (g *Gate) handle(stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if method != deltaMethod && method != sotwMethod {
		return status.Errorf(codes.Unimplemented, "this socket serves ADS, not %s", method)
	}
	a := g.enter(stream.Context())
	if a == nil {
		return nil // Envoy has gone
	}
	defer a.streams.Done()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	stop := context.AfterFunc(a.ctx, func() { cancel(errDetached) })
	defer stop()
	return a.client.serveEnvoy(ctx, stream, method == deltaMethod)
}
