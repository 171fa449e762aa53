package sds

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"

	"wingman/agent/envoy/envoytest"
	"wingman/bootstrap/identity"
	"wingman/test/syncbuffer"
)

// nobody is a Source without a certificate.
type nobody struct{}

func (nobody) Current() *identity.Certificate { return nil }

// bench is a running Server whose identity the test decides.
type bench struct {
	*Server
	t      testing.TB
	root   string
	socket string
	logs   *syncbuffer.Buffer

	mu  sync.Mutex
	now material
}

func start(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, root: t.TempDir(), socket: filepath.Join(envoytest.Dir(t), "sds.sock"), logs: &syncbuffer.Buffer{}}
	s, err := New(Config{Socket: b.socket, Root: b.root, Source: nobody{}, Log: slog.New(slog.NewTextHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	s.current = func() (material, bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.now, b.now.chain != nil || b.now.roots != nil
	}
	b.Server = s
	run(t, s)
	return b
}

// run runs a Server until the test ends or stop is called, which waits for its end.
func run(t testing.TB, s *Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return stop
}

// become changes the identity, as a renewal does.
func (b *bench) become(m material) {
	b.mu.Lock()
	b.now = m
	b.mu.Unlock()
	b.Refresh()
}

// write puts a file below the root, as somebody who replaces it.
func (b *bench) write(path string, content []byte) {
	b.t.Helper()
	path = filepath.Join(b.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.t.Fatal(err)
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		b.t.Fatal(err)
	}
}

// refused reads a metric.
func (b *bench) refused(kind string) int {
	var m dto.Metric
	if err := b.metrics.refusals.WithLabelValues(kind).Write(&m); err != nil {
		b.t.Fatal(err)
	}
	return int(m.GetCounter().GetValue())
}

func (b *bench) client() secretv3.SecretDiscoveryServiceClient {
	b.t.Helper()
	conn, err := grpc.NewClient("unix:"+b.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { conn.Close() })
	return secretv3.NewSecretDiscoveryServiceClient(conn)
}

// answer is a response of either protocol, read by go-control-plane's types.
type answer struct {
	nonce   string
	version string
	secrets map[string]*tlsv3.Secret
	removed []string
}

// follower is a client of either protocol.
type follower struct {
	t       testing.TB
	sotw    secretv3.SecretDiscoveryService_StreamSecretsClient
	delta   secretv3.SecretDiscoveryService_DeltaSecretsClient
	names   []string
	answers chan answer
}

// protocols runs a test over both.
func protocols(t *testing.T, test func(t *testing.T, follow func(b *bench, names ...string) *follower)) {
	t.Run("state of the world", func(t *testing.T) {
		test(t, func(b *bench, names ...string) *follower {
			s, err := b.client().StreamSecrets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f := &follower{t: t, sotw: s, names: names, answers: make(chan answer, 100)}
			f.must(s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: names}))
			go f.read(func() (answer, error) {
				r, err := s.Recv()
				return answer{nonce: r.GetNonce(), version: r.GetVersionInfo(), secrets: unpack(t, r.GetResources())}, err
			})
			return f
		})
	})
	t.Run("incremental", func(t *testing.T) {
		test(t, func(b *bench, names ...string) *follower {
			s, err := b.client().DeltaSecrets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			f := &follower{t: t, delta: s, names: names, answers: make(chan answer, 100)}
			f.must(s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: names}))
			go f.read(func() (answer, error) {
				r, err := s.Recv()
				var all []*anypb.Any
				version := ""
				for _, res := range r.GetResources() {
					all, version = append(all, res.Resource), res.Version
				}
				return answer{nonce: r.GetNonce(), version: version, secrets: unpack(t, all), removed: r.GetRemovedResources()}, err
			})
			return f
		})
	})
}

func unpack(t testing.TB, all []*anypb.Any) map[string]*tlsv3.Secret {
	m := map[string]*tlsv3.Secret{}
	for _, a := range all {
		var s tlsv3.Secret
		if err := a.UnmarshalTo(&s); err != nil {
			t.Errorf("no secret: %v", err)
			continue
		}
		if err := s.ValidateAll(); err != nil {
			t.Errorf("secret %s: %v", s.Name, err)
		}
		m[s.Name] = &s
	}
	return m
}

