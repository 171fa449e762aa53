package stock

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	internallistenerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"wingman/agent/envoy/envoytest"
)

// staticCluster is one of those that stand in Envoy's bootstrap file and that istiod's configuration names.
func staticCluster(t *testing.T, name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(time.Second),
		TypedExtensionProtocolOptions: options(t, http2Only()),
		LoadAssignment:                endpoints(name, &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "./nobody"}}}),
	}
}

func http2Only() *upstreamv3.HttpProtocolOptions {
	return &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}},
	}}}
}

func endpoints(name string, a *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: a}},
	}}}}}
}

// bootstrap is a file for an Envoy that holds these listeners and clusters from its start.
func bootstrap(t *testing.T, listeners []*listenerv3.Listener, clusters []*clusterv3.Cluster) string {
	t.Helper()
	b := &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: "sidecar~10.99.0.2~forum-vm.forum-services~forum-services.svc.cluster.local", Cluster: "forum.forum-services"},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: "xds-grpc"}}}},
		}},
		StaticResources:     &bootstrapv3.Bootstrap_StaticResources{Listeners: listeners, Clusters: clusters},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{Name: "envoy.bootstrap.internal_listener", TypedConfig: packed(t, &internallistenerv3.InternalListener{})}},
	}
	for _, name := range []string{"xds-grpc", "sds-grpc", "prometheus_stats", "agent"} {
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, staticCluster(t, name))
	}
	file := filepath.Join(t.TempDir(), "bootstrap.pb")
	if err := os.WriteFile(file, encode(t, b), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func unpacked[M proto.Message](t *testing.T, frame []byte, empty func() M) (list []M) {
	t.Helper()
	for _, r := range decode(t, frame).Resources {
		m := empty()
		if err := r.Resource.UnmarshalTo(m); err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
	}
	return list
}

func newListener() *listenerv3.Listener { return new(listenerv3.Listener) }
func newCluster() *clusterv3.Cluster    { return new(clusterv3.Cluster) }

// certificate makes a pair that nobody checks, and its PEM.
func certificate(t *testing.T) (pair tls.Certificate, chainPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"peer"}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{cert}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// peer is a TLS server that keeps what each client offers.
type peer struct {
	addr    *corev3.Address
	offered chan []string
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	cert, _, _ := certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{offered: make(chan []string, 100), addr: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(l.Addr().(*net.TCPAddr).Port)},
	}}}}
	server := &http.Server{
		ErrorLog: log.New(io.Discard, "", 0),
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{cert},
			NextProtos:   []string{"h2", "http/1.1"}, // as Istio's inbound listeners
			GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
				p.offered <- slices.Clone(h.SupportedProtos)
				return nil, nil
			},
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return p
}

// runEnvoy starts Envoy with a bootstrap file and returns when its listeners take connections.
func runEnvoy(t *testing.T, file string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, envoytest.Program(t), "-c", file, "-l", "warning", "--component-log-level", "main:info", "--disable-hot-restart", "--concurrency", "1")
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := make(chan bool, 1)
	var said bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			if !strings.Contains(lines.Text(), "[info]") {
				said.WriteString(lines.Text() + "\n")
			}
			if strings.Contains(lines.Text(), "starting main dispatch loop") { // with static clusters only, the listeners listen by then
				started <- true
			}
		}
		close(started)
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("Envoy said:\n%s", said.String())
		}
	})
	if !<-started {
		t.Fatal("Envoy ended")
	}
}

// pipes are the sockets on which Envoy listens, in a folder with a short name.
type pipes string

func newPipes(t *testing.T) pipes {
	t.Helper()
	dir, err := os.MkdirTemp("", "stock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return pipes(dir)
}

func (p pipes) address(name string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: filepath.Join(string(p), name)}}}
}

func (p pipes) dial(name string) (net.Conn, error) {
	return net.Dial("unix", filepath.Join(string(p), name))
}

// clients speak one version of HTTP each to the listener on a pipe.
func (p pipes) clients(name string) map[string]*http.Client {
	clients := map[string]*http.Client{}
	for version, set := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) }, "HTTP/2.0": func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		protocols := new(http.Protocols)
		set(protocols)
		clients[version] = &http.Client{Transport: &http.Transport{
			Protocols:   protocols,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return p.dial(name) },
		}}
	}
	return clients
}

// istioCluster is a cluster as istiod makes it.
func istioCluster(t *testing.T, name string, to *corev3.Address, tlsContext *tlsv3.UpstreamTlsContext, o *upstreamv3.HttpProtocolOptions) *clusterv3.Cluster {
	c := &clusterv3.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}, ConnectTimeout: durationpb.New(5 * time.Second),
		LoadAssignment: endpoints(name, to), TransportSocket: socket(t, tlsContext),
		Filters: []*clusterv3.Filter{{Name: "istio.metadata_exchange", TypedConfig: udpa(t, typeMetadataExchange)}},
	}
	if o != nil {
		c.TypedExtensionProtocolOptions = options(t, o)
	}
	return c
}

func forward(to string) *tcpproxyv3.TcpProxy {
	return &tcpproxyv3.TcpProxy{StatPrefix: "t", ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: to}}
}

// outbound are two listeners as istiod makes them: for HTTP, with a route to each cluster by its name, and for TCP to one cluster.
func outbound(t *testing.T, p pipes, tcp string, clusters ...string) (toHTTP, toTCP *listenerv3.Listener) {
	host := &routev3.VirtualHost{Name: "v", Domains: []string{"*"}}
	for _, name := range clusters {
		host.Routes = append(host.Routes, &routev3.Route{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/" + name}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
		})
	}
	toHTTP = managed(t, &hcmv3.HttpConnectionManager{
		StatPrefix:     "h",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{host}}},
		HttpFilters: []*hcmv3.HttpFilter{
			httpFilterOf(udpa(t, typePeerMetadata)), httpFilterOf(any0(typeALPN)), httpFilterOf(any0(typeStats)), httpFilterOf(packed(t, &routerv3.Router{})),
		},
	})
	toTCP = chain(networkFilterOf(any0(typeStats)), networkFilterOf(packed(t, forward(tcp))))
	toHTTP.Name, toHTTP.Address = "http", p.address("http")
	toTCP.Name, toTCP.Address = "tcp", p.address("tcp")
	return toHTTP, toTCP
}
