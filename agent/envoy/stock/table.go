package stock

import "google.golang.org/protobuf/encoding/protowire"

// action is what a field calls for. The zero value passes over it.
type action uint8

const (
	pass        action = iota
	nest               // a message that leads on
	extension          // an Any; its type decides
	optional           // an Any that goes when its type is missing
	filter             // a message with an extension, in a list: it goes when that is missing
	httpRequest        // a filter of HTTP, on the way of a request: it goes, and a stand-in may come
	typeURLs           // types that ECDS may deliver
	alpn               // a list of protocols
	factory            // the name of a filter state factory
	override           // a cluster's metadata, which can switch off istio.alpn
)

// note is a fact about the cluster that is being read.
type note uint16

const (
	hasTLS note = 1 << iota
	hasHTTP2
	hasHTTP3
	followsClient // speaks the client's protocol
	isAuto        // agrees on one by ALPN; istio.alpn took this for HTTP/2
	keepsALPN     // istio.alpn left it alone
	asksNames     // its endpoints are names
	ownPatience   // its resolver says how long it is waited for
	ownRetry      // it says when a name that was not found is asked for again
)

// slot is a field: what to do with it, and what it says about a cluster by being there.
type slot struct {
	do   action
	to   *message // for nest, filter and httpRequest
	note note
	only uint64 // the note counts only for this value of a varint; 0 for any
}

// message holds the slots of a message by field number, and what its being there says about a cluster.
type message struct {
	slots []slot
	note  note
}

var noSlot slot

func (m *message) slot(num protowire.Number) *slot {
	if uint(num) < uint(len(m.slots)) {
		return &m.slots[num]
	}
	return &noSlot
}

