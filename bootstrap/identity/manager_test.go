package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// start runs a manager of cfg until the test ends.
func start(t *testing.T, cfg Config) *Manager {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, m)
	return m
}

// run runs m until the test ends, or until the function it returns is called.
func run(t *testing.T, m *Manager) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// within waits for c to be closed or to deliver.
func within[T any](t *testing.T, d time.Duration, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(d):
		t.Fatalf("%s: nothing after %v", what, d)
		panic("unreachable")
	}
}

// changesOf makes cfg tell of every certificate.
func changesOf(cfg *Config) <-chan *Certificate {
	changes := make(chan *Certificate, 100)
	cfg.OnChange = func(c *Certificate) { changes <- c }
	return changes
}

// TestAMachineJoinsOverRealTLSAsItsFilesAppear starts with nothing on a real file system, and watches by inotify.
func TestAMachineJoinsOverRealTLSAsItsFilesAppear(t *testing.T) {
	ca := newTestCA(t, nil)
	vm := newMachine(t, ca)
	if err := os.RemoveAll(filepath.Join(vm.root, "etc")); err != nil {
		t.Fatal(err)
	}
	cfg := vm.config(ca)
	changes := changesOf(&cfg)
	m := start(t, cfg)
	putFile(t, vm.rootCert, ca.root.pem())
	putFile(t, vm.token, token(time.Now().Add(time.Hour), nil))
	first := within(t, 20*time.Second, changes, "the first certificate")
	within(t, 20*time.Second, m.Ready(), "ready")
	if got := pairOnDisk(t, filepath.Join(vm.state, storeName, currentLink)); got != first.Serial || m.Current() != first {
		t.Errorf("told of %s, in use %v, on disk %s", first.Serial, m.Current(), got)
	}
	// Another root through inotify, beside the joined state.
	next := newAuthority(t, "next", time.Now(), time.Hour, nil)
	putFile(t, vm.rootCert, next.pem())
	second := within(t, 20*time.Second, changes, "the change of roots")
	if certs, err := parseRoots(second.RootsPEM()); err != nil || organizations(certs) != "cluster.local next" || second.Serial != first.Serial {
		t.Errorf("told of %v with the roots %v, %v", second, certs, err)
	}
}

func TestClientTLSShowsTheNewestCertificateOrNone(t *testing.T) {
	ca := newTestCA(t, nil)
	vm := newMachine(t, ca)
	cfg := vm.config(ca)
	changes := changesOf(&cfg)
	m := start(t, cfg)
	config := m.ClientTLS() // made before there is anything, used for ever

	// A server that says who came.
	lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		ClientAuth: tls.RequestClientCert, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ca.server, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			serial := "nobody"
			if conn.(*tls.Conn).Handshake() == nil {
				if certs := conn.(*tls.Conn).ConnectionState().PeerCertificates; len(certs) > 0 {
					serial = serialOf(certs[0])
				}
			}
			io.WriteString(conn, serial)
			conn.Close()
		}
	}()
	who := func(config *tls.Config) string {
		t.Helper()
		raw, err := net.Dial("tcp", lis.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		conn := tls.Client(raw, config)
		if err := conn.Handshake(); err != nil {
			return "refused: " + err.Error()
		}
		if v := conn.ConnectionState().Version; v < tls.VersionTLS12 {
			t.Errorf("TLS version %x", v)
		}
		serial, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(serial)
	}
	if got := who(config); got != "nobody" && !strings.HasPrefix(got, "refused: no root certificate") {
		t.Errorf("before the first certificate: %s", got)
	}
	putFile(t, vm.token, token(time.Now().Add(time.Hour), nil))
	first := within(t, 20*time.Second, changes, "the first certificate")
	if got := who(config); got != first.Serial {
		t.Errorf("%s came, want %s", got, first.Serial)
	}
	if err := m.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := who(config); got != m.Current().Serial || got == first.Serial {
		t.Errorf("%s came after the renewal, want %s", got, m.Current().Serial)
	}
	if got := who(m.ClientTLSFor("elsewhere.svc")); !strings.HasPrefix(got, `refused: istiod's certificate is for "istiod.istio-system.svc", not for "elsewhere.svc"`) {
		t.Errorf("another name: %s", got)
	}
	ca.rotate(newAuthority(t, "stranger", time.Now(), time.Hour, nil))
	if got := who(config); !strings.HasPrefix(got, "refused: root-cert.pem does not match istiod's certificate") {
		t.Errorf("another root: %s", got)
	}
}

