package stock

import (
	"maps"
	"slices"
	"strings"
	"testing"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	sethttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setnetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	quicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/quic/v3"
	starttlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/starttls/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

func any0(typeURL string) *anypb.Any {
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + typeURL, Value: []byte{}}
}

func udpa(t testing.TB, name string) *anypb.Any {
	return packed(t, &udpav1.TypedStruct{TypeUrl: "type.googleapis.com/" + name, Value: &structpb.Struct{}})
}

func xds(t testing.TB, name string) *anypb.Any {
	return packed(t, &xdsv3.TypedStruct{TypeUrl: "type.googleapis.com/" + name, Value: &structpb.Struct{}})
}

func matched(t testing.TB, config *anypb.Any) *anypb.Any {
	return packed(t, &matchingv3.ExtensionWithMatcher{ExtensionConfig: &corev3.TypedExtensionConfig{Name: "x", TypedConfig: config}})
}

func httpFilterOf(config *anypb.Any) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
}

func networkFilterOf(config *anypb.Any) *listenerv3.Filter {
	return &listenerv3.Filter{Name: "f", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}
}

func loggerOf(config *anypb.Any) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{Name: "l", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: config}}
}

func discovered(types ...string) *corev3.ExtensionConfigSource {
	s := &corev3.ExtensionConfigSource{ConfigSource: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{}}}
	for _, t := range types {
		s.TypeUrls = append(s.TypeUrls, "type.googleapis.com/"+t)
	}
	return s
}

func chain(filters ...*listenerv3.Filter) *listenerv3.Listener {
	return &listenerv3.Listener{Name: "l", FilterChains: []*listenerv3.FilterChain{{Filters: filters}}}
}

func managed(t testing.TB, m *hcmv3.HttpConnectionManager) *listenerv3.Listener {
	return chain(networkFilterOf(packed(t, m)))
}

func socket(t testing.TB, m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{Name: "s", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, m)}}
}

func upstreamTLS(protocols ...string) *tlsv3.UpstreamTlsContext {
	return &tlsv3.UpstreamTlsContext{Sni: "s", CommonTlsContext: &tlsv3.CommonTlsContext{AlpnProtocols: protocols}}
}

func downstreamTLS(protocols ...string) *tlsv3.DownstreamTlsContext {
	return &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{AlpnProtocols: protocols}}
}

func options(t testing.TB, o *upstreamv3.HttpProtocolOptions) map[string]*anypb.Any {
	return map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(t, o)}
}

const (
	typeRouter  = "envoy.extensions.filters.http.router.v3.Router"
	typeFile    = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
	typeNobodys = "example.com.Nobodys"
)

