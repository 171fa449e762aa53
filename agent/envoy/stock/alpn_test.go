package stock

import (
	"bytes"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// What HTTP requests to a cluster offer, as istio.alpn would decide: by the first protocol that Envoy would use upstream.
func TestClusterMarks(t *testing.T) {
	const http1, http2 = "istio-http/1.1,istio,http/1.1", "istio-h2,istio,h2"
	fixed := func(list string) map[string]string { return map[string]string{"fixed": list} }
	matches := func(m proto.Message) []*clusterv3.Cluster_TransportSocketMatch {
		return []*clusterv3.Cluster_TransportSocketMatch{{Name: "tlsMode-istio", TransportSocket: socket(t, m)}}
	}
	explicit := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}},
	}}
	explicit1 := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}},
	}}
	explicit3 := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http3ProtocolOptions{Http3ProtocolOptions: &corev3.Http3ProtocolOptions{}}},
	}}
	follow := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &upstreamv3.HttpProtocolOptions_UseDownstreamHttpConfig{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
	}}
	auto := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_AutoConfig{AutoConfig: &upstreamv3.HttpProtocolOptions_AutoHttpConfig{}}}
	noOverride := func(value string) *corev3.Metadata {
		return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{"alpn_override": structpb.NewStringValue(value)}}}}
	}
	byClient := map[string]string{"HTTP/1.0": http1, "HTTP/1.1": http1, "HTTP/2": http2}
	for _, c := range []struct {
		name string
		in   *clusterv3.Cluster
		want map[string]string
	}{
		{"a plain cluster offers nothing", &clusterv3.Cluster{Name: "c"}, nil},
		{"TLS speaks HTTP/1.1 unless told otherwise", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio"))}, fixed(http1)},
		{"TLS by match counts", &clusterv3.Cluster{TransportSocketMatches: matches(upstreamTLS("istio"))}, fixed(http1)},
		{"TLS inside an internal upstream counts", &clusterv3.Cluster{TransportSocket: socket(t, &internalv3.InternalUpstreamTransport{TransportSocket: socket(t, upstreamTLS())})}, fixed(http1)},
		{"explicit HTTP/1", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio")), TypedExtensionProtocolOptions: options(t, explicit1)}, fixed(http1)},
		{"explicit HTTP/2", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio", "h2")), TypedExtensionProtocolOptions: options(t, explicit)}, fixed(http2)},
		//lint:ignore SA1019 Envoy still reads the old field
		{"HTTP/2 in the old field", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio")), Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}, fixed(http2)},
		{"explicit HTTP/3 was left alone", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS()), TypedExtensionProtocolOptions: options(t, explicit3)}, nil},
		{"an agreed protocol counts as HTTP/2", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS()), TypedExtensionProtocolOptions: options(t, auto)}, fixed(http2)},
		{"the client's protocol", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio")), TypedExtensionProtocolOptions: options(t, follow)}, byClient},
		//lint:ignore SA1019 Envoy still reads the old field
		{"the client's protocol in the old field", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio")), ProtocolSelection: clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL}, byClient},
		{"a DestinationRule's own TLS is left alone", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS()), Metadata: noOverride("false")}, nil},
		{"any other override is none", &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS()), Metadata: noOverride("true")}, fixed(http1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := proto.Clone(c.in).(*clusterv3.Cluster)
			if c.want != nil {
				s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
				for k, v := range c.want {
					s.Fields[k] = structpb.NewStringValue(v)
				}
				if want.Metadata == nil {
					want.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{}}
				}
				want.Metadata.FilterMetadata["wingman.alpn"] = s
			}
			// A cluster before it, of the other kind, must not rub off.
			in := delta(t, &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS()), Metadata: noOverride("false"), TypedExtensionProtocolOptions: options(t, follow)}, c.in)
			got, report := rewrite(t, urlOf(fixtureCDS), in)
			cluster := new(clusterv3.Cluster)
			if err := got.Resources[1].Resource.UnmarshalTo(cluster); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(cluster, want) {
				t.Errorf("got (+) is not what is wanted (-):\n%s", diff(text(t, want), text(t, cluster)))
			}
			if marked := map[bool]int{true: 1}[c.want != nil]; report.Marked != marked || report.Unmarked != 0 {
				t.Errorf("report: %+v", report)
			}
		})
	}
}

// USE_CONFIGURED_PROTOCOL is the default: no encoder writes it, and still it may be written.
func TestAWrittenDefaultIsNoProtocolOfTheClient(t *testing.T) {
	m := decode(t, delta(t, &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS("istio"))}))
	m.Resources[0].Resource.Value = protowire.AppendVarint(protowire.AppendTag(m.Resources[0].Resource.Value, 26, protowire.VarintType), 0)
	got, _ := rewrite(t, urlOf(fixtureCDS), encode(t, m))
	if !bytes.Contains(encode(t, got), []byte(metaFixed)) {
		t.Error("the cluster is not marked for HTTP/1.1")
	}
}

func TestAnEnvoyThatCannotStandIn(t *testing.T) {
	in := managed(t, &hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(any0(typeALPN))}})
	//lint:ignore SA1019 Envoy still reads the old field
	follow := &clusterv3.Cluster{TransportSocket: socket(t, upstreamTLS(peerExchange)), ProtocolSelection: clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL}
	router := Extension{Name: "r", TypeURLs: []string{typeRouter}}
	set := Extension{Name: "envoy.filters.http.set_filter_state", TypeURLs: []string{typeSetFilterState}}
	for _, c := range []struct {
		name     string
		list     []Extension
		filters  int
		unmarked int
	}{
		{"without set_filter_state the filter goes and nothing comes", []Extension{router}, 0, 0},
		{"without CEL a cluster that follows the client cannot be told apart", []Extension{router, set}, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := New(NewExtensions(c.list))
			out, _, err := r.Response(urlOf(fixtureLDS), true, delta(t, in))
			if err != nil {
				t.Fatal(err)
			}
			l, m := new(listenerv3.Listener), new(hcmv3.HttpConnectionManager)
			if err := decode(t, out).Resources[0].Resource.UnmarshalTo(l); err != nil {
				t.Fatal(err)
			}
			if err := l.FilterChains[0].Filters[0].GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			if len(m.HttpFilters) != c.filters || bytes.Contains(out, []byte("%CEL")) {
				t.Errorf("filters: %v", m.HttpFilters)
			}
			out, report, err := r.Response(urlOf(fixtureCDS), true, delta(t, follow))
			if err != nil || bytes.Contains(out, []byte(metaNamespace)) || report.Unmarked != c.unmarked || report.Protocols != 1 {
				t.Errorf("cluster: %+v, %v", report, err)
			}
		})
	}
}