func TestReadersNeverWait(t *testing.T) {
	ca := newTestCA(t, nil)
	vm := newMachine(t, ca)
	putFile(t, vm.token, token(time.Now().Add(time.Hour), nil))
	m := start(t, vm.config(ca))
	within(t, 20*time.Second, m.Ready(), "ready")
	ctx, cancel := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				c := m.Current()
				if _, err := tls.X509KeyPair(c.ChainPEM(), c.KeyPEM()); err != nil {
					t.Error(err)
				}
				leaf := c.TLS().Leaf
				if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
					t.Error(err)
				}
				if s := m.State(); s.Serial == "" {
					t.Error("a state without a serial")
				}
			}
		})
	}
	for range 5 {
		if err := m.Renew(t.Context()); err != nil {
			t.Error(err)
		}
	}
	cancel()
	readers.Wait()
}

func TestTokenFile(t *testing.T) {
	good := token(time.Now().Add(time.Hour), nil)
	tests := []struct {
		name    string
		arrange func(t *testing.T, path string)
		is      error
		want    string // after the path
	}{
		{"a token with a line end", func(t *testing.T, path string) { putFile(t, path, good+"\n") }, nil, ""},
		{"an expired one is istiod's to judge", func(t *testing.T, path string) { putFile(t, path, token(time.Now().Add(-time.Hour), nil)) }, nil, ""},
		{"no file", func(*testing.T, string) {}, ErrNoToken, "no token at PATH"},
		{"an empty file", func(t *testing.T, path string) { putFile(t, path, "") }, ErrNoToken, "PATH: no token: it is empty"},
		{"not a JWT", func(t *testing.T, path string) { putFile(t, path, "secret") }, ErrNotJWT, "PATH: not a JWT: 1 part(s) between dots, expected 3"},
		{"a folder", func(t *testing.T, path string) { os.MkdirAll(path, 0o755) }, nil, "read token: PATH is not a regular file"},
		{"far too large", func(t *testing.T, path string) { putFile(t, path, strings.Repeat("x", MaxToken+1)) }, nil, "read token: PATH has 65537 bytes, expected at most 65536"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "istio-token")
			tt.arrange(t, path)
			m, err := New(Config{CAAddress: "istiod:15012", SPIFFEID: testID, RootFile: "/r", StateDir: "/s", TokenFile: path})
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Token()
			if want := strings.ReplaceAll(tt.want, "PATH", path); oneLine(err) != want || tt.is != nil && !errors.Is(err, tt.is) || (err == nil) != (got != "") {
				t.Errorf("%d bytes, %v; want %q", len(got), err, want)
			}
			if strings.ContainsAny(got, " \n") {
				t.Errorf("white space in %q", got)
			}
		})
	}
}

func TestATokenThatEverybodyCanReadIsUsedAndSaid(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		if err := os.Chmod(l.vm.token, 0o644); err != nil {
			t.Fatal(err)
		}
		l.start()
		l.pass(time.Hour)
		l.mustBe(Valid)
		if s := l.m.State(); s.Token.Warning != "every user of this machine can read "+l.vm.token+": chmod 0600 it" {
			t.Errorf("warning %q", s.Token.Warning)
		}
		if n := l.log.count("WARN", "token is readable by everybody"); n != 1 {
			t.Errorf("said %d times, want once", n)
		}
	})
}

func TestStateForPeopleAndScripts(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		reg := prometheus.NewRegistry()
		l.cfg.Metrics = reg
		l.start()
		// 2000-01-01 is where a bubble begins; what differs from run to run is put in its place.
		text, err := json.MarshalIndent(l.m.State(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.NewReplacer(l.vm.root, "", l.m.Current().Serial, "SERIAL", rootStates(anchors{{cert: l.ca.root.cert}})[0].Serial, "ROOT").Replace(string(text)) + "\n"
		want, err := os.ReadFile("testdata/state.json")
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		metrics := map[string]float64{
			metricNotAfter: 946771200, metricReceived: 946684800, metricRenewAt: 946728000, metricToken: 946688400,
			metricRoot: float64(l.ca.root.cert.NotAfter.Unix()), metricRequests: 1, metricSeconds: 1, metricStoreFails: 0, metricPhase: 1,
		}
		if diff := cmp.Diff(metrics, gathered(t, reg)); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
		if _, err := New(l.cfg); err == nil {
			t.Error("two managers share one registry")
		}
	})
}

func TestAStateBeforeRunIsWhole(t *testing.T) {
	m, err := New(Config{CAAddress: "istiod:15012", SPIFFEID: testID, RootFile: "/r", StateDir: "/var/lib/wingman", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if s := m.State(); s.Phase != None || s.Health != Degraded || s.SPIFFEID != testID || s.StoreDir != "/var/lib/wingman/identity" || s.Roots == nil {
		t.Errorf("%+v", s)
	}
	if m.Current() != nil || m.Roots() == nil {
		t.Errorf("current %v, roots %v", m.Current(), m.Roots())
	}
}

// gathered sums up every metric's values by name.
func gathered(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return values
}
