package sds

import (
	"context"
	"errors"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wingman/agent/xds/discovery"
)

// service is envoy/service/secret/v3/sds.proto, as generated code would have it. FetchSecrets, the polling form, is not served.
var service = grpc.ServiceDesc{
	ServiceName: "envoy.service.secret.v3.SecretDiscoveryService",
	HandlerType: (*any)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "StreamSecrets", ServerStreams: true, ClientStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
			return srv.(*Server).follow(stream.Context(), sotwWire{stream})
		}},
		{StreamName: "DeltaSecrets", ServerStreams: true, ClientStreams: true, Handler: func(srv any, stream grpc.ServerStream) error {
			return srv.(*Server).follow(stream.Context(), deltaWire{stream})
		}},
	},
	Metadata: "envoy/service/secret/v3/sds.proto",
}

// wire is one protocol on one stream.
type wire interface {
	receive() (request, error)
	// send carries secrets, and names that can be none where the protocol has a way to say so.
	send(nonce string, changed []named, impossible []string) error
}

// sotwWire is the state-of-the-world protocol. A response need not hold what did not change: only for listeners and clusters does
// absence mean removal.
type sotwWire struct{ grpc.ServerStream }

func (w sotwWire) receive() (request, error) {
	var r discovery.Request
	if err := w.RecvMsg(&r); err != nil {
		return request{}, err
	}
	return request{subscribe: r.ResourceNames, only: true, nonce: r.ResponseNonce, refusal: refusalOf(r.ErrorDetail.GetMessage(), r.ErrorDetail != nil)}, checkType(r.TypeUrl)
}

func (w sotwWire) send(nonce string, changed []named, _ []string) error {
	if len(changed) == 0 {
		return nil // a client of this protocol finds out by waiting
	}
	r := &discovery.Response{TypeUrl: secretType, VersionInfo: changed[0].version, Nonce: nonce}
	for _, c := range changed {
		r.Resources = append(r.Resources, c.any)
	}
	return w.SendMsg(r)
}

// deltaWire is the incremental protocol.
type deltaWire struct{ grpc.ServerStream }

func (w deltaWire) receive() (request, error) {
	var r discovery.DeltaRequest
	if err := w.RecvMsg(&r); err != nil {
		return request{}, err
	}
	return request{
		subscribe:   r.ResourceNamesSubscribe,
		unsubscribe: r.ResourceNamesUnsubscribe,
		have:        r.InitialResourceVersions,
		nonce:       r.ResponseNonce,
		refusal:     refusalOf(r.ErrorDetail.GetMessage(), r.ErrorDetail != nil),
	}, checkType(r.TypeUrl)
}

func (w deltaWire) send(nonce string, changed []named, impossible []string) error {
	r := &discovery.DeltaResponse{TypeUrl: secretType, Nonce: nonce, RemovedResources: impossible}
	for _, c := range changed {
		r.Resources = append(r.Resources, &discovery.Resource{Name: c.name, Version: c.version, Resource: c.any})
	}
	return w.SendMsg(r)
}

func refusalOf(message string, refused bool) string {
	if refused && message == "" {
		return "no reason given"
	}
	return message
}

func checkType(url string) error {
	if url != "" && url != secretType {
		return status.Errorf(codes.InvalidArgument, "type %q: only %s is served here", url, secretType)
	}
	return nil
}

// follow serves one stream to its end.
func (s *Server) follow(ctx context.Context, w wire) error {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	wake := s.store.join()
	defer s.store.leave(wake)
	client := newSession()
	defer func() {
		var names []string
		for name := range client.wanted {
			names = append(names, name)
		}
		s.store.want(nil, names)
	}()

	requests, ended := make(chan request), make(chan error, 1)
	go func() { // ends with the stream: receive fails then
		for {
			r, err := w.receive()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-wake:
		case r := <-requests:
			refused, added, dropped, err := client.apply(r)
			s.noteRefusal(refused, r.refusal)
			s.store.want(added, dropped)
			if err != nil {
				return status.Error(codes.ResourceExhausted, err.Error())
			}
		}
		if err := s.push(client, w); err != nil {
			return err
		}
	}
}

// push sends what the client wants and does not have.
func (s *Server) push(client *session, w wire) error {
	nonce, changed, impossible := client.due(s.store.lookup)
	if nonce == "" {
		return nil
	}
	for _, name := range impossible {
		_, err := parseName(name)
		s.log.Warn("Envoy asks for a secret that cannot be", "name", name, "cause", err)
	}
	if err := w.send(nonce, changed, impossible); err != nil {
		return err
	}
	for _, c := range changed {
		s.metrics.pushes.WithLabelValues(kindOf(c.name)).Inc()
		s.log.Debug("secret sent to Envoy", "name", c.name, "version", c.version)
	}
	return nil
}

// noteRefusal says once what Envoy did not take: it asks on several streams, and again after each of its restarts.
func (s *Server) noteRefusal(names []string, reason string) {
	for _, name := range names {
		s.metrics.refusals.WithLabelValues(kindOf(name)).Inc()
	}
	if len(names) == 0 {
		return
	}
	s.mu.Lock()
	said := slices.Contains(s.refusals, reason)
	if !said {
		s.refusals = append(s.refusals, reason)
		s.refusals = s.refusals[max(0, len(s.refusals)-maxRefusals):]
	}
	s.lastRefusal = reason
	s.mu.Unlock()
	if !said {
		s.log.Error("Envoy refused a secret", "names", names, "cause", reason)
	}
}