// Each place in which one of Istio's extensions can stand, and what stays of it.
func TestEveryFormIsRewritten(t *testing.T) {
	mx, stats, router := networkFilterOf(udpa(t, typeMetadataExchange)), any0(typeStats), any0(typeRouter)
	manager := func(filters ...*hcmv3.HttpFilter) proto.Message {
		return managed(t, &hcmv3.HttpConnectionManager{StatPrefix: "p", HttpFilters: filters})
	}
	perFilter := func(types ...string) map[string]*anypb.Any {
		m := map[string]*anypb.Any{}
		for _, name := range types {
			m[name] = packed(t, &routev3.FilterConfig{Config: any0(name), IsOptional: true})
		}
		return m
	}
	for _, c := range []struct {
		name   string
		in     proto.Message
		want   proto.Message
		report Report
	}{
		{
			"a network filter by its own type", chain(networkFilterOf(any0(typeMetadataExchange)), networkFilterOf(router)), chain(networkFilterOf(router)),
			Report{Removed: map[string]int{MetadataExchange: 1}},
		},
		{
			"network filters inside both kinds of TypedStruct", chain(mx, networkFilterOf(xds(t, typeStats)), networkFilterOf(router)), chain(networkFilterOf(router)),
			Report{Removed: map[string]int{MetadataExchange: 1, Stats: 1}},
		},
		{
			"HBONE's peer metadata as network filter",
			chain(networkFilterOf(udpa(t, "envoy.extensions.network_filters.peer_metadata.Config")), networkFilterOf(router)), chain(networkFilterOf(router)),
			Report{Removed: map[string]int{PeerMetadata: 1}},
		},
		{
			"a filter behind a matcher", chain(networkFilterOf(matched(t, udpa(t, typeStats))), networkFilterOf(router)), chain(networkFilterOf(router)),
			Report{Removed: map[string]int{Stats: 1}},
		},
		{
			"the default filter chain",
			&listenerv3.Listener{DefaultFilterChain: &listenerv3.FilterChain{Filters: []*listenerv3.Filter{mx}}},
			&listenerv3.Listener{DefaultFilterChain: &listenerv3.FilterChain{}},
			Report{Removed: map[string]int{MetadataExchange: 1}},
		},
		{
			"HTTP filters", manager(httpFilterOf(stats), httpFilterOf(udpa(t, typePeerMetadata)), httpFilterOf(router)), manager(httpFilterOf(router)),
			Report{Removed: map[string]int{MetadataExchange: 1, Stats: 1}},
		},
		{
			"HTTP's ALPN gets a stand-in at its place", manager(httpFilterOf(stats), httpFilterOf(any0(typeALPN)), httpFilterOf(router)),
			manager(wantStandIn(t), httpFilterOf(router)),
			Report{Removed: map[string]int{ALPN: 1, Stats: 1}, StandIns: 1},
		},
		{
			"filters of an upgrade",
			managed(t, &hcmv3.HttpConnectionManager{UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT", Filters: []*hcmv3.HttpFilter{httpFilterOf(any0(typeALPN)), httpFilterOf(stats)}}}}),
			managed(t, &hcmv3.HttpConnectionManager{UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "CONNECT", Filters: []*hcmv3.HttpFilter{wantStandIn(t)}}}}),
			Report{Removed: map[string]int{ALPN: 1, Stats: 1}, StandIns: 1},
		},
		{
			"upstream filters and logs of the router",
			manager(httpFilterOf(packed(t, &routerv3.Router{UpstreamHttpFilters: []*hcmv3.HttpFilter{httpFilterOf(any0(typeALPN)), httpFilterOf(router)}, UpstreamLog: []*accesslogv3.AccessLog{loggerOf(stats)}}))),
			manager(httpFilterOf(packed(t, &routerv3.Router{UpstreamHttpFilters: []*hcmv3.HttpFilter{httpFilterOf(router)}}))),
			Report{Removed: map[string]int{ALPN: 1, Stats: 1}},
		},
		{
			"a filter that ECDS would deliver",
			manager(&hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(typeStats, typePeerMetadata)}}, httpFilterOf(router)),
			manager(httpFilterOf(router)),
			Report{Removed: map[string]int{MetadataExchange: 1}},
		},
		{
			"istio.alpn by ECDS is not waited for",
			manager(&hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(typeALPN)}}),
			manager(wantStandIn(t)),
			Report{Removed: map[string]int{ALPN: 1}, StandIns: 1},
		},
		{
			"one of several types that ECDS may deliver",
			manager(&hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: func() *corev3.ExtensionConfigSource {
				s := discovered(typeStats, typeRouter)
				s.DefaultConfig = stats
				return s
			}()}}),
			manager(&hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: discovered(typeRouter)}}),
			Report{Removed: map[string]int{Stats: 2}},
		},
		{
			"access loggers of a listener, its manager and its TCP proxy",
			&listenerv3.Listener{
				AccessLog: []*accesslogv3.AccessLog{loggerOf(stats), loggerOf(any0(typeFile))},
				FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{
					networkFilterOf(packed(t, &hcmv3.HttpConnectionManager{AccessLog: []*accesslogv3.AccessLog{loggerOf(any0(typeFile)), loggerOf(xds(t, typeStats))}})),
					networkFilterOf(packed(t, &tcpproxyv3.TcpProxy{StatPrefix: "p", AccessLog: []*accesslogv3.AccessLog{loggerOf(stats)}})),
				}}},
			},
			&listenerv3.Listener{
				AccessLog: []*accesslogv3.AccessLog{loggerOf(any0(typeFile))},
				FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{
					networkFilterOf(packed(t, &hcmv3.HttpConnectionManager{AccessLog: []*accesslogv3.AccessLog{loggerOf(any0(typeFile))}})),
					networkFilterOf(packed(t, &tcpproxyv3.TcpProxy{StatPrefix: "p"})),
				}}},
			},
			Report{Removed: map[string]int{Stats: 3}},
		},
		{
			"routes that configure a filter",
			&routev3.RouteConfiguration{
				TypedPerFilterConfig: map[string]*anypb.Any{"istio.stats": stats, "r": router},
				VirtualHosts: []*routev3.VirtualHost{{
					TypedPerFilterConfig: perFilter(typeALPN, typeRouter),
					Routes: []*routev3.Route{{
						TypedPerFilterConfig: perFilter(typeStats),
						Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{
							WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{{Name: "c", TypedPerFilterConfig: perFilter(typePeerMetadata)}}},
						}}},
					}},
				}},
			},
			&routev3.RouteConfiguration{
				TypedPerFilterConfig: map[string]*anypb.Any{"r": router},
				VirtualHosts: []*routev3.VirtualHost{{
					TypedPerFilterConfig: perFilter(typeRouter),
					Routes: []*routev3.Route{{
						Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{
							WeightedClusters: &routev3.WeightedCluster{Clusters: []*routev3.WeightedCluster_ClusterWeight{{Name: "c"}}},
						}}},
					}},
				}},
			},
			Report{Removed: map[string]int{ALPN: 1, MetadataExchange: 1, Stats: 2}},
		},
		{
			"routes inside a connection manager",
			managed(t, &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{TypedPerFilterConfig: perFilter(typeStats)}}}),
			managed(t, &hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{}}}),
			Report{Removed: map[string]int{Stats: 1}},
		},
		{
			"upstream filters of a cluster, network and HTTP",
			&clusterv3.Cluster{
				Name: "c", Filters: []*clusterv3.Filter{{Name: "m", TypedConfig: any0(typeMetadataExchange)}, {Name: "h", TypedConfig: udpa(t, "envoy.extensions.network_filters.peer_metadata.UpstreamConfig")}, {Name: "o", TypedConfig: router}},
				TypedExtensionProtocolOptions: options(t, &upstreamv3.HttpProtocolOptions{HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(udpa(t, typePeerMetadata)), httpFilterOf(router)}}),
			},
			&clusterv3.Cluster{
				Name: "c", Filters: []*clusterv3.Filter{{Name: "o", TypedConfig: router}},
				TypedExtensionProtocolOptions: options(t, &upstreamv3.HttpProtocolOptions{HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(router)}}),
			},
			Report{Removed: map[string]int{MetadataExchange: 2, PeerMetadata: 1}},
		},
		{
			"an unknown extension is named and left, in whatever it is wrapped",
			chain(networkFilterOf(any0(typeNobodys)), networkFilterOf(udpa(t, "example.com.Wrapped"))), chain(networkFilterOf(any0(typeNobodys)), networkFilterOf(udpa(t, "example.com.Wrapped"))),
			Report{Left: []string{typeNobodys, "example.com.Wrapped"}},
		},
		{
			"filter chain matches stay",
			&listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{{FilterChainMatch: &listenerv3.FilterChainMatch{ApplicationProtocols: []string{peerExchange, "istio"}}, TransportSocket: socket(t, downstreamTLS(peerExchange, "h2", "http/1.1"))}}},
			&listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{{FilterChainMatch: &listenerv3.FilterChainMatch{ApplicationProtocols: []string{peerExchange, "istio"}}, TransportSocket: socket(t, downstreamTLS("h2", "http/1.1"))}}},
			Report{Protocols: 1},
		},
		{
			"ALPN of QUIC and of STARTTLS, downstream",
			&listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{
				{TransportSocket: socket(t, &quicv3.QuicDownstreamTransport{DownstreamTlsContext: downstreamTLS(peerExchange, "h3")})},
				{TransportSocket: socket(t, &starttlsv3.StartTlsConfig{TlsSocketConfig: downstreamTLS(peerExchange)})},
			}},
			&listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{
				{TransportSocket: socket(t, &quicv3.QuicDownstreamTransport{DownstreamTlsContext: downstreamTLS("h3")})},
				{TransportSocket: socket(t, &starttlsv3.StartTlsConfig{TlsSocketConfig: downstreamTLS()})},
			}},
			Report{Protocols: 2},
		},
		{
			"ALPN of health checks",
			&clusterv3.Cluster{HealthChecks: []*corev3.HealthCheck{{TlsOptions: &corev3.HealthCheck_TlsOptions{AlpnProtocols: []string{peerExchange, "h2"}}}}},
			&clusterv3.Cluster{HealthChecks: []*corev3.HealthCheck{{TlsOptions: &corev3.HealthCheck_TlsOptions{AlpnProtocols: []string{"h2"}}}}},
			Report{Protocols: 1},
		},
		{
			"Istio's name of a filter state factory",
			chain(networkFilterOf(packed(t, &setnetv3.Config{OnNewConnection: []*setcommonv3.FilterStateValue{{FactoryKey: "istio.hashable_string", ReadOnly: true}}})),
				networkFilterOf(packed(t, &hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(packed(t, &sethttpv3.Config{OnRequestHeaders: []*setcommonv3.FilterStateValue{{FactoryKey: "istio.hashable_string"}, {FactoryKey: "envoy.string"}}}))}}))),
			chain(networkFilterOf(packed(t, &setnetv3.Config{OnNewConnection: []*setcommonv3.FilterStateValue{{FactoryKey: "envoy.hashable_string", ReadOnly: true}}})),
				networkFilterOf(packed(t, &hcmv3.HttpConnectionManager{HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(packed(t, &sethttpv3.Config{OnRequestHeaders: []*setcommonv3.FilterStateValue{{FactoryKey: "envoy.hashable_string"}, {FactoryKey: "envoy.string"}}}))}}))),
			Report{Factories: 2},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := delta(t, c.in)
			got, report := rewrite(t, decode(t, in).TypeUrl, in)
			want := decode(t, delta(t, c.want))
			reference{t, false}.message(got.ProtoReflect())
			if !proto.Equal(got, want) {
				t.Errorf("got (+) is not what is wanted (-):\n%s", diff(text(t, want), text(t, got)))
			}
			c.report.Resources = 1
			if len(c.report.Left) == 0 {
				c.report.Changed = 1
			}
			if !reportsEqual(report, c.report) {
				t.Errorf("report: got %+v, want %+v", report, c.report)
			}
		})
	}
}

