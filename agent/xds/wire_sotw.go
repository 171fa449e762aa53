package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// sotwWire speaks state-of-the-world xDS, for control planes without delta (setting xds.delta: false).
type sotwWire struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
}

func (w sotwWire) subscribe(node *corev3.Node, typeURL string) error {
	return w.stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL})
}

func (w sotwWire) ack(p Push) error {
	return w.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: p.TypeURL, VersionInfo: p.Version, ResponseNonce: p.Nonce})
}

func (w sotwWire) nack(p Push, inUse string, reason error) error {
	return w.stream.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl:       p.TypeURL,
		VersionInfo:   inUse,
		ResponseNonce: p.Nonce,
		ErrorDetail:   refusal(reason),
	})
}

func (w sotwWire) health(h Health) error {
	return w.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: TypeHealth, ErrorDetail: verdict(h)})
}

func (w sotwWire) recv() (Push, error) {
	r, err := w.stream.Recv()
	if err != nil {
		return Push{}, err
	}
	return Push{TypeURL: r.GetTypeUrl(), Version: r.GetVersionInfo(), Nonce: r.GetNonce(), Resources: r.GetResources()}, nil
}

func (w sotwWire) closeSend() error { return w.stream.CloseSend() }
