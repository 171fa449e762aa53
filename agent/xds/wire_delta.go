package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// deltaWire speaks incremental xDS, the default of istiod and Envoy.
type deltaWire struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func (w deltaWire) subscribe(node *corev3.Node, typeURL string) error {
	// No resource names: a wildcard subscription, which is how istiod serves the NameTable.
	return w.stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL})
}

func (w deltaWire) ack(p Push) error {
	return w.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: p.TypeURL, ResponseNonce: p.Nonce})
}

func (w deltaWire) nack(p Push, _ string, reason error) error {
	return w.stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl:       p.TypeURL,
		ResponseNonce: p.Nonce,
		ErrorDetail:   refusal(reason),
	})
}

func (w deltaWire) health(h Health) error {
	return w.stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeHealth, ErrorDetail: verdict(h)})
}

func (w deltaWire) recv() (Push, error) {
	r, err := w.stream.Recv()
	if err != nil {
		return Push{}, err
	}
	p := Push{TypeURL: r.GetTypeUrl(), Version: r.GetSystemVersionInfo(), Nonce: r.GetNonce()}
	for _, res := range r.GetResources() {
		p.Resources = append(p.Resources, res.GetResource())
	}
	return p, nil
}

func (w deltaWire) closeSend() error { return w.stream.CloseSend() }

// refusal is the error detail of a NACK.
func refusal(reason error) *statuspb.Status {
	return &statuspb.Status{Code: int32(codes.InvalidArgument), Message: reason.Error()}
}

// verdict is the error detail of a health report; nil means healthy.
func verdict(h Health) *statuspb.Status {
	if h.Healthy {
		return nil
	}
	return &statuspb.Status{Code: unhealthyCode, Message: h.Reason}
}
