package controlplane_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	securityapi "istio.io/api/security/v1alpha1"

	"wingman/test/controlplane"
)

const patience = 20 * time.Second // for one step on a loaded machine

// client is one VM's raw gRPC connection, in delta mode, with no code of the agent.
type client struct {
	t    *testing.T
	conn *grpc.ClientConn
	ctx  context.Context // carries the token
}

func newClient(t *testing.T, s *controlplane.Server, rootPEM []byte, cert *tls.Certificate) client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	config := &tls.Config{RootCAs: roots, ServerName: s.ServerName(), MinVersion: tls.VersionTLS12}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	} else {
		token, err := s.MintToken(controlplane.TokenOptions{Namespace: "forum-services", ServiceAccount: "forum-sa"})
		if err != nil {
			t.Fatal(err)
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return client{t, conn, ctx}
}

// sign asks the CA for a certificate of ten minutes.
func (c client) sign() (*ecdsa.PrivateKey, []string, error) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		c.t.Fatal(err)
	}
	res, err := securityapi.NewIstioCertificateServiceClient(c.conn).CreateCertificate(c.ctx, &securityapi.IstioCertificateRequest{
		Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 600,
	})
	return key, res.GetCertChain(), err
}

// cert is sign for those who expect it to work.
func (c client) cert() *tls.Certificate {
	c.t.Helper()
	key, chain, err := c.sign()
	if err != nil {
		c.t.Fatal(err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: parsePEM(c.t, chain[0])}
	for _, text := range chain[:len(chain)-1] {
		cert.Certificate = append(cert.Certificate, parsePEM(c.t, text).Raw)
	}
	return cert
}

type deltaStream = discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient

// stream opens a delta stream and asks for the name table; it does not wait for the answer.
func (c client) stream() deltaStream {
	c.t.Helper()
	st, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.conn).DeltaAggregatedResources(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	meta, err := structpb.NewStruct(map[string]any{
		"INSTANCE_IPS": "10.99.0.2", "NAMESPACE": "forum-services", "SERVICE_ACCOUNT": "forum-sa", "AUTO_REGISTER_GROUP": "forum",
		"PROXY_CONFIG": map[string]any{"readinessProbe": map[string]any{}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	request(c.t, st, &discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: controlplane.NameTableType,
		Node:    &corev3.Node{Id: "sidecar~10.99.0.2~vm.forum-services~forum-services.svc.cluster.local", Metadata: meta},
	})
	return st
}

// joined is stream with the first answer taken and acknowledged.
func (c client) joined() deltaStream {
	c.t.Helper()
	st := c.stream()
	r, err := st.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	request(c.t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	return st
}

// request sends; that the stream has ended already is for Recv to say.
func request(t *testing.T, st deltaStream, r *discoveryv3.DeltaDiscoveryRequest) {
	t.Helper()
	if err := st.Send(r); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func parsePEM(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		t.Fatalf("no PEM in %q", text)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withGroup is a started server that knows the client's group.
func withGroup(t *testing.T, cfg controlplane.Config) *controlplane.Server {
	t.Helper()
	s := controlplane.Run(t, cfg)
	s.AddGroup(controlplane.Group{Namespace: "forum-services", Name: "forum", ServiceAccount: "forum-sa"})
	return s
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
