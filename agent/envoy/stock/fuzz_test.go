package stock

import (
	"bytes"
	"errors"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Whatever arrives: no panic, a message stays a message with the same envelope, nothing that had to go is left, and the input stays.
func FuzzResponse(f *testing.F) {
	for _, name := range fixtures {
		whole := fixture(f, name)
		f.Add(whole, true)
		m := decode(f, whole)
		sotw := &discoveryv3.DiscoveryResponse{TypeUrl: m.TypeUrl}
		for i, r := range m.Resources {
			f.Add(encode(f, &discoveryv3.DeltaDiscoveryResponse{TypeUrl: m.TypeUrl, Resources: m.Resources[i : i+1]}), true)
			sotw.Resources = append(sotw.Resources, r.Resource)
		}
		f.Add(encode(f, sotw), false)
	}
	f.Add(delta(f, &corev3.TypedExtensionConfig{Name: "e", TypedConfig: any0(typeStats)}), true)
	f.Add(delta(f, &clusterv3.Cluster{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{"alpn_override": structpb.NewStringValue("false")}}}}}), true)
	r := New(stockEnvoy(f))
	f.Fuzz(func(t *testing.T, in []byte, delta bool) {
		before := bytes.Clone(in)
		out, report, err := r.Response(urlOf(fixtureLDS), delta, in)
		if !bytes.Equal(in, before) {
			t.Fatal("the input was written to")
		}
		if err != nil {
			return
		}
		var was, is proto.Message = new(discoveryv3.DiscoveryResponse), new(discoveryv3.DiscoveryResponse)
		if delta {
			was, is = new(discoveryv3.DeltaDiscoveryResponse), new(discoveryv3.DeltaDiscoveryResponse)
		}
		if proto.Unmarshal(in, was) != nil {
			return // not what Envoy would read; the wire alone was right
		}
		if err := proto.Unmarshal(out, is); err != nil {
			t.Fatalf("a message was broken: %v", err)
		}
		if report.Changed == 0 && !bytes.Equal(in, out) {
			t.Fatalf("changed without a word: %+v", report)
		}
		if valid(was.ProtoReflect()) && !valid(is.ProtoReflect()) {
			t.Fatal("a message inside was broken")
		}
		clear := func(m proto.Message) {
			m.ProtoReflect().Clear(m.ProtoReflect().Descriptor().Fields().ByName("resources"))
		}
		clear(was)
		clear(is)
		if !proto.Equal(was, is) {
			t.Fatalf("the envelope changed from %v to %v", was, is)
		}
		_, second, err := r.Response(urlOf(fixtureLDS), delta, out)
		if err != nil {
			t.Fatalf("cannot be read again: %v", err)
		}
		if len(second.Removed) > 0 || second.Protocols > 0 || second.Factories > 0 {
			t.Fatalf("something was left the first time: %+v, then %+v", report, second)
		}
		if second.Marked != report.Marked {
			t.Fatalf("clusters are marked by whim: %d, then %d", report.Marked, second.Marked)
		}
	})
}

// valid reports whether every Any of a known type, however deep, holds a message of that type.
func valid(m protoreflect.Message) bool {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if errors.Is(err, protoregistry.NotFound) || a.TypeUrl == "" {
			return true
		}
		return err == nil && valid(inner.ProtoReflect())
	}
	ok := true
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool {
					ok = ok && valid(e.Message())
					return ok
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				ok = ok && valid(v.List().Get(i).Message())
			}
		default:
			ok = valid(v.Message())
		}
		return ok
	})
	return ok
}

func FuzzFromRequest(f *testing.F) {
	node := &corev3.Node{Id: "n", Extensions: []*corev3.Extension{{Name: "istio.alpn", Category: "envoy.filters.http", TypeUrls: []string{typeALPN}, Disabled: true}}}
	f.Add(encode(f, &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: "t"}), true)
	f.Add(encode(f, &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: "t"}), false)
	f.Fuzz(func(t *testing.T, in []byte, delta bool) {
		e, err := FromRequest(in, delta)
		if err != nil && e.Needed() {
			t.Fatal("an error, and still an answer")
		}
		if e.Needed() != (len(e.Missing()) > 0) {
			t.Fatal("needed for nothing")
		}
	})
}
