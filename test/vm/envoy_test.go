package vm

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3" // registers the messages of testdata/envoy.json, as do the others
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/status"
	"wingman/test/controlplane"
	"wingman/test/files"
)

// The machine's application, and a server elsewhere that is no member of the mesh.
const (
	appAddress   = "10.99.0.2:8080"
	otherAddress = "10.99.0.1:9080"
)

// envoyResources are the least that makes a sidecar: what comes in is terminated (mutual TLS where the peer wants it) and handed to the application, what
// goes out is passed on. Each way names itself in the header Server. Requests below /logged are logged to /dev/stdout.
//
//go:embed testdata/envoy.json
var envoyResources []byte

// withEnvoy boots a machine whose Envoy serves, and waits until all traffic goes through it. settings are further lines of wingman.yaml.
func withEnvoy(t *testing.T, settings ...string) *mesh {
	t.Helper()
	m := newMesh(t, func(m *mesh) {
		m.Write(settingsFile, m.Read(settingsFile)+strings.Join(append(settings, ""), "\n"), 0o644)
		m.CopyIn(Envoy(t), "/usr/local/bin/envoy", 0o755)
		setResources(t, m.istiod)
		serveOther(t, m.segment)
	})
	m.join()
	m.awaitEnvoy()
	return m
}

// setResources makes the control plane send envoyResources.
func setResources(t *testing.T, s *controlplane.Server) {
	t.Helper()
	var byType map[string]map[string]json.RawMessage
	if err := json.Unmarshal(envoyResources, &byType); err != nil {
		t.Fatal(err)
	}
	for typeURL, byName := range byType {
		packed := map[string]*anypb.Any{}
		for name, text := range byName {
			packed[name] = &anypb.Any{}
			if err := protojson.Unmarshal(text, packed[name]); err != nil {
				t.Fatalf("resource %s: %v", name, err)
			}
		}
		s.SetResources(typeURL, packed)
	}
}

// serveOther answers on otherAddress until the test ends.
func serveOther(t *testing.T, s *Segment) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	if err := s.Do(func() error {
		l, err := net.Listen("tcp", otherAddress)
		if err == nil {
			go server.Serve(l)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
}

// status is what the agent says of itself; an error while it does not answer.
func (m *Machine) status() (r status.Report, err error) {
	out, err := m.Try("wingman", "status", "-o", "json")
	if out == "" {
		return r, err
	}
	return r, json.Unmarshal([]byte(out), &r) // the exit status says how well the machine is
}

// awaitEnvoy waits until the agent says that Envoy serves, and that all traffic is captured for it.
func (m *Machine) awaitEnvoy() status.EnvoyReport {
	m.t.Helper()
	var r status.Report
	m.await("Envoy", func() bool {
		var err error
		r, err = m.status()
		return err == nil && r.Envoy.Live && r.Capture.Level == "all" && r.Capture.InPlace && r.Ready
	})
	return r.Envoy
}

// inbound sends requests from elsewhere to the application, by TLS that ends at Envoy.
func (m *mesh) inbound() *requests {
	return startRequests(m.t.(*testing.T), "https://"+appAddress+"/", m.dialApp, by("inbound"))
}

// outbound sends requests from this machine to elsewhere.
func (m *mesh) outbound() *requests {
	return startRequests(m.t.(*testing.T), "http://"+otherAddress+"/", func(_ context.Context, network, addr string) (conn net.Conn, err error) {
		return conn, m.Do(func() (err error) { conn, err = net.DialTimeout(network, addr, 5*time.Second); return err })
	}, by("outbound"))
}

// dialApp connects to the application from elsewhere. The certificate shown must be the machine's.
func (m *mesh) dialApp(ctx context.Context, network, addr string) (net.Conn, error) {
	var raw net.Conn
	if err := m.segment.Do(func() (err error) { raw, err = net.DialTimeout(network, addr, 5*time.Second); return err }); err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, // a SPIFFE certificate names no host
		VerifyConnection:   m.verifyApp,
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

func (m *mesh) verifyApp(s tls.ConnectionState) error {
	want, err := url.Parse(files.SPIFFEID)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(m.istiod.RootPEM())
	leaf := s.PeerCertificates[0]
	if len(leaf.URIs) != 1 || *leaf.URIs[0] != *want {
		return fmt.Errorf("the certificate is for %v, want %s", leaf.URIs, want)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

// visitor is one connection to the application that stays open.
type visitor struct {
	conn net.Conn
	in   *bufio.Reader
}

func (m *mesh) visit() (*visitor, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
	defer cancel()
	conn, err := m.dialApp(ctx, "tcp", appAddress)
	if err != nil {
		return nil, err
	}
	m.t.Cleanup(func() { conn.Close() })
	return &visitor{conn, bufio.NewReader(conn)}, nil
}

// get asks on the connection; last reports whether Envoy wants it closed after this answer, which a visitor then does (RFC 9112 section 9.6).
func (v *visitor) get(path string) (last bool, err error) {
	if err := v.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return false, err
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+appAddress+path, nil)
	if err != nil {
		return false, err
	}
	if err := req.Write(v.conn); err != nil {
		return false, err
	}
	res, err := http.ReadResponse(v.in, req)
	if err != nil {
		return false, err
	}
	err = errors.Join(res.Body.Close(), by("inbound")(res))
	if res.Close {
		err = errors.Join(err, v.conn.Close())
	}
	return res.Close, err
}
