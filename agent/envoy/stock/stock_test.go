package stock

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// Pushes of a real istiod with its defaults.
const (
	fixtureCDS = "cluster.v3.Cluster"
	fixtureEDS = "endpoint.v3.ClusterLoadAssignment"
	fixtureLDS = "listener.v3.Listener"
	fixtureRDS = "route.v3.RouteConfiguration"
)

var fixtures = []string{fixtureCDS, fixtureEDS, fixtureLDS, fixtureRDS}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".delta.binpb"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func urlOf(name string) string { return "type.googleapis.com/envoy.config." + name }

// stockEnvoy are the extensions of an unmodified Envoy 1.40, by its own first request.
func stockEnvoy(t testing.TB) Extensions {
	t.Helper()
	b, err := os.ReadFile("testdata/envoy-1.40.0.request.binpb")
	if err != nil {
		t.Fatal(err)
	}
	e, err := FromRequest(b, true)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func decode(t testing.TB, frame []byte) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	m := new(discoveryv3.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(frame, m); err != nil {
		t.Fatalf("not a DeltaDiscoveryResponse: %v", err)
	}
	return m
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packed(t testing.TB, m proto.Message) *anypb.Any {
	t.Helper()
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		t.Fatal(err)
	}
	return a
}

// delta is a response with these resources.
func delta(t testing.TB, resources ...proto.Message) []byte {
	t.Helper()
	m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: "type.googleapis.com/" + string(resources[0].ProtoReflect().Descriptor().FullName()), Nonce: "n"}
	for _, r := range resources {
		m.Resources = append(m.Resources, &discoveryv3.Resource{Name: "r", Version: "1", Resource: packed(t, r)})
	}
	return encode(t, m)
}

// rewrite runs a fresh Rewriter of a stock Envoy over a response.
func rewrite(t testing.TB, typeURL string, frame []byte) (*discoveryv3.DeltaDiscoveryResponse, Report) {
	t.Helper()
	out, report, err := New(stockEnvoy(t)).Response(typeURL, true, frame)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, out), report
}

// text is m as indented JSON, the same for the same message (protojson varies its blanks on purpose).
func text(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		t.Fatal(err)
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// reference does what Rewriter does, in another way: on decoded messages, by reflection over Envoy's real API and without the table.
// It also brings every Any into one form, so that messages can be compared. With rewriting off it does only that.
type reference struct {
	t         testing.TB
	rewriting bool
}

func (x reference) lacks(a *anypb.Any) (name string, yes bool) {
	inner := string(a.MessageName())
	if m, err := a.UnmarshalNew(); err == nil {
		if ts, ok := m.(interface{ GetTypeUrl() string }); ok {
			inner = typeName(ts.GetTypeUrl())
		}
	}
	name, yes = istioTypes[inner]
	return name, yes && x.rewriting
}

// holder returns the typed_config of an element of a list of extensions.
func holder(m protoreflect.Message) (*anypb.Any, bool) {
	fd := m.Descriptor().Fields().ByName("typed_config")
	if fd == nil || fd.Message() == nil || fd.Message().FullName() != "google.protobuf.Any" || !m.Has(fd) {
		return nil, false
	}
	return m.Get(fd).Message().Interface().(*anypb.Any), true
}

func (x reference) message(m protoreflect.Message) {
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			return
		}
		x.message(inner.ProtoReflect())
		a.Value = encode(x.t, inner)
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				return true
			}
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				if a, ok := e.Message().Interface().(*anypb.Any); ok && fd.Name() == "typed_per_filter_config" {
					if _, lacks := x.lacks(a); lacks {
						v.Map().Clear(k)
						return true
					}
				}
				x.message(e.Message())
				return true
			})
		case fd.IsList() && fd.Message() != nil:
			x.list(m, fd)
		case fd.IsList() && fd.Name() == "alpn_protocols" && x.rewriting:
			var kept []protoreflect.Value
			for i := range v.List().Len() {
				if e := v.List().Get(i); e.String() != peerExchange {
					kept = append(kept, e)
				}
			}
			set(m, fd, kept)
		case fd.Message() != nil:
			x.message(v.Message())
		}
		return true
	})
	if c, ok := m.Interface().(*clusterv3.Cluster); ok && x.rewriting {
		x.mark(c)
		x.bound(c)
	}
}

