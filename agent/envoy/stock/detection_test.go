package stock

import (
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"wingman/agent/envoy/envoytest"
)

// inbound is a peer's inbound listener that detects protocols: the fixture's, as istiod sends it to this Envoy, with its matches and ALPN
// lists. Its certificate and what answers behind its chains are the test's: "http", or the cluster answer, whichever was chosen.
func inbound(t *testing.T, r *Rewriter, at *corev3.Address) *listenerv3.Listener {
	t.Helper()
	out, _, err := r.Response(urlOf(fixtureLDS), true, fixture(t, fixtureLDS))
	if err != nil {
		t.Fatal(err)
	}
	all := unpacked(t, out, newListener)
	l := all[slices.IndexFunc(all, func(l *listenerv3.Listener) bool { return l.Name == "virtualInbound" })]
	_, cert, key := certificate(t)
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	answers := map[string]*listenerv3.Filter{
		"virtualInbound": networkFilterOf(packed(t, forward("answer"))),
		"virtualInbound-catchall-http": networkFilterOf(packed(t, &hcmv3.HttpConnectionManager{
			StatPrefix:  "p",
			HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(packed(t, &routerv3.Router{}))},
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{
				Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
					Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
					Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
						Status: http.StatusOK, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "http"}},
					}},
				}},
			}}}},
		})),
	}
	var chains []*listenerv3.FilterChain
	for _, c := range l.FilterChains {
		answer := answers[c.Name]
		if answer == nil || c.FilterChainMatch.GetTransportProtocol() != "tls" || len(c.FilterChainMatch.ApplicationProtocols) == 0 {
			continue
		}
		given := new(tlsv3.DownstreamTlsContext)
		if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(given); err != nil {
			t.Fatal(err)
		}
		own := downstreamTLS(given.CommonTlsContext.AlpnProtocols...)
		own.CommonTlsContext.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inline(cert), PrivateKey: inline(key)}}
		chains = append(chains, &listenerv3.FilterChain{Name: c.Name, FilterChainMatch: c.FilterChainMatch, TransportSocket: socket(t, own), Filters: []*listenerv3.Filter{answer}})
	}
	if len(chains) != 2 {
		t.Fatalf("%d chains of the fixture tell HTTP from TCP", len(chains))
	}
	tlsInspector := slices.IndexFunc(l.ListenerFilters, func(f *listenerv3.ListenerFilter) bool { return f.Name == "envoy.filters.listener.tls_inspector" })
	l.ListenerFilters[tlsInspector].FilterDisabled = nil // it goes by ports, and a pipe has none
	return &listenerv3.Listener{Name: "inbound", Address: at, ListenerFilters: l.ListenerFilters[tlsInspector : tlsInspector+1], FilterChains: chains}
}

// answer is the cluster behind the chain for TCP: whoever connects is told "tcp".
func answer(t *testing.T, p pipes) *clusterv3.Cluster {
	t.Helper()
	l, err := net.Listen("unix", p.address("answer").GetPipe().Path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, "tcp")
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return &clusterv3.Cluster{
		Name: "answer", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(5 * time.Second),
		LoadAssignment: endpoints("answer", p.address("answer")),
	}
}

// A peer that detects protocols treats HTTP as HTTP and TCP as TCP, both to the same cluster; with istio.alpn only taken out, it would
// take HTTP for TCP.
func TestAPeerTellsHTTPFromTCP(t *testing.T) {
	envoytest.Program(t)
	for _, c := range []struct {
		name    string
		standIn bool
	}{
		{"as rewritten", true},
		{"without a stand-in for istio.alpn", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPipes(t)
			r := New(stockEnvoy(t))
			if !c.standIn {
				r.standIn = nil
			}
			toHTTP, toTCP := outbound(t, p, "one", "one", "two")
			rewritten := func(typeURL string, frame []byte) []byte {
				out, _, err := r.Response(typeURL, true, frame)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			peer := p.address("peer")
			listeners := unpacked(t, rewritten(urlOf(fixtureLDS), delta(t, toHTTP, toTCP)), newListener)
			clusters := unpacked(t, rewritten(urlOf(fixtureCDS), delta(t,
				istioCluster(t, "one", peer, upstreamTLS(peerExchange, "istio"), nil), istioCluster(t, "two", peer, upstreamTLS(peerExchange, "istio", "h2"), http2Only()))), newCluster)
			runEnvoy(t, bootstrap(t, append(listeners, inbound(t, r, peer)), append(clusters, answer(t, p))))

			for _, q := range []struct{ client, path string }{{"HTTP/1.1", "/one"}, {"HTTP/2.0", "/two"}} {
				resp, err := p.clients("http")[q.client].Get("http://peer" + q.path)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if asHTTP := resp.StatusCode == http.StatusOK && string(body) == "http"; err != nil || asHTTP != c.standIn {
					t.Errorf("%s: got %d %q, %v; taken for HTTP should be %v", q.client, resp.StatusCode, body, err, c.standIn)
				}
			}
			conn, err := p.dial("tcp")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if body, err := io.ReadAll(conn); err != nil || string(body) != "tcp" {
				t.Errorf("TCP: %q, %v", body, err)
			}
		})
	}
}