// read hands answers on until the stream ends.
func (f *follower) read(next func() (answer, error)) {
	defer close(f.answers)
	for {
		a, err := next()
		if err != nil {
			return
		}
		f.answers <- a
	}
}

func (f *follower) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// reply answers a response; a refusal is a NACK.
func (f *follower) reply(a answer, refusal string) {
	f.t.Helper()
	var detail *status.Status
	if refusal != "" {
		detail = &status.Status{Code: 13, Message: refusal}
	}
	if f.sotw != nil {
		f.must(f.sotw.Send(&discoveryv3.DiscoveryRequest{TypeUrl: secretType, ResourceNames: f.names, ResponseNonce: a.nonce, VersionInfo: a.version, ErrorDetail: detail}))
		return
	}
	f.must(f.delta.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResponseNonce: a.nonce, ErrorDetail: detail}))
}

// next waits for a response and acknowledges it.
func (f *follower) next() answer {
	f.t.Helper()
	select {
	case a, ok := <-f.answers:
		if !ok {
			f.t.Fatal("the stream ended")
		}
		f.reply(a, "")
		return a
	case <-time.After(30 * time.Second):
		f.t.Fatal("no response")
	}
	return answer{}
}

// certificate returns chain and key of a response's secret.
func (f *follower) certificate(a answer, name string) (chain, key string) {
	f.t.Helper()
	c := a.secrets[name].GetTlsCertificate()
	return string(c.GetCertificateChain().GetInlineBytes()), string(c.GetPrivateKey().GetInlineBytes())
}

const spiffeID = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"

func TestIdentityIsWaitedForThenPushedAtEachRenewal(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		f := follow(b, "default", "ROOTCA")
		ca := envoytest.NewCA(t, "root")
		chain, key := ca.Issue(t, spiffeID)
		b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
		a := f.next()
		if c, k := f.certificate(a, "default"); c != string(chain) || k != string(key) {
			t.Errorf("first certificate: got\n%s, want\n%s", c, chain)
		}
		if got := a.secrets["ROOTCA"].GetValidationContext().GetTrustedCa().GetInlineBytes(); !bytes.Equal(got, ca.RootPEM()) {
			t.Errorf("roots: got\n%s", got)
		}
		for range 3 {
			b.become(b.now) // a refresh without news
			chain, key = ca.Issue(t, spiffeID)
			b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
			a = f.next()
			if c, k := f.certificate(a, "default"); c != string(chain) || k != string(key) || len(a.secrets) != 1 {
				t.Errorf("renewal: got %d secrets and\n%s, want the new certificate alone", len(a.secrets), c)
			}
		}
		other := envoytest.NewCA(t, "next root")
		b.become(material{chain: chain, key: key, roots: append(ca.RootPEM(), other.RootPEM()...)})
		if a = f.next(); len(a.secrets) != 1 || a.secrets["ROOTCA"] == nil {
			t.Errorf("changed roots: got %v, want ROOTCA alone", a.secrets)
		}
	})
}

// While the agent reads its settings again there is no identity for a moment.
func TestACertificateThatIsGoneStays(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		ca := envoytest.NewCA(t, "root")
		chain, key := ca.Issue(t, spiffeID)
		b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
		follow(b, "default").next()
		b.become(material{})
		f := follow(b, "default")
		if c, _ := f.certificate(f.next(), "default"); c != string(chain) {
			t.Errorf("got %q, want the certificate of before", c)
		}
	})
}