func (x reference) list(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
	var kept []protoreflect.Value
	list := m.Get(fd).List()
	for i := range list.Len() {
		e := list.Get(i)
		if a, ok := holder(e.Message()); ok {
			if name, lacks := x.lacks(a); lacks {
				if name == ALPN {
					kept = append(kept, protoreflect.ValueOfMessage(wantStandIn(x.t).ProtoReflect()))
				}
				continue
			}
		}
		x.message(e.Message())
		kept = append(kept, e)
	}
	set(m, fd, kept)
}

func set(m protoreflect.Message, fd protoreflect.FieldDescriptor, elements []protoreflect.Value) {
	m.Clear(fd)
	for _, e := range elements {
		m.Mutable(fd).List().Append(e)
	}
}

// mark knows the clusters of the fixtures: none with TLS speaks HTTP/2 or follows the client.
func (x reference) mark(c *clusterv3.Cluster) {
	for _, match := range c.TransportSocketMatches {
		if match.GetTransportSocket().GetTypedConfig().MessageName() == "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" {
			if c.Metadata == nil {
				c.Metadata = new(corev3.Metadata)
			}
			if c.Metadata.FilterMetadata == nil {
				c.Metadata.FilterMetadata = map[string]*structpb.Struct{}
			}
			c.Metadata.FilterMetadata["wingman.alpn"] = &structpb.Struct{Fields: map[string]*structpb.Value{
				"fixed": structpb.NewStringValue("istio-http/1.1,istio,http/1.1"),
			}}
		}
	}
}

// bound knows the clusters of the fixtures: those with names leave it to Envoy how long it asks.
func (x reference) bound(c *clusterv3.Cluster) {
	if c.TypedDnsResolverConfig == nil {
		return
	}
	config := resolverOf(x.t, c)
	config.QueryTimeoutSeconds, config.QueryTries = wrapperspb.UInt64(1), wrapperspb.UInt32(3)
	c.TypedDnsResolverConfig.TypedConfig = packed(x.t, config)
	//lint:ignore SA1019 istiod sends the old field
	c.DnsFailureRefreshRate = &clusterv3.Cluster_RefreshRate{BaseInterval: durationpb.New(time.Second), MaxInterval: durationpb.New(10 * time.Second)}
}

// wantStandIn is what takes the place of istio.alpn, in Envoy's own types.
func wantStandIn(t testing.TB) *hcmv3.HttpFilter {
	value := func(format string) *setcommonv3.FilterStateValue {
		return &setcommonv3.FilterStateValue{
			Key:         &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: "envoy.network.application_protocols"},
			SkipIfEmpty: true,
			Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
				OmitEmptyValues: true,
				Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
					Specifier: &corev3.DataSource_InlineString{InlineString: format},
				}},
			}},
		}
	}
	return &hcmv3.HttpFilter{
		Name: "envoy.filters.http.set_filter_state",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(t, &setv3.Config{OnRequestHeaders: []*setcommonv3.FilterStateValue{
			value("%CLUSTER_METADATA(wingman.alpn:fixed)%"),
			value("%CEL(xds.cluster_metadata.filter_metadata['wingman.alpn'][request.protocol])%"),
		}})},
	}
}

func TestOnlyWhatIsMissingIsRewritten(t *testing.T) {
	for _, name := range fixtures {
		t.Run(name, func(t *testing.T) {
			in := fixture(t, name)
			before := bytes.Clone(in)
			got, report := rewrite(t, urlOf(name), in)
			if !bytes.Equal(in, before) {
				t.Error("the frame was written to")
			}
			want := decode(t, in)
			reference{t, true}.message(want.ProtoReflect())
			reference{t, false}.message(got.ProtoReflect())
			if !proto.Equal(got, want) {
				t.Errorf("not what removal from decoded messages gives:\n%s", diff(text(t, want), text(t, got)))
			}
			if len(report.Left) > 0 {
				t.Errorf("types that Envoy 1.40 knows are reported as unknown: %v", report.Left)
			}
		})
	}
}

