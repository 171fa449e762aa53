package controlplane

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// discoveryService is envoy.service.discovery.v3.AggregatedDiscoveryService.
type discoveryService struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	s *Server
}

// StreamAggregatedResources serves a state-of-the-world stream.
func (d discoveryService) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return d.s.serveStream(g, &stream{
		recv: func() (request, *corev3.Node, error) {
			m, err := g.Recv()
			return request{
				typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), names: m.GetResourceNames(),
				nack: m.GetErrorDetail() != nil, message: m.GetErrorDetail().GetMessage(),
			}, m.GetNode(), err
		},
		send: func(a answer) error {
			m := &discoveryv3.DiscoveryResponse{TypeUrl: a.typeURL, VersionInfo: a.version, Nonce: a.nonce}
			for _, r := range a.resources {
				m.Resources = append(m.Resources, r.GetResource())
			}
			return g.Send(m)
		},
	})
}

// DeltaAggregatedResources serves a delta stream.
func (d discoveryService) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return d.s.serveStream(g, &stream{
		delta: true,
		recv: func() (request, *corev3.Node, error) {
			m, err := g.Recv()
			return request{
				typeURL: m.GetTypeUrl(), nonce: m.GetResponseNonce(), names: m.GetResourceNamesSubscribe(),
				unsubscribe: m.GetResourceNamesUnsubscribe(), initial: slices.Sorted(maps.Keys(m.GetInitialResourceVersions())),
				nack: m.GetErrorDetail() != nil, message: m.GetErrorDetail().GetMessage(),
			}, m.GetNode(), err
		},
		send: func(a answer) error {
			return g.Send(&discoveryv3.DeltaDiscoveryResponse{
				TypeUrl: a.typeURL, SystemVersionInfo: a.version, Nonce: a.nonce, Resources: a.resources, RemovedResources: a.removed,
			})
		},
	})
}

// stream is one ADS stream. Its fields are set before its first request is processed; watches belong to its one loop
// and are written under Server.mu, so that others may read them.
type stream struct {
	id       uint64
	delta    bool
	recv     func() (request, *corev3.Node, error)
	send     func(answer) error
	caller   caller
	node     node
	entry    objectKey // zero for a node that does not register
	openedAt time.Time
	watches  map[string]*watch
	dirty    map[string]bool // types to push; guarded by Server.mu
	push     chan struct{}   // holds one token while dirty is not empty
	cut      chan error      // ends the stream with that error
}

// answer is a response of either kind.
type answer struct {
	typeURL, version, nonce string
	resources               []*discoveryv3.Resource
	removed                 []string // delta
}

// serveStream runs a stream from authentication to its end. Istio: pilot/pkg/xds/delta.go StreamDeltas, pkg/xds/server.go Stream.
func (s *Server) serveStream(g grpc.ServerStream, st *stream) error {
	ctx := g.Context()
	if err := s.faults.streamError(); err != nil {
		s.note(Event{Kind: StreamRefused, Delta: st.delta, Code: status.Code(err), Detail: "by a lever"})
		return err
	}
	var err error
	if st.caller, err = s.authenticate(ctx); err != nil {
		s.note(Event{Kind: StreamRefused, Delta: st.delta, Code: codes.Unauthenticated, Detail: err.Error()})
		return status.Error(codes.Unauthenticated, "authentication failure")
	}
	first, err := s.open(st)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		s.note(Event{Kind: StreamRefused, Delta: st.delta, Identity: st.caller.identity, Code: status.Code(err), Detail: err.Error()})
		return err
	}
	err = s.loop(ctx, st, first)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st.id)
	s.disconnectLocked(st)
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	s.noteLocked(Event{Kind: StreamClosed, Stream: st.id, Node: st.node.id, Delta: st.delta, Code: status.Code(err), Detail: detail})
	return err
}