func TestECDS(t *testing.T) {
	config := func(name string, a *anypb.Any) *corev3.TypedExtensionConfig {
		return &corev3.TypedExtensionConfig{Name: name, TypedConfig: a}
	}
	in := delta(t, config("a", any0(typeStats)), config("b", any0(typeRouter)), config("c", xds(t, typePeerMetadata)),
		config("d", packed(t, &routerv3.Router{UpstreamLog: []*accesslogv3.AccessLog{loggerOf(any0(typeStats))}})))
	got, report := rewrite(t, "type.googleapis.com/"+typeTypedExtensionConfig, in)
	want := decode(t, delta(t, config("b", any0(typeRouter)), config("d", packed(t, &routerv3.Router{}))))
	reference{t, false}.message(got.ProtoReflect())
	if !proto.Equal(got, want) {
		t.Errorf("got (+) is not what is wanted (-):\n%s", diff(text(t, want), text(t, got)))
	}
	if wantReport := (Report{Resources: 4, Changed: 3, Removed: map[string]int{MetadataExchange: 1, Stats: 2}}); !reportsEqual(report, wantReport) {
		t.Errorf("report: %+v", report)
	}
}

func TestOnlyWhatIsMissingGoes(t *testing.T) {
	no := func(name string) Extensions { // Istio's build but for one
		return NewExtensions(slices.DeleteFunc(slices.Clone(istioExtensions), func(x Extension) bool { return strings.Contains(x.Name, name) }))
	}
	for _, c := range []struct {
		name    string
		ext     Extensions
		removed map[string]int
		lists   int
	}{
		{"without istio.stats, metadata is still exchanged", no("istio_stats"), map[string]int{Stats: 18}, 0},
		{"without metadata exchange in TCP, HTTP's stays", no("metadata_exchange"), map[string]int{MetadataExchange: 8}, 1},
		{"without metadata exchange in HTTP, TCP's stays", no("peer_metadata"), map[string]int{MetadataExchange: 5}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, report, err := New(c.ext).Response(urlOf(fixtureLDS), true, fixture(t, fixtureLDS))
			if err != nil || !maps.Equal(report.Removed, c.removed) || report.Protocols != c.lists || report.StandIns != 0 {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

func TestMalformedResponses(t *testing.T) {
	deep := packed(t, upstreamTLS(peerExchange))
	for range 200 {
		deep = packed(t, &internalv3.InternalUpstreamTransport{TransportSocket: &corev3.TransportSocket{ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: deep}}})
	}
	whole := fixture(t, fixtureLDS)
	for name, in := range map[string][]byte{
		"a truncated frame":                whole[:len(whole)-9],
		"a resource that is no listener":   encode(t, &discoveryv3.DeltaDiscoveryResponse{Resources: []*discoveryv3.Resource{{Resource: &anypb.Any{TypeUrl: urlOf(fixtureLDS), Value: []byte{0x1a, 0x7f}}}}}),
		"messages nested without an end":   delta(t, &listenerv3.Listener{FilterChains: []*listenerv3.FilterChain{{TransportSocket: &corev3.TransportSocket{ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: deep}}}}}),
		"a field number that is no number": {0x00, 0x01},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(stockEnvoy(t))
			out, report, err := r.Response(urlOf(fixtureLDS), true, in)
			if err == nil || out != nil || !reportsEqual(report, Report{}) {
				t.Fatalf("accepted: %+v", report)
			}
			if _, report, err := r.Response(urlOf(fixtureLDS), true, whole); err != nil || report.Changed != 9 {
				t.Errorf("the next response suffers: %+v, %v", report, err)
			}
		})
	}
}

func TestOtherTypesAreNotLookedAt(t *testing.T) {
	junk := []byte("not a response at all")
	for _, typeURL := range []string{urlOf(fixtureEDS), "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", ""} {
		out, _, err := New(stockEnvoy(t)).Response(typeURL, true, junk)
		if Wants(typeURL) || err != nil || &out[0] != &junk[0] {
			t.Errorf("%q is read: %v", typeURL, err)
		}
	}
}

func TestLeftIsBounded(t *testing.T) {
	var filters []*listenerv3.Filter
	for i := range 100 {
		filters = append(filters, networkFilterOf(any0(typeNobodys+string(rune('A'+i%26))+string(rune('a'+i/26)))))
	}
	_, report := rewrite(t, urlOf(fixtureLDS), delta(t, chain(filters...)))
	if len(report.Left) != maxLeft {
		t.Errorf("%d types named", len(report.Left))
	}
}
