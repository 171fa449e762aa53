package discovery

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// theirs says which message each of ours stands for.
var theirs = []struct{ ours, theirs proto.Message }{
	{&Node{}, &corev3.Node{}},
	{&Locality{}, &corev3.Locality{}},
	{&Status{}, &status.Status{}},
	{&Request{}, &discoveryv3.DiscoveryRequest{}},
	{&Response{}, &discoveryv3.DiscoveryResponse{}},
	{&DeltaRequest{}, &discoveryv3.DeltaDiscoveryRequest{}},
	{&DeltaResponse{}, &discoveryv3.DeltaDiscoveryResponse{}},
	{&Resource{}, &discoveryv3.Resource{}},
}

// Each field of ours has Envoy's number, name and kind.
func TestFieldsAreEnvoysOnTheWire(t *testing.T) {
	stands := map[protoreflect.FullName]protoreflect.FullName{}
	for _, m := range theirs {
		stands[m.ours.ProtoReflect().Descriptor().FullName()] = m.theirs.ProtoReflect().Descriptor().FullName()
	}
	message := func(f protoreflect.FieldDescriptor) protoreflect.FullName {
		if f.Message() == nil || f.IsMap() {
			return ""
		}
		name := f.Message().FullName()
		if other, ours := stands[name]; ours {
			return other
		}
		return name
	}
	for _, m := range theirs {
		ours, envoys := m.ours.ProtoReflect().Descriptor(), m.theirs.ProtoReflect().Descriptor()
		for i := range ours.Fields().Len() {
			f := ours.Fields().Get(i)
			e := envoys.Fields().ByNumber(f.Number())
			if e == nil || e.Name() != f.Name() || e.Kind() != f.Kind() || e.Cardinality() != f.Cardinality() || e.IsMap() != f.IsMap() || message(e) != message(f) {
				t.Errorf("%s has %v, %s has %v", ours.FullName(), f, envoys.FullName(), e)
			}
		}
	}
}

// What the agent does not know of a message it gives on as it came.
func TestUnknownFieldsPassThrough(t *testing.T) {
	want := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{
			Id: "sidecar~10.99.0.2~vm.ns~ns.svc.cluster.local", UserAgentName: "envoy", Locality: &corev3.Locality{Region: "eu", Zone: "a"},
			Extensions: []*corev3.Extension{{Name: "envoy.filters.http.router", TypeUrls: []string{"envoy.extensions.filters.http.router.v3.Router"}}},
		},
		TypeUrl: "t", ResponseNonce: "n", InitialResourceVersions: map[string]string{"a": "1"},
		ErrorDetail:               &status.Status{Code: 3, Message: "no", Details: []*anypb.Any{{TypeUrl: "d", Value: []byte("v")}}},
		ResourceLocatorsSubscribe: []*discoveryv3.ResourceLocator{{Name: "x"}},
	}
	in, err := proto.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var ours DeltaRequest
	if err := proto.Unmarshal(in, &ours); err != nil {
		t.Fatal(err)
	}
	out, err := proto.Marshal(&ours)
	if err != nil {
		t.Fatal(err)
	}
	got := &discoveryv3.DeltaDiscoveryRequest{}
	if err := proto.Unmarshal(out, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("(-sent +got):\n%s", diff)
	}
}