// open reads the first request that counts, checks its node and registers it. Health reports before it are dropped.
func (s *Server) open(st *stream) (request, error) {
	for {
		req, n, err := st.recv()
		if err != nil {
			return request{}, err
		}
		if req.typeURL == HealthType {
			s.note(Event{Kind: Violation, TypeURL: HealthType, Detail: "health report before the first request, dropped"})
			continue
		}
		if st.node, err = parseNode(n); err != nil {
			return request{}, err
		}
		if err := st.node.authorize(st.caller); err != nil {
			return request{}, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.streamSeq++
		st.id, st.openedAt = s.streamSeq, time.Now()
		st.watches, st.dirty = map[string]*watch{}, map[string]bool{}
		st.push, st.cut = make(chan struct{}, 1), make(chan error, 1)
		if err := s.connectLocked(st); err != nil {
			return request{}, err
		}
		s.streams[st.id] = st
		s.noteLocked(Event{
			Kind: StreamOpened, Stream: st.id, Node: st.node.id, Delta: st.delta, TypeURL: req.typeURL,
			Identity: st.caller.identity, By: st.caller.by, Entry: st.entry.String(),
		})
		return req, nil
	}
}

// loop answers requests and pushes until the client ends the stream, something fails, or the stream is cut.
func (s *Server) loop(ctx context.Context, st *stream, first request) error {
	requests := make(chan request)
	ended := make(chan error, 1)
	go func() { // ends when the handler returns, because gRPC then fails Recv
		for {
			req, _, err := st.recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()
	if err := s.process(ctx, st, first); err != nil {
		return err
	}
	for {
		select {
		case req := <-requests:
			if err := s.process(ctx, st, req); err != nil {
				return err
			}
		case <-st.push:
			if err := s.pushDirty(ctx, st); err != nil {
				return err
			}
		case err := <-st.cut:
			return err
		case err := <-ended:
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				return nil
			}
			return err
		}
	}
}

// process handles one request of an open stream.
func (s *Server) process(ctx context.Context, st *stream, req request) error {
	if req.typeURL == HealthType {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.reportLocked(st, !req.nack, req.message)
		return nil
	}
	step := stepSotW
	if st.delta {
		step = stepDelta
	}
	s.mu.Lock()
	next, v := step(st.watches[req.typeURL], req)
	if next != nil {
		st.watches[req.typeURL] = next
	}
	if v.drop {
		delete(st.watches, req.typeURL)
	}
	s.noteLocked(Event{
		Kind: v.kind, Stream: st.id, Node: st.node.id, Delta: st.delta, TypeURL: req.typeURL,
		Nonce: req.nonce, Names: req.names, Detail: v.detail,
	})
	s.mu.Unlock()
	switch {
	case v.kind == Violation:
		return status.Error(codes.Internal, "istiod would have crashed: "+v.detail)
	case v.respond:
		return s.answer(ctx, st, req.typeURL, v.only)
	}
	return nil
}

// pushDirty sends every type that changed since the last push, in istiod's order.
func (s *Server) pushDirty(ctx context.Context, st *stream) error {
	s.mu.Lock()
	dirty := st.dirty
	st.dirty = map[string]bool{}
	s.mu.Unlock()
	for _, typeURL := range inPushOrder(dirty) {
		if err := s.answer(ctx, st, typeURL, nil); err != nil {
			return err
		}
	}
	return nil
}

// answer sends the current resources of one type: those in only, or all that are subscribed when only is nil.
// Types that istiod would not answer get nothing.
func (s *Server) answer(ctx context.Context, st *stream, typeURL string, only []string) error {
	mute, delay := s.faults.discovery(typeURL)
	if mute {
		return nil
	}
	if err := wait(ctx, delay); err != nil {
		return err
	}
	s.mu.Lock()
	w := st.watches[typeURL]
	if w == nil {
		s.mu.Unlock()
		return nil
	}
	a, ok, err := s.generateLocked(typeURL, w, only)
	if !ok || err != nil {
		s.mu.Unlock()
		return err
	}
	w = w.clone()
	w.sent = a.nonce
	if st.delta && wildcard(typeURL) {
		w.names = map[string]bool{}
		for _, r := range a.resources {
			w.names[r.GetName()] = true
		}
	}
	st.watches[typeURL] = w
	s.noteLocked(Event{Kind: Pushed, Stream: st.id, Node: st.node.id, Delta: st.delta, TypeURL: typeURL, Version: a.version, Nonce: a.nonce})
	s.mu.Unlock()
	return st.send(a)
}
