package stock

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Names of Istio's extensions as Reports and metrics use them.
const (
	ALPN             = "istio.alpn"
	MetadataExchange = "istio.metadata_exchange"
	PeerMetadata     = "istio.peer_metadata"
	Stats            = "istio.stats"
)

// istioTypes maps the configuration types of Istio's extensions to the names above. Types, not names, decide: the name of a filter
// in a listener is free. Only telemetry and ALPN: a missing filter that enforces something must not be left out quietly.
var istioTypes = map[string]string{
	typeALPN:             ALPN,
	typeMetadataExchange: MetadataExchange, // network and upstream filter
	typePeerMetadata:     MetadataExchange, // HTTP filter of the same name
	"envoy.extensions.network_filters.peer_metadata.Config":         PeerMetadata, // HBONE, network filter
	"envoy.extensions.network_filters.peer_metadata.UpstreamConfig": PeerMetadata, // HBONE, upstream filter
	typeStats: Stats, // HTTP and network filter, access logger
}

const (
	typeALPN             = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
	typeMetadataExchange = "envoy.tcp.metadataexchange.config.MetadataExchange"
	typePeerMetadata     = "io.istio.http.peer_metadata.Config"
	typeStats            = "stats.PluginConfig"
	typeSetFilterState   = "envoy.extensions.filters.http.set_filter_state.v3.Config"
)

// factoryNames are the names by which builds of Envoy that list no types (before 1.22) register the extensions.
var factoryNames = map[string][]string{
	typeALPN:             {ALPN},
	typeMetadataExchange: {MetadataExchange, "envoy.filters.network.metadata_exchange", "envoy.filters.network.upstream.metadata_exchange"},
	typePeerMetadata:     {"envoy.filters.http.peer_metadata"},
	typeStats:            {Stats, "envoy.filters.http.istio_stats", "envoy.filters.network.istio_stats"},
}

// Extension is one entry of a node's extensions list (envoy.config.core.v3.Extension).
type Extension struct {
	Name, Category string
	TypeURLs       []string // full names of the configuration's types; none for old builds and for extensions without configuration
	Disabled       bool     // built in and switched off: as good as missing
}

// Extensions says which of Istio's extensions an Envoy lacks. The zero value lacks nothing. It does not change once made.
type Extensions struct {
	known   map[string]struct{} // every configuration type that Envoy has
	missing map[string]string   // those of istioTypes that it lacks

	setFilterState bool   // envoy.filters.http.set_filter_state is there
	cel            bool   // the formatter %CEL()% is there
	stringFactory  string // replaces istio.hashable_string; empty when there is nothing to replace, or nothing to replace it with
}

// NewExtensions sorts the extensions of one Envoy. An empty list says nothing about it: then nothing counts as missing.
func NewExtensions(list []Extension) Extensions {
	if len(list) == 0 {
		return Extensions{}
	}
	e := Extensions{known: make(map[string]struct{}, len(list)), missing: map[string]string{}}
	names := make(map[string]struct{}, len(list))
	for _, x := range list {
		if x.Disabled {
			continue
		}
		names[x.Name] = struct{}{}
		for _, t := range x.TypeURLs {
			e.known[typeName(t)] = struct{}{}
		}
	}
	has := func(name string) bool { _, ok := names[name]; return ok }
	for t, name := range istioTypes {
		if _, ok := e.known[t]; !ok && !slices.ContainsFunc(factoryNames[t], has) {
			e.missing[t] = name
		}
	}
	// The types of HBONE came late: an older build of Istio's has all but them, and istiod sends them to no such version.
	if !slices.ContainsFunc([]string{typeALPN, typeMetadataExchange, typePeerMetadata, typeStats}, func(t string) bool { return e.missing[t] != "" }) {
		return Extensions{}
	}
	_, e.setFilterState = e.known[typeSetFilterState]
	e.cel = has("envoy.built_in_formatters.cel")
	if !has(istioStringFactory) {
		for _, name := range []string{"envoy.hashable_string", "envoy.string"} {
			if has(name) {
				e.stringFactory = name
				break
			}
		}
	}
	return e
}

// istioStringFactory makes the filter state objects of HBONE's listeners. Istio offered it to Envoy, where it is envoy.hashable_string.
const istioStringFactory = "istio.hashable_string"

// FromRequest reads the extensions of the node in a DeltaDiscoveryRequest (delta) or DiscoveryRequest, as Envoy's first request on a
// stream names it. A request without a node, or a node without extensions, gives the zero value. The frame is not kept.
func FromRequest(frame []byte, delta bool) (Extensions, error) {
	node := protowire.Number(2)
	if delta {
		node = 1
	}
	var list []Extension
	err := each(frame, node, func(node []byte) error {
		return each(node, 9, func(b []byte) error { // Node.extensions
			var x Extension
			err := fields(b, func(num protowire.Number, body []byte, n uint64) {
				switch num {
				case 1:
					x.Name = string(body)
				case 2:
					x.Category = string(body)
				case 5:
					x.Disabled = n != 0
				case 6:
					x.TypeURLs = append(x.TypeURLs, string(body))
				}
			})
			list = append(list, x)
			return err
		})
	})
	if err != nil {
		return Extensions{}, fmt.Errorf("extensions of Envoy's node: %w", err)
	}
	return NewExtensions(list), nil
}

// Needed reports whether responses must be rewritten for this Envoy.
func (e Extensions) Needed() bool { return len(e.missing) > 0 }

// Missing names what is missing, sorted: the constants of this package.
func (e Extensions) Missing() []string {
	var names []string
	for _, name := range e.missing {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// lacks reports whether Envoy lacks the extension that is configured by type t, and its name.
func (e *Extensions) lacks(t []byte) (name string, yes bool) {
	name, yes = e.missing[string(t)]
	return name, yes
}

// unknown reports whether no extension of Envoy's is configured by type t.
func (e *Extensions) unknown(t []byte) bool {
	if len(e.known) == 0 {
		return false
	}
	_, ok := e.known[string(t)]
	return !ok
}

// typeName is the part of a type URL that counts: what stands behind the last slash.
func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }
