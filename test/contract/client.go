package contract

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"
)

// Type URLs the tests ask for.
const (
	clusterType   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	nameTableType = "type.googleapis.com/istio.networking.nds.v1.NameTable"
	listenerType  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	routeType     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	proxyConfig   = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig"
	healthType    = "type.googleapis.com/istio.v1.HealthInformation"
)

// credential is what a client shows; either part may be missing.
type credential struct {
	token string
	cert  *tls.Certificate
}

// dial connects as somebody.
func dial(t *testing.T, cp ControlPlane, c credential) *grpc.ClientConn {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(cp.RootPEM()) {
		t.Fatal("the control plane's root is no PEM certificate")
	}
	config := &tls.Config{RootCAs: roots, ServerName: cp.ServerName(), MinVersion: tls.VersionTLS12}
	if c.cert != nil {
		config.Certificates = []tls.Certificate{*c.cert}
	}
	conn, err := grpc.NewClient("passthrough:///"+cp.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// with adds what the agent sends as gRPC metadata: cluster and token.
func (c credential) with(ctx context.Context, cp ControlPlane) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, "ClusterID", cp.ClusterID())
	if c.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
	}
	return ctx
}

// token mints a good token for the tests' account.
func token(t *testing.T, cp ControlPlane) credential {
	t.Helper()
	return credential{token: mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: account, Audience: caAudience})}
}

func mint(t *testing.T, cp ControlPlane, r TokenRequest) string {
	t.Helper()
	tok, err := cp.MintToken(step(t), r)
	if err != nil {
		t.Fatalf("mint token %+v: %v", r, err)
	}
	return tok
}

// csr makes a key and a request that asks for an identity.
func csr(t *testing.T, id string) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// createCertificate calls the CA once; seconds is the life asked for.
func createCertificate(t *testing.T, cp ControlPlane, c credential, csr string, seconds int64) ([]string, error) {
	t.Helper()
	res, err := securityapi.NewIstioCertificateServiceClient(dial(t, cp, c)).CreateCertificate(c.with(step(t), cp),
		&securityapi.IstioCertificateRequest{Csr: csr, ValidityDuration: seconds, Metadata: &structpb.Struct{
			Fields: map[string]*structpb.Value{"CertSigner": structpb.NewStringValue("")},
		}})
	return res.GetCertChain(), err
}

// node is what the machine's agent sends as its node.
func (m vm) node(t *testing.T) *corev3.Node {
	t.Helper()
	labels := map[string]any{}
	for k, v := range m.labels {
		labels[k] = v
	}
	config := map[string]any{"discoveryAddress": "istiod.istio-system.svc:15012"}
	if m.probed {
		config["readinessProbe"] = map[string]any{"httpGet": map[string]any{"path": "/api/healthz", "port": 8080}}
	}
	meta, err := structpb.NewStruct(map[string]any{
		"INSTANCE_IPS": m.address, "NAMESPACE": m.namespace, "SERVICE_ACCOUNT": m.account, "AUTO_REGISTER_GROUP": m.group,
		"NETWORK": m.network, "LABELS": labels, "PROXY_CONFIG": config, "DNS_CAPTURE": "true", "ISTIO_VERSION": "1.31.0",
	})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.Node{
		Id:      "sidecar~" + m.address + "~forum-vm." + m.namespace + "~" + m.namespace + ".svc.cluster.local",
		Cluster: "forum." + m.namespace, Metadata: meta,
	}
}

// response is an answer of either kind of stream.
type response struct {
	typeURL, version, nonce string
	resources               []*anypb.Any
	names, removed          []string // delta: names has one for each resource
}

// ads is one ADS stream of either kind.
type ads struct {
	t      *testing.T
	delta  discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient // nil on a SotW stream
	sotw   discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	cancel context.CancelFunc
	seen   []response // what take and quietUntil have accepted
}

// openADS opens a stream; it sends nothing yet.
func openADS(t *testing.T, cp ControlPlane, c credential, delta bool) *ads {
	t.Helper()
	return openADSOn(t, cp, dial(t, cp, c), c, delta)
}

func openADSOn(t *testing.T, cp ControlPlane, conn *grpc.ClientConn, c credential, delta bool) *ads {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	a := &ads{t: t, cancel: cancel}
	var err error
	if delta {
		a.delta, err = client.DeltaAggregatedResources(c.with(ctx, cp))
	} else {
		a.sotw, err = client.StreamAggregatedResources(c.with(ctx, cp))
	}
	if err != nil {
		t.Fatalf("open ADS stream: %v", err)
	}
	return a
}

// close ends the stream as a client that goes away does.
func (a *ads) close() { a.cancel() }

// message is what is sent: with a nonce an ACK, with a nonce and a reason a NACK.
type message struct {
	typeURL string
	node    *corev3.Node
	version string
	nonce   string
	reason  string
	names   []string // to subscribe to; none of most types means all
	known   []string // delta: names of resources that the client has from an earlier stream
}

func (a *ads) send(m message) {
	a.t.Helper()
	var detail *statuspb.Status
	if m.reason != "" {
		detail = &statuspb.Status{Code: int32(codes.Internal), Message: m.reason}
	}
	// A failed Send means only that the stream has ended; receive says why.
	if a.delta != nil {
		known := map[string]string{}
		for _, name := range m.known {
			known[name] = "" // istiod sends no versions of resources, so Envoy has none
		}
		_ = a.delta.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: m.node, TypeUrl: m.typeURL, ResponseNonce: m.nonce, ErrorDetail: detail, ResourceNamesSubscribe: m.names, InitialResourceVersions: known,
		})
		return
	}
	_ = a.sotw.Send(&discoveryv3.DiscoveryRequest{
		Node: m.node, TypeUrl: m.typeURL, VersionInfo: m.version, ResponseNonce: m.nonce, ErrorDetail: detail, ResourceNames: m.names,
	})
}

// ack accepts an answer.
func (a *ads) ack(r response) {
	a.t.Helper()
	a.send(message{typeURL: r.typeURL, version: r.version, nonce: r.nonce})
}

// receive returns the next answer or the stream's end; it fails the test when neither comes.
func (a *ads) receive() (response, error) {
	a.t.Helper()
	return a.receiveWithin(stepTimeout)
}

// end reads and drops answers until the stream ends, and returns why.
func (a *ads) end(limit time.Duration) error {
	a.t.Helper()
	for deadline := time.Now().Add(limit); ; {
		if _, err := a.receiveWithin(time.Until(deadline)); err != nil {
			return err
		}
	}
}

func (a *ads) receiveWithin(limit time.Duration) (response, error) {
	a.t.Helper()
	type result struct {
		r   response
		err error
	}
	got := make(chan result, 1)
	go func() {
		if a.delta != nil {
			m, err := a.delta.Recv()
			r := response{typeURL: m.GetTypeUrl(), version: m.GetSystemVersionInfo(), nonce: m.GetNonce(), removed: m.GetRemovedResources()}
			for _, res := range m.GetResources() {
				r.resources = append(r.resources, res.GetResource())
				r.names = append(r.names, res.GetName())
			}
			got <- result{r, err}
			return
		}
		m, err := a.sotw.Recv()
		got <- result{response{typeURL: m.GetTypeUrl(), version: m.GetVersionInfo(), nonce: m.GetNonce(), resources: m.GetResources()}, err}
	}()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case r := <-got:
		return r.r, r.err
	case <-timeout.C:
		a.cancel()
		<-got
		a.t.Fatalf("no answer within %s", limit)
		return response{}, nil
	}
}

// expect returns the next answer, which must be of that type.
func (a *ads) expect(typeURL string) response {
	a.t.Helper()
	r, err := a.receive()
	if err != nil {
		a.t.Fatalf("stream ended, want an answer of %s: %v", typeURL, err)
	}
	if r.typeURL != typeURL {
		a.t.Fatalf("answer is of %s, want %s", r.typeURL, typeURL)
	}
	return r
}
