package xds

import (
	"errors"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// pieces cuts b into pieces of n bytes, as the network might.
func pieces(b []byte, n int) mem.BufferSlice {
	var s mem.BufferSlice
	for len(b) > n {
		s = append(s, mem.SliceBuffer(b[:n]))
		b = b[n:]
	}
	return append(s, mem.SliceBuffer(b))
}

func TestHeaderIsWhatTheMessageSays(t *testing.T) {
	big := make([]byte, 100_000)
	node := &corev3.Node{Id: "sidecar~10.99.0.2~forum-vm.forum-services~forum-services.svc.cluster.local"}
	for _, tc := range []struct {
		name    string
		message proto.Message
		layout  layout
		want    header
	}{
		{"delta push", &discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: "v1", TypeUrl: "t", Nonce: "n", Resources: []*discoveryv3.Resource{{Name: "a", Resource: &anypb.Any{TypeUrl: "inner", Value: big}}}, RemovedResources: []string{"x"}},
			deltaResponse, header{typeURL: "t", version: "v1", nonce: "n"}},
		{"state of the world push", &discoveryv3.DiscoveryResponse{VersionInfo: "v2", TypeUrl: "t", Nonce: "n", Resources: []*anypb.Any{{TypeUrl: "inner", Value: big}}, Canary: true},
			sotwResponse, header{typeURL: "t", version: "v2", nonce: "n"}},
		{"first delta request", &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: "t", ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"a": "1"}},
			deltaRequest, header{typeURL: "t", node: true}},
		{"delta NACK", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "t", ResponseNonce: "n", ErrorDetail: &statuspb.Status{Code: 3, Message: "no"}},
			deltaRequest, header{typeURL: "t", nonce: "n", refusal: true}},
		{"state of the world ACK", &discoveryv3.DiscoveryRequest{VersionInfo: "v", TypeUrl: "t", ResponseNonce: "n", ResourceNames: []string{"a"}},
			sotwRequest, header{typeURL: "t", version: "v", nonce: "n"}},
		{"first state of the world request", &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: "t"}, sotwRequest, header{typeURL: "t", node: true}},
		{"health", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: TypeHealth}, deltaRequest, header{typeURL: TypeHealth}},
		{"nothing", &discoveryv3.DeltaDiscoveryRequest{}, deltaRequest, header{}},
	} {
		b, err := proto.Marshal(tc.message)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 2, 7, 1 << 20} {
			f := &frame{data: pieces(b, n)}
			if got, err := f.header(tc.layout); err != nil || got != tc.want {
				t.Errorf("%s in pieces of %d: header = %+v, %v; want %+v", tc.name, n, got, err, tc.want)
			}
		}
		if f := (&frame{data: pieces(b[:len(b)/2], 5)}); len(b) > 4 {
			if h, err := f.header(tc.layout); err == nil && h == tc.want && h != (header{}) {
				t.Errorf("%s cut in half: header = %+v, want an error or less", tc.name, h)
			}
		}
	}
}

// FuzzHeader compares the reader with protobuf's own decoder: where that one accepts a message, both see the same.
func FuzzHeader(f *testing.F) {
	for _, m := range []proto.Message{
		&discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: "v", TypeUrl: "t", Nonce: "n", Resources: []*discoveryv3.Resource{{Name: "a"}}},
		&discoveryv3.DeltaDiscoveryResponse{ControlPlane: &corev3.ControlPlane{Identifier: "istiod"}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, 3)
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		fr := &frame{data: pieces(b, max(1, n%64))}
		got, err := fr.header(deltaResponse)
		if err != nil && !errors.Is(err, errFrame) {
			t.Errorf("error %v does not say what it is", err)
		}
		var m discoveryv3.DeltaDiscoveryResponse
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		want := header{typeURL: m.GetTypeUrl(), version: m.GetSystemVersionInfo(), nonce: m.GetNonce()}
		switch {
		case err == nil && got != want:
			t.Errorf("header = %+v, protobuf says %+v", got, want)
		case err != nil && len(b) < maxHeaderField && !hasGroup(b):
			t.Errorf("header of a message that protobuf accepts = %v", err)
		}
	})
}

// hasGroup reports whether a message may hold a group, which xDS does not use and header refuses.
func hasGroup(b []byte) bool {
	for _, x := range b {
		if x&7 == 3 || x&7 == 4 {
			return true
		}
	}
	return false
}
