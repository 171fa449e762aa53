package stock

import (
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// istioExtensions are those of Istio's build, as it lists them.
var istioExtensions = []Extension{
	{Name: "envoy.filters.http.router", Category: "envoy.filters.http", TypeURLs: []string{"envoy.extensions.filters.http.router.v3.Router"}},
	{Name: "istio.alpn", Category: "envoy.filters.http", TypeURLs: []string{typeALPN}},
	{Name: "istio.metadata_exchange", Category: "envoy.filters.network", TypeURLs: []string{typeMetadataExchange}},
	{Name: "envoy.filters.network.upstream.metadata_exchange", Category: "envoy.filters.upstream_network", TypeURLs: []string{typeMetadataExchange}},
	{Name: "envoy.filters.http.peer_metadata", Category: "envoy.filters.http", TypeURLs: []string{typePeerMetadata}},
	{Name: "envoy.filters.http.istio_stats", Category: "envoy.filters.http", TypeURLs: []string{typeStats}},
}

func istioEnvoy() Extensions { return NewExtensions(istioExtensions) }

func TestExtensions(t *testing.T) {
	without := func(name string) []Extension {
		return slices.DeleteFunc(slices.Clone(istioExtensions), func(x Extension) bool { return strings.HasSuffix(x.Name, name) })
	}
	untyped := slices.Clone(istioExtensions)
	for i := range untyped {
		untyped[i].TypeURLs = nil
	}
	disabled := slices.Clone(istioExtensions)
	disabled[1].Disabled = true
	prefixed := slices.Clone(istioExtensions)
	for i := range prefixed {
		prefixed[i].Name, prefixed[i].TypeURLs = "renamed", []string{"type.googleapis.com/" + prefixed[i].TypeURLs[0]}
	}
	for _, c := range []struct {
		name    string
		list    []Extension
		missing []string
	}{
		{"a node that lists nothing lacks nothing that we know of", nil, nil},
		{"Istio's build lacks nothing", istioExtensions, nil},
		{"Istio's build of old, which lists no types, lacks nothing", untyped, nil},
		{"types may stand there as URLs", prefixed, nil},
		{"a switched-off extension is missing", disabled, []string{ALPN, PeerMetadata}},
		{"a build may lack one of them", without("istio_stats"), []string{PeerMetadata, Stats}},
		{"HTTP metadata exchange alone may be missing", without("peer_metadata"), []string{MetadataExchange, PeerMetadata}},
		{"a stock build lacks them all", istioExtensions[:1], []string{ALPN, MetadataExchange, PeerMetadata, Stats}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := NewExtensions(c.list)
			if got := e.Missing(); !slices.Equal(got, c.missing) {
				t.Errorf("missing %v, want %v", got, c.missing)
			}
			if e.Needed() != (len(c.missing) > 0) {
				t.Errorf("needed: %v", e.Needed())
			}
		})
	}
}

func TestFromRequest(t *testing.T) {
	node := &corev3.Node{Id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local"}
	for _, x := range istioExtensions[:1] {
		node.Extensions = append(node.Extensions, &corev3.Extension{Name: x.Name, Category: x.Category, TypeUrls: x.TypeURLs})
	}
	delta, err := FromRequest(encode(t, &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: "x"}), true)
	if err != nil || !delta.Needed() {
		t.Errorf("delta request: %+v, %v", delta, err)
	}
	sotw, err := FromRequest(encode(t, &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: "x"}), false)
	if err != nil || !sotw.Needed() {
		t.Errorf("state-of-the-world request: %+v, %v", sotw, err)
	}
	later, err := FromRequest(encode(t, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "x"}), true)
	if err != nil || later.Needed() {
		t.Errorf("a later request has no node: %+v, %v", later, err)
	}
	if _, err := FromRequest([]byte{0x0a, 0x7f, 1}, true); err == nil {
		t.Error("a truncated request is accepted")
	}
}

func TestEnvoy140(t *testing.T) {
	e := stockEnvoy(t)
	if want := []string{ALPN, MetadataExchange, PeerMetadata, Stats}; !slices.Equal(e.Missing(), want) {
		t.Errorf("missing %v, want %v", e.Missing(), want)
	}
	if !e.setFilterState || !e.cel || e.stringFactory != "envoy.hashable_string" {
		t.Errorf("what stands in is not there: %v %v %q", e.setFilterState, e.cel, e.stringFactory)
	}
}