func TestAResourceWithoutAHitKeepsItsBytes(t *testing.T) {
	for _, name := range fixtures {
		before := decode(t, fixture(t, name))
		after, report := rewrite(t, urlOf(name), fixture(t, name))
		changed := 0
		for i, r := range before.Resources {
			if !bytes.Equal(r.Resource.Value, after.Resources[i].Resource.Value) {
				changed++
				continue
			}
			if !proto.Equal(r, after.Resources[i]) {
				t.Errorf("%s: the envelope of %s changed", name, r.Name)
			}
		}
		if changed != report.Changed {
			t.Errorf("%s: %d resources differ, %d reported", name, changed, report.Changed)
		}
	}
}

func TestReportOfRealPushes(t *testing.T) {
	for name, want := range map[string]Report{
		fixtureCDS: {Resources: 15, Changed: 12, Removed: map[string]int{MetadataExchange: 12}, Protocols: 4, Marked: 4},
		fixtureEDS: {},
		fixtureLDS: {Resources: 9, Changed: 9, Removed: map[string]int{ALPN: 1, MetadataExchange: 13, Stats: 18}, Protocols: 1, StandIns: 1},
		fixtureRDS: {}, // an extension is in it, which this Envoy has
	} {
		_, got := rewrite(t, urlOf(name), fixture(t, name))
		if !reportsEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func reportsEqual(a, b Report) bool {
	same := maps.Equal(a.Removed, b.Removed) && slices.Equal(a.Left, b.Left)
	a.Removed, b.Removed, a.Left, b.Left = nil, nil, nil, nil
	return same && a.Resources == b.Resources && a.Changed == b.Changed && a.Protocols == b.Protocols && a.StandIns == b.StandIns &&
		a.Marked == b.Marked && a.Unmarked == b.Unmarked && a.Factories == b.Factories
}

func TestIstiosEnvoyGetsItsBytes(t *testing.T) {
	for _, name := range fixtures {
		in := fixture(t, name)
		out, report, err := New(istioEnvoy()).Response(urlOf(name), true, in)
		if err != nil || &out[0] != &in[0] || len(out) != len(in) || !reportsEqual(report, Report{}) {
			t.Errorf("%s: not the same slice, or a report: %+v, %v", name, report, err)
		}
	}
}

func TestSotWAndDeltaAreRewrittenAlike(t *testing.T) {
	for _, name := range fixtures {
		in := decode(t, fixture(t, name))
		sotw := &discoveryv3.DiscoveryResponse{TypeUrl: in.TypeUrl, Nonce: in.Nonce, VersionInfo: "v"}
		for _, r := range in.Resources {
			sotw.Resources = append(sotw.Resources, r.Resource)
		}
		out, report, err := New(stockEnvoy(t)).Response(urlOf(name), false, encode(t, sotw))
		if err != nil {
			t.Fatal(err)
		}
		got := new(discoveryv3.DiscoveryResponse)
		if err := proto.Unmarshal(out, got); err != nil {
			t.Fatal(err)
		}
		want, wantReport := rewrite(t, urlOf(name), fixture(t, name))
		if !reportsEqual(report, wantReport) {
			t.Errorf("%s: got %+v, want %+v", name, report, wantReport)
		}
		for i, r := range want.Resources {
			if !proto.Equal(r.Resource, got.Resources[i]) {
				t.Errorf("%s: %s differs", name, r.Name)
			}
		}
		if got.VersionInfo != "v" || got.Nonce != in.Nonce {
			t.Errorf("%s: version and nonce changed: %q %q", name, got.VersionInfo, got.Nonce)
		}
	}
}

func TestASecondRunChangesNothing(t *testing.T) {
	r := New(stockEnvoy(t))
	for _, name := range []string{fixtureLDS, fixtureRDS, fixtureEDS} { // a cluster's mark is put there again, to the same effect
		once, _, err := r.Response(urlOf(name), true, fixture(t, name))
		if err != nil {
			t.Fatal(err)
		}
		twice, report, err := r.Response(urlOf(name), true, once)
		if err != nil || &twice[0] != &once[0] || report.Changed != 0 {
			t.Errorf("%s: rewritten again: %+v, %v", name, report, err)
		}
	}
}