// Messages on the way to a filter, an ALPN list or an Any, by Envoy's API v3. Names are those of Envoy's messages.
var (
	deltaResource         = message{slots: []slot{2: {do: extension}}}
	extensionConfigSource = message{slots: []slot{2: {do: optional}, 4: {do: typeURLs}}}
	typedExtensionConfig  = message{slots: []slot{2: {do: extension}}}
	accessLog             = message{slots: []slot{4: {do: extension}}}
	perFilterEntry        = message{slots: []slot{2: {do: extension}}}
	filterConfig          = message{slots: []slot{1: {do: extension}}}
	httpFilter            = message{slots: []slot{4: {do: extension}, 5: {do: nest, to: &extensionConfigSource}}}
	networkFilter         = message{slots: []slot{4: {do: extension}, 5: {do: nest, to: &extensionConfigSource}}}
	listenerFilter        = message{slots: []slot{3: {do: extension}, 5: {do: nest, to: &extensionConfigSource}}}
	clusterFilter         = message{slots: []slot{2: {do: extension}, 3: {do: nest, to: &extensionConfigSource}}}
	extensionWithMatcher  = message{slots: []slot{2: {do: nest, to: &typedExtensionConfig}}}

	transportSocket      = message{slots: []slot{3: {do: extension}}}
	commonTLSContext     = message{slots: []slot{4: {do: alpn}, 13: {do: nest, to: &typedExtensionConfig}, 16: {do: nest, to: &typedExtensionConfig}}}
	downstreamTLSContext = message{slots: []slot{1: {do: nest, to: &commonTLSContext}}}
	upstreamTLSContext   = message{slots: []slot{1: {do: nest, to: &commonTLSContext}}, note: hasTLS}
	quicDownstream       = message{slots: []slot{1: {do: nest, to: &downstreamTLSContext}}}
	quicUpstream         = message{slots: []slot{1: {do: nest, to: &upstreamTLSContext}}}
	startTLSDownstream   = message{slots: []slot{2: {do: nest, to: &downstreamTLSContext}}}
	startTLSUpstream     = message{slots: []slot{2: {do: nest, to: &upstreamTLSContext}}}
	socketIn1            = message{slots: []slot{1: {do: nest, to: &transportSocket}}}
	socketIn2            = message{slots: []slot{2: {do: nest, to: &transportSocket}}}
	socketIn3            = message{slots: []slot{3: {do: nest, to: &transportSocket}}}

	listener = message{slots: []slot{
		3: {do: nest, to: &filterChain}, 9: {do: filter, to: &listenerFilter}, 19: {do: nest, to: &apiListener},
		22: {do: filter, to: &accessLog}, 25: {do: nest, to: &filterChain},
	}}
	apiListener = message{slots: []slot{1: {do: extension}}}
	filterChain = message{slots: []slot{3: {do: filter, to: &networkFilter}, 6: {do: nest, to: &transportSocket}}}

	connectionManager = message{slots: []slot{
		4: {do: nest, to: &routeConfiguration}, 5: {do: httpRequest, to: &httpFilter}, 7: {do: nest, to: &tracing}, 13: {do: filter, to: &accessLog},
		23: {do: nest, to: &upgradeConfig}, 31: {do: nest, to: &scopedRoutes}, 36: {do: nest, to: &requestIDExtension},
		46: {do: nest, to: &typedExtensionConfig}, 50: {do: nest, to: &typedExtensionConfig}, 52: {do: nest, to: &typedExtensionConfig},
	}}
	tracing            = message{slots: []slot{9: {do: nest, to: &tracingProvider}}}
	tracingProvider    = message{slots: []slot{3: {do: extension}}}
	upgradeConfig      = message{slots: []slot{2: {do: httpRequest, to: &httpFilter}}}
	requestIDExtension = message{slots: []slot{1: {do: extension}}}
	scopedRoutes       = message{slots: []slot{4: {do: nest, to: &scopedRoutesList}}}
	scopedRoutesList   = message{slots: []slot{1: {do: nest, to: &scopedRoute}}}
	tcpProxy           = message{slots: []slot{5: {do: filter, to: &accessLog}}}
	udpProxy           = message{slots: []slot{8: {do: filter, to: &accessLog}, 10: {do: filter, to: &accessLog}}}
	thriftProxy        = message{slots: []slot{9: {do: filter, to: &accessLog}}}
	genericProxy       = message{slots: []slot{7: {do: filter, to: &accessLog}}}
	dnsFilter          = message{slots: []slot{4: {do: filter, to: &accessLog}}}
	router             = message{slots: []slot{3: {do: filter, to: &accessLog}, 8: {do: filter, to: &httpFilter}}}

	filterStateValue      = message{slots: []slot{6: {do: factory}}}
	httpSetFilterState    = message{slots: []slot{1: {do: nest, to: &filterStateValue}}}
	networkSetFilterState = message{slots: []slot{1: {do: nest, to: &filterStateValue}, 2: {do: nest, to: &filterStateValue}, 3: {do: nest, to: &filterStateValue}}}

	scopedRoute        = message{slots: []slot{5: {do: nest, to: &routeConfiguration}}}
	routeConfiguration = message{slots: []slot{2: {do: nest, to: &virtualHost}, 16: {do: filter, to: &perFilterEntry}}}
	virtualHost        = message{slots: []slot{3: {do: nest, to: &route}, 15: {do: filter, to: &perFilterEntry}}}
	route              = message{slots: []slot{2: {do: nest, to: &routeAction}, 13: {do: filter, to: &perFilterEntry}}}
	routeAction        = message{slots: []slot{3: {do: nest, to: &weightedCluster}}}
	weightedCluster    = message{slots: []slot{1: {do: nest, to: &clusterWeight}}}
	clusterWeight      = message{slots: []slot{10: {do: filter, to: &perFilterEntry}}}

	cluster = message{slots: []slot{
		8: {do: nest, to: &healthCheck}, 14: {note: hasHTTP2}, 24: {do: nest, to: &transportSocket}, 25: {do: override}, 26: {note: followsClient, only: 1},
		36: {do: nest, to: &perFilterEntry}, 38: {do: nest, to: &typedExtensionConfig}, 40: {do: filter, to: &clusterFilter},
		43: {do: nest, to: &transportSocketMatch}, 44: {note: ownRetry}, 48: {do: nest, to: &typedExtensionConfig}, 55: {do: nest, to: &typedExtensionConfig},
	}}
	caresResolver        = message{slots: []slot{6: {note: ownPatience}, 7: {note: ownPatience}}, note: asksNames}
	transportSocketMatch = message{slots: []slot{3: {do: nest, to: &transportSocket}}}
	healthCheck          = message{slots: []slot{21: {do: nest, to: &healthCheckTLS}}}
	healthCheckTLS       = message{slots: []slot{1: {do: alpn}}}
	httpOptions          = message{slots: []slot{
		3: {do: nest, to: &explicitHTTP}, 4: {note: followsClient}, 5: {do: nest, to: &autoHTTP, note: isAuto},
		6: {do: filter, to: &httpFilter}, 7: {do: nest, to: &typedExtensionConfig},
	}}
	explicitHTTP = message{slots: []slot{2: {note: hasHTTP2}, 3: {note: hasHTTP3}}}
	autoHTTP     = message{slots: []slot{3: {note: hasHTTP3}}}
)