func TestFilesAreFollowed(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		ca := envoytest.NewCA(t, "root")
		const name, roots = "file-cert:/etc/als/cert.pem~./etc/als/key.pem", "file-root:/etc/als/ca.pem"
		f := follow(b, name, roots)
		b.write("etc/als/ca.pem", ca.RootPEM()) // neither file nor folder were there
		if a := f.next(); a.secrets[roots].GetValidationContext() == nil {
			t.Fatalf("got %v, want %s", a.secrets, roots)
		}
		chain, key := ca.Issue(t, spiffeID)
		b.write("etc/als/cert.pem", chain)
		b.write("etc/als/key.pem", key)
		if c, k := f.certificate(f.next(), name); c != string(chain) || k != string(key) {
			t.Errorf("got\n%s", c)
		}
		// Renewed one after the other: what is between is no pair, and never sent.
		chain, key = ca.Issue(t, spiffeID)
		b.write("etc/als/cert.pem", chain)
		b.write("etc/als/ca.pem", []byte("-----BEGIN CERTIFICATE-----\nhalf of it"))
		b.write("etc/als/key.pem", key)
		if c, k := f.certificate(f.next(), name); c != string(chain) || k != string(key) {
			t.Errorf("after the renewal: got\n%s", c)
		}
		other := envoytest.NewCA(t, "other")
		b.write("etc/als/ca.pem", other.RootPEM())
		if a := f.next(); !bytes.Equal(a.secrets[roots].GetValidationContext().GetTrustedCa().GetInlineBytes(), other.RootPEM()) {
			t.Errorf("roots after the renewal: got %v", a.secrets)
		}
	})
}

// Kubernetes' way of replacing several files at once: a link to a folder is switched.
func TestLinksToFilesAreFollowed(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		ca := envoytest.NewCA(t, "root")
		const name = "file-cert:/certs/data/c.pem~/certs/data/k.pem"
		var f *follower
		for _, generation := range []string{"g1", "g2", "g3"} {
			chain, key := ca.Issue(t, spiffeID)
			b.write("certs/"+generation+"/c.pem", chain)
			b.write("certs/"+generation+"/k.pem", key)
			next := filepath.Join(b.root, "certs/next")
			if err := os.Symlink(generation, next); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(next, filepath.Join(b.root, "certs/data")); err != nil {
				t.Fatal(err)
			}
			if f == nil {
				f = follow(b, name)
			}
			if c, _ := f.certificate(f.next(), name); c != string(chain) {
				t.Errorf("%s: got\n%s, want\n%s", generation, c, chain)
			}
		}
	})
}

func TestSystemRoots(t *testing.T) {
	b := start(t)
	ca := envoytest.NewCA(t, "public")
	b.write("etc/pki/tls/certs/ca-bundle.crt", ca.RootPEM())
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		a := follow(b, "file-root:system").next()
		if got := a.secrets["file-root:system"].GetValidationContext().GetTrustedCa().GetInlineBytes(); !bytes.Equal(got, ca.RootPEM()) {
			t.Errorf("got %q, want the bundle of this distribution", got)
		}
	})
}

func TestNamesThatCanBeNothing(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		f := follow(b, "kubernetes://cert", "ROOTCA")
		if f.delta != nil {
			if a := f.next(); fmt.Sprint(a.removed) != "[kubernetes://cert]" || len(a.secrets) > 0 {
				t.Errorf("removed %v and %v, want the name that can be nothing as removed", a.removed, a.secrets)
			}
		}
		// The stream goes on with what can be.
		ca := envoytest.NewCA(t, "root")
		b.become(material{roots: ca.RootPEM()})
		if a := f.next(); a.secrets["ROOTCA"] == nil || len(a.secrets) != 1 {
			t.Errorf("got %v, want ROOTCA", a.secrets)
		}
		if n := strings.Count(b.logs.String(), "secret that cannot be"); n != 1 {
			t.Errorf("the log names it %d times, want once:\n%s", n, b.logs)
		}
	})
}

func TestARefusalIsSaidOnce(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		ca := envoytest.NewCA(t, "root")
		chain, key := ca.Issue(t, spiffeID)
		b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
		const reason = "Failed to load certificate chain from <inline>"
		for i := range 2 { // Envoy has a stream for each listener's secret, and they all refuse it
			f := follow(b, "default")
			f.reply(<-f.answers, reason)
			await(t, "the refusal to be counted", func() bool { return b.refused("default") == i+1 })
			chain, key = ca.Issue(t, spiffeID)
			b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
			f.next() // the next one is sent all the same
		}
		if n := strings.Count(b.logs.String(), "Envoy refused a secret"); n != 1 || !strings.Contains(b.logs.String(), reason) {
			t.Errorf("the log says it %d times, want once with the reason:\n%s", n, b.logs)
		}
		if got := b.Report().LastRefusal; got != reason {
			t.Errorf("the report's last refusal is %q", got)
		}
	})
}

