package controlplane

import (
	"maps"
	"slices"
	"strings"
)

// Type URLs the stand-in answers. Istio: pilot/pkg/xds/v3/model.go.
const (
	ClusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	SecretType    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	NameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	ProxyConfig   = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"
	HealthType    = "type.googleapis.com/istio.v1.HealthInformation"
)

// pushOrder is the order types are pushed in when several change; types not named follow. Istio: ads.go, PushOrder.
var pushOrder = []string{ClusterType, EndpointType, ListenerType, RouteType, SecretType, ExtensionType, NameTableType, ProxyConfig}

// wildcard reports whether a type without names means all of it. Istio: pkg/xds/server.go, IsWildcardTypeURL.
func wildcard(typeURL string) bool {
	switch typeURL {
	case SecretType, EndpointType, RouteType, ExtensionType:
		return false
	}
	return true
}

// watch is what a stream has subscribed to of one type, and how far it got. The zero value is a new subscription.
type watch struct {
	names     map[string]bool
	sent      string // last nonce sent; empty before the first answer
	acked     string
	lastError string // of a NACK; cleared by the next ACK
}

// request is a DiscoveryRequest or a DeltaDiscoveryRequest, without what decides nothing.
type request struct {
	typeURL     string
	nonce       string
	names       []string // SotW: all names; delta: newly subscribed ones
	unsubscribe []string // delta
	initial     []string // delta: names in initial_resource_versions
	nack        bool
	message     string // of the NACK
}

// verdict is what a request means.
type verdict struct {
	kind    EventKind
	respond bool
	drop    bool     // SotW: the subscription ended
	only    []string // answer with these names only; nil means all that are subscribed
	detail  string
}

// stepDelta decides on one request of a delta stream; w is the type's watch or nil, and the result is its next state.
// A repeated first request changes nothing and gets no answer, which is why a restarted Envoy cannot join an old stream.
// A NACK for a type that was never subscribed crashes istiod; here it is a Violation.
// Istio: pilot/pkg/xds/delta.go, shouldRespondDelta.
func stepDelta(w *watch, r request) (*watch, verdict) {
	if r.nack {
		return stepNack(w, r)
	}
	if w == nil {
		next := &watch{names: map[string]bool{}}
		next.subscribe(r)
		return next, verdict{kind: RequestReceived, respond: true, only: r.wanted()}
	}
	if r.nonce != "" && r.nonce != w.sent {
		return w, verdict{kind: StaleNonce}
	}
	next := w.clone()
	changed := next.subscribe(r)
	kind := RequestReceived
	if r.nonce != "" {
		kind = Acked
		next.lastError, next.acked = "", r.nonce
	}
	v := verdict{kind: kind, respond: changed, only: r.wanted()}
	switch {
	case !changed && r.nonce == "":
		v.detail = "repeats a subscription, gets no answer"
	case changed && v.only == nil && len(r.unsubscribe) > 0:
		v.respond = false // nothing but removals
	}
	return next, v
}

// stepSotW is stepDelta for a state-of-the-world stream: there a repeated first request is answered again.
// Istio: pkg/xds/server.go, ShouldRespond.
func stepSotW(w *watch, r request) (*watch, verdict) {
	if r.nack {
		return stepNack(w, r)
	}
	if len(r.names) == 0 && !wildcard(r.typeURL) {
		return nil, verdict{kind: RequestReceived, drop: true, detail: "unsubscribes"}
	}
	if w == nil || r.nonce == "" {
		next := &watch{names: setOf(r.names)}
		return next, verdict{kind: RequestReceived, respond: true}
	}
	if r.nonce != w.sent {
		return w, verdict{kind: StaleNonce}
	}
	next := w.clone()
	next.lastError, next.acked, next.names = "", r.nonce, setOf(r.names)
	var added []string
	for name := range next.names {
		if !w.names[name] {
			added = append(added, name)
		}
	}
	slices.Sort(added)
	removed := len(w.names)+len(added) > len(next.names)
	respond := len(added) > 0 || removed && wildcard(r.typeURL)
	return next, verdict{kind: Acked, respond: respond, only: added}
}

func stepNack(w *watch, r request) (*watch, verdict) {
	if w == nil {
		return nil, verdict{kind: Violation, detail: "NACK for a type without a subscription: " + r.message}
	}
	next := w.clone()
	next.lastError = r.message
	return next, verdict{kind: Nacked, detail: r.message}
}

// subscribe applies a delta request's names and reports whether any changed. A "*" is never kept, so that each one counts
// as a change. Istio: pilot/pkg/xds/delta.go, deltaWatchedResources.
func (w *watch) subscribe(r request) bool {
	changed := false
	for _, name := range slices.Concat(r.names, r.initial) {
		changed = changed || !w.names[name]
		w.names[name] = true
	}
	for _, name := range r.unsubscribe {
		changed = changed || w.names[name]
		delete(w.names, name)
	}
	delete(w.names, "*")
	return changed
}

func (w *watch) clone() *watch {
	next := *w
	next.names = maps.Clone(w.names)
	if next.names == nil {
		next.names = map[string]bool{}
	}
	return &next
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

// wanted are the names a delta request asks an answer for, sorted; nil means all.
func (r request) wanted() []string {
	w := watch{names: map[string]bool{}}
	w.subscribe(r)
	return slices.Sorted(maps.Keys(w.names))
}

// shortType is the message name of a type URL.
func shortType(typeURL string) string {
	return typeURL[strings.LastIndexAny(typeURL, "./")+1:]
}