// types are the messages that an Any can hold, by full name.
var types = map[string]*message{
	typeListener:                             &listener,
	typeCluster:                              &cluster,
	typeRoutes:                               &routeConfiguration,
	typeVirtualHost:                          &virtualHost,
	typeScopedRoutes:                         &scopedRoute,
	typeTypedExtensionConfig:                 &typedExtensionConfig,
	typeFilterConfig:                         &filterConfig,
	typeExtensionWithMatcher:                 &extensionWithMatcher,
	typeSetFilterState:                       &httpSetFilterState,
	hcm + "HttpConnectionManager":            &connectionManager,
	hcm + "EnvoyMobileHttpConnectionManager": {slots: []slot{1: {do: nest, to: &connectionManager}}},
	"envoy.extensions.filters.network.set_filter_state.v3.Config":           &networkSetFilterState,
	"envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy":                &tcpProxy,
	"envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy":          &thriftProxy,
	"envoy.extensions.filters.network.generic_proxy.v3.GenericProxy":        &genericProxy,
	"envoy.extensions.filters.udp.dns_filter.v3.DnsFilterConfig":            &dnsFilter,
	"envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig":              &udpProxy,
	"envoy.extensions.filters.http.router.v3.Router":                        &router,
	"envoy.extensions.upstreams.http.v3.HttpProtocolOptions":                &httpOptions,
	"envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig": &caresResolver,
	sockets + "tls.v3.DownstreamTlsContext":                                 &downstreamTLSContext,
	sockets + "tls.v3.UpstreamTlsContext":                                   &upstreamTLSContext,
	sockets + "quic.v3.QuicDownstreamTransport":                             &quicDownstream,
	sockets + "quic.v3.QuicUpstreamTransport":                               &quicUpstream,
	sockets + "starttls.v3.StartTlsConfig":                                  &startTLSDownstream,
	sockets + "starttls.v3.UpstreamStartTlsConfig":                          &startTLSUpstream,
	sockets + "internal_upstream.v3.InternalUpstreamTransport":              &socketIn3,
	sockets + "proxy_protocol.v3.ProxyProtocolUpstreamTransport":            &socketIn2,
	sockets + "tap.v3.Tap":                                                  &socketIn2,
	sockets + "tcp_stats.v3.Config":                                         &socketIn1,
	sockets + "http_11_proxy.v3.Http11ProxyUpstreamTransport":               &socketIn1,
}

const (
	hcm     = "envoy.extensions.filters.network.http_connection_manager.v3."
	sockets = "envoy.extensions.transport_sockets."

	typeListener             = "envoy.config.listener.v3.Listener"
	typeCluster              = "envoy.config.cluster.v3.Cluster"
	typeRoutes               = "envoy.config.route.v3.RouteConfiguration"
	typeVirtualHost          = "envoy.config.route.v3.VirtualHost"
	typeScopedRoutes         = "envoy.config.route.v3.ScopedRouteConfiguration"
	typeFilterConfig         = "envoy.config.route.v3.FilterConfig"
	typeTypedExtensionConfig = "envoy.config.core.v3.TypedExtensionConfig"
	typeExtensionWithMatcher = "envoy.extensions.common.matching.v3.ExtensionWithMatcher"
	typeUDPATypedStruct      = "udpa.type.v1.TypedStruct"
	typeXDSTypedStruct       = "xds.type.v3.TypedStruct"
)

// resources are the types that istiod sends by themselves and that can hold a filter.
var resources = map[string]bool{
	typeListener: true, typeCluster: true, typeRoutes: true, typeVirtualHost: true, typeScopedRoutes: true, typeTypedExtensionConfig: true,
}
