package controlplane_test

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"wingman/test/controlplane"
)

func TestPushedResources(t *testing.T) {
	t.Parallel()
	s := withGroup(t, controlplane.Config{})
	resource := func(text string) *anypb.Any {
		a, err := anypb.New(wrapperspb.String(text))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	st := newClient(t, s, s.RootPEM(), nil).joined()
	receive := func(typeURL string) *discoveryv3.DeltaDiscoveryResponse {
		t.Helper()
		r, err := st.Recv()
		if err != nil || r.GetTypeUrl() != typeURL {
			t.Fatalf("got %v, %v, want %s", r, err, typeURL)
		}
		return r
	}

	request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.ClusterType})
	if r := receive(controlplane.ClusterType); len(r.GetResources()) != 0 {
		t.Errorf("got %v, want no clusters", r.GetResources())
	}
	s.SetResources(controlplane.ClusterType, map[string]*anypb.Any{"b": resource("b"), "a": resource("a")})
	if r := receive(controlplane.ClusterType); len(r.GetResources()) != 2 || r.GetResources()[0].GetName() != "a" {
		t.Errorf("got %v, want a and b", r.GetResources())
	}
	s.SetResources(controlplane.ClusterType, map[string]*anypb.Any{"b": resource("b")})
	if r := receive(controlplane.ClusterType); len(r.GetResources()) != 1 || strings.Join(r.GetRemovedResources(), ",") != "a" {
		t.Errorf("got %v, want b, and a removed", r)
	}
	request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.EndpointType, ResourceNamesSubscribe: []string{"b", "c"}})
	s.SetResources(controlplane.EndpointType, map[string]*anypb.Any{"b": resource("b"), "x": resource("x")})
	for last := false; !last; { // the answer and the push may come in either order, or as one
		r := receive(controlplane.EndpointType)
		last = len(r.GetResources()) == 1 && r.GetResources()[0].GetName() == "b" && strings.Join(r.GetRemovedResources(), ",") == "c"
	}
}

func TestStreamsShowWhatIsAcknowledged(t *testing.T) {
	t.Parallel()
	s := withGroup(t, controlplane.Config{DebugAddr: "127.0.0.1:0"})
	st := newClient(t, s, s.RootPEM(), nil).joined()
	if err := s.WaitStreams(patient(t), func(all []controlplane.Stream) bool {
		return len(all) == 1 && all[0].Watches[controlplane.NameTableType].Synced && all[0].By == controlplane.ByToken
	}); err != nil {
		t.Fatal(err)
	}
	s.SetNames(controlplane.BadAddressTable())
	r, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if w := s.Streams()[0].Watches[controlplane.NameTableType]; w.Synced {
		t.Errorf("%+v is synced before its ACK", w)
	}
	request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: status.New(codes.Internal, "10.96.97.300").Proto()})
	if err := s.WaitStreams(patient(t), func(all []controlplane.Stream) bool {
		return all[0].Watches[controlplane.NameTableType].LastError == "10.96.97.300"
	}); err != nil {
		t.Fatal(err)
	}

	t.Run("the debug endpoint tells the same", func(t *testing.T) {
		for path, want := range map[string]int{"/entries": 1, "/streams": 1, "/events": len(s.Events())} {
			res, err := http.Get(s.DebugURL() + path)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var got []map[string]any
			if err := json.NewDecoder(res.Body).Decode(&got); err != nil || len(got) != want {
				t.Errorf("%s: %d objects, %v, want %d", path, len(got), err, want)
			}
		}
	})
}

func TestBadTablesAreBad(t *testing.T) {
	for host, info := range controlplane.BadAddressTable().GetTable() {
		if _, err := netip.ParseAddr(info.GetIps()[0]); err == nil {
			t.Errorf("%s has a good address %s", host, info.GetIps()[0])
		}
	}
	for host := range controlplane.LongNameTable().GetTable() {
		if len(host) != 300 {
			t.Errorf("name has %d bytes, want 300", len(host))
		}
		for _, label := range strings.Split(host, ".") {
			if len(label) == 0 || len(label) > 63 {
				t.Errorf("label %q has %d bytes; the name is to be too long, and nothing else", label, len(label))
			}
		}
	}
}

func TestClientsThatPingTooOftenAreSentAway(t *testing.T) {
	t.Parallel()
	s := withGroup(t, controlplane.Config{})
	conn, err := tls.Dial("tcp", s.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for i := range byte(5) {
		if err := framer.WritePing(false, [8]byte{i}); err != nil {
			t.Fatal(err)
		}
	}
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("connection ended with %v, want a GOAWAY first", err)
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("GOAWAY is %v, want ENHANCE_YOUR_CALM", g.ErrCode)
			}
			return
		}
	}
}

func TestConfigsThatCannotWork(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  controlplane.Config
		says string
	}{
		{"an address without a port", controlplane.Config{Addr: "127.0.0.1"}, "missing port"},
		{"a trust domain that is a URL", controlplane.Config{TrustDomain: "spiffe://x"}, "trust domain"},
		{"a negative grace", controlplane.Config{Grace: -1}, "grace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := controlplane.New(c.cfg); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error about %q", err, c.says)
			}
		})
	}
	t.Run("a debug endpoint for everybody", func(t *testing.T) {
		s, err := controlplane.New(controlplane.Config{DebugAddr: "0.0.0.0:0"})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := s.Start(); err == nil || !strings.Contains(err.Error(), "loopback") {
			t.Errorf("got %v, want an error about loopback", err)
		}
	})
}
