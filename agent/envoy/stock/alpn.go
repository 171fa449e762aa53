package stock

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
)

// What Istio's peers agree on in TLS: pilot/pkg/xds/filters, mtlsHTTP11ALPN and mtlsHTTP2ALPN. HTTP/1.0 goes upstream as HTTP/1.1.
const (
	protocolsHTTP1 = "istio-http/1.1,istio,http/1.1"
	protocolsHTTP2 = "istio-h2,istio,h2"
	peerExchange   = "istio-peer-exchange"
)

// filterStateKey is where Envoy's router looks for the protocols to offer instead of the cluster's own (comma-separated).
const filterStateKey = "envoy.network.application_protocols"

// Where a cluster's metadata keeps its list: by metaFixed, or by the client's protocol as Envoy writes it.
const (
	metaNamespace = "wingman.alpn"
	metaFixed     = "fixed"
)

// marks are what is appended to a cluster: its field metadata, with our namespace only. Protobuf merges it with what is there.
type marks struct{ http1, http2, follow []byte } // nil: no mark

func newMarks(cel bool) marks {
	m := marks{http1: clusterMark(metaFixed, protocolsHTTP1), http2: clusterMark(metaFixed, protocolsHTTP2)}
	if cel {
		m.follow = clusterMark("HTTP/1.0", protocolsHTTP1, "HTTP/1.1", protocolsHTTP1, "HTTP/2", protocolsHTTP2)
	}
	return m
}

// clusterMark is the field Cluster.metadata with the given keys and values.
func clusterMark(pairs ...string) []byte {
	var values []byte
	for i := 0; i < len(pairs); i += 2 {
		value := embed(3, pairs[i+1]) // Value.string_value
		values = append(values, embed(1, append(embed(1, pairs[i]), embed(2, value)...))...)
	}
	entry := append(embed(1, metaNamespace), embed(2, values)...)
	return embed(25, embed(1, entry)) // Cluster.metadata, Metadata.filter_metadata
}

// mark appends to the cluster that ends at to what HTTP requests to it offer in TLS, as istio.alpn would decide it
// (ClusterInfo::upstreamHttpProtocol, the first one). It returns by how much the cluster grows.
func (r *Rewriter) mark(to int) (grown int) {
	if r.standIn == nil || r.facts&hasTLS == 0 || r.facts&(keepsALPN|hasHTTP3) != 0 {
		return 0
	}
	text := r.marks.http1
	switch {
	case r.facts&followsClient != 0:
		text = r.marks.follow
	case r.facts&(hasHTTP2|isAuto) != 0:
		text = r.marks.http2
	}
	if text == nil {
		r.report.Unmarked++
		return 0
	}
	r.patches = append(r.patches, patch{at: to, end: to, text: text})
	r.report.Marked++
	return len(text)
}

// keepsProtocols reports whether a cluster's Metadata tells istio.alpn to leave it alone: filter_metadata istio.alpn_override is "false",
// as istiod sets it where a DestinationRule brings its own TLS.
func keepsProtocols(metadata []byte) (yes bool) {
	const key = "alpn_override"
	if !bytes.Contains(metadata, []byte(key)) {
		return false
	}
	_ = each(metadata, 1, func(entry []byte) error {
		if string(last(entry, 1)) != "istio" {
			return nil
		}
		return each(last(entry, 2), 1, func(field []byte) error {
			if string(last(field, 1)) == key {
				yes = string(last(last(field, 2), 3)) == "false"
			}
			return nil
		})
	})
	return yes
}

// standIn is the HttpFilter that takes the place of istio.alpn, with its length. Its values are set in order; the last that is not
// empty counts, and at most one is not.
func standIn(cel bool) []byte {
	config := embed(1, protocolsFrom("%CLUSTER_METADATA("+metaNamespace+":"+metaFixed+")%")) // on_request_headers
	if cel {
		expression := "%CEL(xds.cluster_metadata.filter_metadata['" + metaNamespace + "'][request.protocol])%"
		config = append(config, embed(1, protocolsFrom(expression))...)
	}
	typed := append(embed(1, "type.googleapis.com/"+typeSetFilterState), embed(2, config)...)
	body := append(embed(1, "envoy.filters.http.set_filter_state"), embed(4, typed)...)
	return append(protowire.AppendVarint(nil, uint64(len(body))), body...)
}

// protocolsFrom is a FilterStateValue that holds what format gives, and is not set at all when that is nothing.
func protocolsFrom(format string) []byte {
	source := embed(3, format)               // DataSource.inline_string
	text := truth(nil, 3)                    // SubstitutionFormatString.omit_empty_values
	text = append(text, embed(5, source)...) // text_format_source
	b := append(embed(1, filterStateKey), embed(2, text)...)
	return truth(b, 5) // skip_if_empty
}

// truth appends a bool that is true.
func truth(b []byte, num protowire.Number) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), 1)
}