// After a restart of the agent Envoy says what it has: equal contents are not sent again, so no TLS context is made anew.
func TestWhatEnvoyHasIsNotSentAgain(t *testing.T) {
	ca := envoytest.NewCA(t, "root")
	chain, key := ca.Issue(t, spiffeID)
	version := ""
	for life := range 2 {
		b := start(t)
		b.become(material{chain: chain, key: key, roots: ca.RootPEM()})
		s, err := b.client().DeltaSecrets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: secretType, ResourceNamesSubscribe: []string{"default"}}
		if life > 0 {
			req.InitialResourceVersions = map[string]string{"default": version}
			req.ResourceNamesSubscribe = []string{"default", "ROOTCA"}
		}
		if err := s.Send(req); err != nil {
			t.Fatal(err)
		}
		r, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if life == 0 {
			version = r.Resources[0].Version
		} else if len(r.Resources) != 1 || r.Resources[0].Name != "ROOTCA" {
			t.Errorf("sent %v, want ROOTCA alone: default is what it has", r.Resources)
		}
	}
}

func TestOtherTypesAreRefused(t *testing.T) {
	b := start(t)
	s, err := b.client().StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{TypeUrl: envoytest.TypeCluster}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err == nil || !strings.Contains(err.Error(), "InvalidArgument") {
		t.Errorf("got %v, want InvalidArgument", err)
	}
}

func TestBrokenFilesAreNamedOnceTheyStay(t *testing.T) {
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		b := start(t)
		b.write("etc/ca.pem", []byte("no certificate"))
		follow(b, "file-root:/etc/ca.pem", "file-cert:/etc/none.pem~/etc/none.key")
		await(t, "both named in the log", func() bool {
			return strings.Contains(b.logs.String(), "holds no certificate") && strings.Contains(b.logs.String(), "none.pem: no such file")
		})
		if r := b.Report(); len(r.Secrets) != 2 || r.Secrets[0].Problem == "" || r.Secrets[1].Problem == "" || r.Streams != 1 {
			t.Errorf("report %+v, want both problems", r)
		}
	})
}

// A stream that ends takes its files along: nobody watches for nobody.
func TestFilesThatNobodyWantsAreForgotten(t *testing.T) {
	b := start(t)
	ca := envoytest.NewCA(t, "root")
	b.write("etc/ca.pem", ca.RootPEM())
	ctx, cancel := context.WithCancel(t.Context())
	s, err := b.client().StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&discoveryv3.DiscoveryRequest{ResourceNames: []string{"file-root:/etc/ca.pem"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	await(t, "the secret to be forgotten", func() bool { r := b.Report(); return r.Streams == 0 && len(r.Secrets) == 0 })
}

// await looks until ok: the server does its work on goroutines of its own.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	envoytest.Await(t, what, func(context.Context) error {
		if !ok() {
			return fmt.Errorf("not yet")
		}
		return nil
	})
}

// Keys are on the socket and nowhere else.
func TestNoKeyIsEverLogged(t *testing.T) {
	b := start(t)
	ca := envoytest.NewCA(t, "root")
	secretText := make([]byte, 32)
	if _, err := rand.Read(secretText); err != nil {
		t.Fatal(err)
	}
	mark := hex.EncodeToString(secretText)
	chain, _ := ca.Issue(t, spiffeID)
	key := "-----BEGIN EC PRIVATE KEY-----\n" + mark + "\n-----END EC PRIVATE KEY-----\n"
	b.become(material{chain: chain, key: []byte(key), roots: ca.RootPEM()})
	b.write("c.pem", chain)
	b.write("k.pem", []byte(key)) // damaged: an error must not quote it
	protocols(t, func(t *testing.T, follow func(*bench, ...string) *follower) {
		f := follow(b, "default", "file-cert:/c.pem~/k.pem", "file-root:/k.pem")
		f.reply(<-f.answers, "bad key")
		await(t, "the refusal and the files to be named", func() bool {
			said := b.logs.String()
			return strings.Contains(said, "refused") && strings.Contains(said, "are no pair") && strings.Contains(said, "expected CERTIFICATE only")
		})
		if said := b.logs.String() + fmt.Sprintf("%+v", b.Report()); strings.Contains(said, mark) {
			t.Errorf("the key is in\n%s", said)
		}
	})
}
