package testbed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"

	"wingman/test/mesh"
)

// Pair are the book's two machines as members of the mesh, each with Envoy, and with its agent as a unit would run it. The client, forum, asks the
// server, catalog, at PairHost.
type Pair struct {
	*Bed
	Client, Server           *VM
	ClientUnit, ServerUnit   *Unit
	ClientEnvoy, ServerEnvoy *Envoy
	ServerApp                *App
}

// PairHost is the name of the server's Service.
const PairHost = "catalog.istioinaction"

const (
	clientPort = 8080 // of their applications
	serverPort = 3000
)

// NewPair starts a mesh and both machines, whose sidecar.env has the given content, and waits until the client reaches the server by mutual TLS.
func NewPair(t testing.TB, o mesh.Options, sidecar string) *Pair {
	t.Helper()
	o.MeshConfig += mesh.DefaultMeshConfig + AccessLog
	client, server := Forum, Catalog
	for _, spec := range []*Spec{&client, &server} {
		spec.Envoy, spec.Sidecar = true, sidecar
	}
	p := &Pair{Bed: New(t, o)}
	p.Client, p.Server = p.VM(t, client), p.VM(t, server)
	p.Client.App(t, clientPort)
	p.ServerApp = p.Server.App(t, serverPort)
	p.ClientUnit, p.ServerUnit = p.Client.Unit(t), p.Server.Unit(t)
	p.Client.StartAgent(t)
	p.Server.StartAgent(t)
	p.ClientEnvoy, p.ServerEnvoy = p.Client.StartProxy(t), p.Server.StartProxy(t)
	for _, envoy := range []*Envoy{p.ClientEnvoy, p.ServerEnvoy} {
		envoy.Await(t)
		envoy.vm.Healthy(t, "True")
	}
	p.Reaches(t, "/first")
	const id = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	if got := p.ServerEnvoy.Peer(t, "/first"); got != id {
		t.Fatalf("the first request was sent by %q, want %q", got, id)
	}
	return p
}

// Reaches waits until the client gets an answer of the server.
func (p *Pair) Reaches(t testing.TB, path string) {
	t.Helper()
	Await(t, "the client reaches the server", func() error {
		r, err := p.Client.Get(t.Context(), PairHost, path)
		if err == nil && r.Status != 200 {
			err = fmt.Errorf("status %d: %s", r.Status, r.Body)
		}
		return err
	})
}

// Shown connects to a machine's Envoy as another member of the mesh would, and returns the certificate that it shows.
func (p *Pair) Shown(ctx context.Context, vm *VM) (*x509.Certificate, error) {
	port := serverPort
	if vm == p.Client {
		port = clientPort
	}
	config := &tls.Config{
		NextProtos:         []string{"istio-http/1.1"}, // the filter chain for mutual TLS
		InsecureSkipVerify: true,                       // it is looked at by the caller, whatever it is
	}
	dialer := tls.Dialer{Config: config}
	c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(vm.IP().String(), fmt.Sprint(port)))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	shown := c.(*tls.Conn).ConnectionState().PeerCertificates
	if len(shown) == 0 {
		return nil, errors.New("no certificate")
	}
	return shown[0], nil
}
