package xds

import (
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/xds/discovery"
)

// Type URLs that the agent itself subscribes to or sends; Envoy never sees them.
const (
	// TypeNameTable is the NDS table, one resource with an empty name (Istio pkg/dns/proto/nds.proto).
	TypeNameTable = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	// TypeHealth marks a request that reports health; it is never answered (Istio pilot/pkg/xds/v3/model.go).
	TypeHealth = "type.googleapis.com/istio.v1.HealthInformation"
)

// unhealthyCode is what Istio's agent puts into the error detail of an unhealthy report: gRPC INTERNAL.
const unhealthyCode = 13

// Push is one answer of istiod for a type.
type Push struct {
	TypeURL string
	Version string // SotW: version_info; delta: system_version_info
	Nonce   string
	// Resources may be empty: istiod answers a type it has nothing for, and such an answer wants its ACK too.
	Resources []*anypb.Any
}

// Health is the verdict as istiod is told it: it becomes condition Healthy of the WorkloadEntry.
type Health struct {
	Healthy bool
	Reason  string // for people; may be empty
}

// The two variants of the protocol, as gRPC calls them.
const (
	deltaMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
	sotwMethod  = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
)

// A wire is one stream to istiod in either variant. Its senders must not be called at the same time; recv may run beside them.
type wire struct {
	stream grpc.ClientStream
	delta  bool
}

// answer is a frame of istiod with its header.
type answer struct {
	header
	frame *frame
}

func (w wire) recv() (answer, error) {
	f := &frame{}
	if err := w.stream.RecvMsg(f); err != nil {
		return answer{}, err
	}
	l := sotwResponse
	if w.delta {
		l = deltaResponse
	}
	h, err := f.header(l)
	if err != nil {
		f.free()
		return answer{}, err
	}
	return answer{header: h, frame: f}, nil
}

// push decodes an answer of a type that the agent owns.
func (w wire) push(a answer) (Push, error) {
	p := Push{TypeURL: a.typeURL, Version: a.version, Nonce: a.nonce}
	if !w.delta {
		var r discovery.Response
		if err := a.frame.decode(&r); err != nil {
			return p, err
		}
		p.Resources = r.GetResources()
		return p, nil
	}
	var r discovery.DeltaResponse
	if err := a.frame.decode(&r); err != nil {
		return p, err
	}
	for _, res := range r.GetResources() {
		p.Resources = append(p.Resources, res.GetResource())
	}
	return p, nil
}

// request is what the agent itself sends, in terms of both variants.
type request struct {
	node    *discovery.Node // on the first request of a stream only: istiod freezes it there
	typeURL string
	version string // state of the world only: the version in use
	nonce   string
	detail  *discovery.Status
}

// encode makes the message of a request.
func (w wire) encode(r request) (*frame, error) {
	var m proto.Message
	if w.delta {
		// No resource names: a wildcard subscription, which is how istiod serves the NameTable.
		m = &discovery.DeltaRequest{Node: r.node, TypeUrl: r.typeURL, ResponseNonce: r.nonce, ErrorDetail: r.detail}
	} else {
		m = &discovery.Request{Node: r.node, TypeUrl: r.typeURL, VersionInfo: r.version, ResponseNonce: r.nonce, ErrorDetail: r.detail}
	}
	return frameOf(m)
}

// pass sends a frame as it is, and frees it.
func (w wire) pass(f *frame) error {
	defer f.free()
	return w.stream.SendMsg(f)
}

// closeSend tells istiod that nothing more comes; it answers by ending the stream once everything sent was handled.
func (w wire) closeSend() error { return w.stream.CloseSend() }

// refusal is the error detail of a NACK.
func refusal(reason error) *discovery.Status {
	return &discovery.Status{Code: int32(codes.InvalidArgument), Message: text(reason.Error())}
}

// verdict is the error detail of a health report; nil means healthy.
func verdict(h Health) *discovery.Status {
	if h.Healthy {
		return nil
	}
	return &discovery.Status{Code: unhealthyCode, Message: text(h.Reason)}
}

// text makes s fit for protobuf, which refuses a string that is not UTF-8: what a probe printed, say.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
