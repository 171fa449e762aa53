package xds

import (
	"google.golang.org/protobuf/types/known/anypb"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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

// A wire is one stream in either variant of the protocol. Its senders must not be called at the same time; recv may run beside them.
type wire interface {
	// subscribe asks for a type. node is set on the first request of a stream only: istiod freezes it there.
	subscribe(node *corev3.Node, typeURL string) error
	ack(p Push) error
	// nack refuses p and names the version that stays in use.
	nack(p Push, inUse string, reason error) error
	health(h Health) error
	recv() (Push, error)
	// closeSend tells istiod that nothing more comes; it answers by ending the stream once everything sent was handled.
	closeSend() error
}
