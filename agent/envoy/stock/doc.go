// Package stock makes istiod's configuration fit for an Envoy that was built without Istio's extensions.
//
// istiod sends every proxy filters that only Istio's build of Envoy has, and Envoy refuses each listener and cluster that holds one.
// Extensions tells, from Envoy's first request, which of them are missing; Rewriter takes those out of a response and leaves every
// other byte as it was. With Istio's build nothing is missing (Needed is false) and the caller passes the bytes on unread.
//
// Three things are done, each only when the extension that it makes up for is missing:
//
//   - Filters: istio.alpn, istio.metadata_exchange, istio.stats and istio.peer_metadata leave every list of HTTP, network and upstream
//     filters and of access loggers, route configuration and ECDS, also inside TypedStruct. They carry telemetry and no policy; any
//     other extension that this Envoy does not know is named in the Report and left for Envoy to judge.
//   - Metadata exchange inside TCP streams: the ALPN istio-peer-exchange leaves every alpn_protocols list, or a peer would send a
//     preface that nobody here takes out again. Filter chain matches on it stay: they only match what peers offer.
//   - HTTP's ALPN: a peer that detects protocols tells HTTP from TCP by istio-http/1.1 or istio-h2, which istio.alpn put into place for
//     each request, by the protocol of the cluster that the request goes to. Here each cluster with TLS carries its list in its metadata
//     (filter_metadata, wingman.alpn), and at the place of istio.alpn stands envoy.filters.http.set_filter_state, which copies it from
//     there to the filter state envoy.network.application_protocols. A cluster that speaks the client's protocol carries one list for
//     each, chosen by a CEL expression. The choice must be made there: an upstream HTTP filter runs after the connection is chosen.
//
// While it is at it: a cluster whose endpoints are names gets an end to Envoy's patience with resolvers that do not answer (patience.go).
//
// Names of filter state factories that only Istio has (istio.hashable_string) turn into Envoy's own of the same meaning.
//
// The filter state is not shared with upstream connections, as istio.alpn's was not: Envoy's router reads it from the request itself,
// and a shared one would also reach the tunnel (HBONE) around the connection, whose TLS must offer h2.
//
// Rewriting happens on the wire format, by a table of the fields that lead to something of interest (table.go): a push of megabytes
// is read once, and a daemon that must stay small does not carry Envoy's whole API. The tests hold the table against that API.
// One limit: where an HTTP filter before istio.alpn clears the chosen route, the list is that of the route chosen first.
//
// With WINGMAN_ENVOY=/path/to/envoy the tests also run a real one: what it accepts, and what its peers see in TLS.
//
// No goroutines, files or ports. To match: Istio pilot/pkg/xds/filters (what is sent), pilot/pkg/networking/core/cluster_tls.go and
// listener.go (ALPN); Envoy source/common/http/conn_manager_impl.cc (the cluster is known before HTTP filters run).
package stock
