package stock

import (
	"bytes"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	setcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	setnetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"wingman/agent/envoy/envoytest"
)

// What istiod sends with its defaults is refused by a stock Envoy, and accepted once rewritten.
func TestEnvoyAcceptsWhatIsLeft(t *testing.T) {
	program := envoytest.Program(t)
	validate := func(lds, cds []byte) (string, error) {
		file := bootstrap(t, unpacked(t, lds, newListener), unpacked(t, cds, newCluster))
		out, err := exec.CommandContext(t.Context(), program, "--mode", "validate", "-c", file, "-l", "warning", "--disable-hot-restart").CombinedOutput()
		return string(out), err
	}
	lds, cds := fixture(t, fixtureLDS), fixture(t, fixtureCDS)
	// HBONE's listeners are not among the fixtures: one with what they hold and a stock Envoy has by another name.
	m, hbone := decode(t, lds), chain(
		networkFilterOf(packed(t, &setnetv3.Config{OnNewConnection: []*setcommonv3.FilterStateValue{{
			Key: &setcommonv3.FilterStateValue_ObjectKey{ObjectKey: "io.istio.connect_authority"}, FactoryKey: istioStringFactory,
			Value: &setcommonv3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
				TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "%DOWNSTREAM_PEER_URI_SAN%"}},
			}}},
		}}})),
		networkFilterOf(udpa(t, "envoy.extensions.network_filters.peer_metadata.Config")),
		networkFilterOf(packed(t, forward("agent"))),
	)
	hbone.Name, hbone.Address = "hbone", pipes(t.TempDir()).address("hbone")
	m.Resources = append(m.Resources, &discoveryv3.Resource{Name: "hbone", Resource: packed(t, hbone)})
	lds = encode(t, m)
	r := New(stockEnvoy(t))
	newLDS, _, err := r.Response(urlOf(fixtureLDS), true, lds)
	if err != nil {
		t.Fatal(err)
	}
	newCDS, _, err := r.Response(urlOf(fixtureCDS), true, cds)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := validate(newLDS, newCDS); err != nil {
		t.Errorf("rewritten, refused: %v\n%s", err, out)
	}
	named := bytes.ReplaceAll(newLDS, []byte("envoy.hashable_string"), []byte(istioStringFactory)) // of the same length
	if out, err := validate(named, newCDS); err == nil || !strings.Contains(out, "does not have an object factory") {
		t.Errorf("a factory by Istio's name: %v\n%s", err, out)
	}
	const reason = "Didn't find a registered implementation"
	if out, err := validate(lds, newCDS); err == nil || !strings.Contains(out, reason) {
		t.Errorf("listeners as istiod sent them: %v\n%s", err, out)
	}
	if out, err := validate(newLDS, cds); err == nil || !strings.Contains(out, reason) {
		t.Errorf("clusters as istiod sent them: %v\n%s", err, out)
	}
}

// The other side of TLS sees the protocols that it would see from Istio's Envoy.
func TestPeersSeeIstiosProtocols(t *testing.T) {
	envoytest.Program(t)
	p, tunnel := newPeer(t), newPeer(t)
	pipes := newPipes(t)

	// Clusters as istiod makes them: for TCP and HTTP/1, for HTTP/2, one that follows the client, one with the TLS of a DestinationRule,
	// and one whose connections go through a tunnel (HBONE).
	follow := &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig{UseDownstreamProtocolConfig: &upstreamv3.HttpProtocolOptions_UseDownstreamHttpConfig{
		HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
	}}}
	inside := istioCluster(t, "inside", &corev3.Address{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{
		AddressNameSpecifier: &corev3.EnvoyInternalAddress_ServerListenerName{ServerListenerName: "connect_originate"},
	}}}, upstreamTLS(peerExchange, "istio"), nil)
	inside.TransportSocket = socket(t, &internalv3.InternalUpstreamTransport{TransportSocket: inside.TransportSocket})
	clusters := delta(t,
		istioCluster(t, "http1", p.addr, upstreamTLS(peerExchange, "istio"), nil),
		istioCluster(t, "http2", p.addr, upstreamTLS(peerExchange, "istio", "h2"), http2Only()),
		istioCluster(t, "follow", p.addr, upstreamTLS(peerExchange, "istio"), follow),
		inside,
		istioCluster(t, "tunnel", tunnel.addr, upstreamTLS("h2"), http2Only()),
	)

	toHTTP, toTCP := outbound(t, pipes, "http1", "http1", "http2", "follow", "inside")
	proxied := forward("tunnel")
	proxied.TunnelingConfig = &tcpproxyv3.TcpProxy_TunnelingConfig{Hostname: "peer:80"}
	originate := chain(networkFilterOf(packed(t, proxied)))
	originate.Name, originate.ListenerSpecifier = "connect_originate", &listenerv3.Listener_InternalListener{InternalListener: &listenerv3.Listener_InternalListenerConfig{}}
	listeners := delta(t, toHTTP, toTCP, originate)

	r := New(stockEnvoy(t))
	newLDS, _, err := r.Response(urlOf(fixtureLDS), true, listeners)
	if err != nil {
		t.Fatal(err)
	}
	newCDS, _, err := r.Response(urlOf(fixtureCDS), true, clusters)
	if err != nil {
		t.Fatal(err)
	}
	runEnvoy(t, bootstrap(t, unpacked(t, newLDS, newListener), unpacked(t, newCDS, newCluster)))

	clients := pipes.clients("http")
	one, two := []string{"istio-http/1.1", "istio", "http/1.1"}, []string{"istio-h2", "istio", "h2"}
	for _, c := range []struct {
		name, client, path string
		want               []string
		speaks             string
	}{
		{"HTTP/1.1 to a cluster for HTTP/1", "HTTP/1.1", "/http1", one, "HTTP/1.1"},
		{"HTTP/2 to a cluster for HTTP/2", "HTTP/2.0", "/http2", two, "HTTP/2.0"},
		{"HTTP/1.1 to a cluster that follows the client", "HTTP/1.1", "/follow", one, "HTTP/1.1"},
		{"HTTP/2 to a cluster that follows the client", "HTTP/2.0", "/follow", two, "HTTP/2.0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, err := clients[c.client].Get("http://peer" + c.path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || string(body) != c.speaks {
				t.Fatalf("%d %q, %v", resp.StatusCode, body, err)
			}
			if got := <-p.offered; !slices.Equal(got, c.want) {
				t.Errorf("offered %v, want %v", got, c.want)
			}
		})
	}
	t.Run("TCP to the cluster that HTTP/1 uses too", func(t *testing.T) {
		conn, err := pipes.dial("tcp")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if got, want := <-p.offered, []string{"istio"}; !slices.Equal(got, want) {
			t.Errorf("offered %v, want %v", got, want)
		}
	})
	t.Run("HTTP through a tunnel does not change what the tunnel offers", func(t *testing.T) {
		resp, err := clients["HTTP/1.1"].Get("http://peer/inside") // the test's tunnel leads nowhere
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got, want := <-tunnel.offered, []string{"h2"}; !slices.Equal(got, want) {
			t.Errorf("offered %v, want %v", got, want)
		}
	})
}
