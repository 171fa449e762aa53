package identity

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"wingman/test/freeport"
)

// A testAgent is a SPIFFE Workload API as far as this package sees it: the generated server on a real socket. test/spire has the real one.
type testAgent struct {
	t      *testing.T
	socket string
	root   *authority
	grpc   *grpc.Server
	served chan struct{}

	mu      sync.Mutex // guards everything below
	answer  *api.X509SVIDResponse
	err     error
	changed chan struct{}

	api.UnimplementedSpiffeWorkloadAPIServer
}

func newTestAgent(t *testing.T, socket string) *testAgent {
	t.Helper()
	a := &testAgent{t: t, socket: socket, changed: make(chan struct{})}
	a.root = spiffeRoot(t, "cluster.local")
	a.give(testID, time.Hour)
	t.Cleanup(a.stop)
	return a
}

// spiffeRoot is a CA that go-spiffe takes: of a trust domain, by its URI.
func spiffeRoot(t *testing.T, domain string) *authority {
	t.Helper()
	key := newKey(t)
	return &authority{key: key, cert: issue(t, &x509.Certificate{
		Subject: pkix.Name{Organization: []string{domain}}, URIs: []*url.URL{must(url.Parse("spiffe://" + domain))},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, key.Public(), nil, key)}
}

// svid is what the agent would give for id.
func (a *testAgent) svid(id string, life time.Duration) *api.X509SVID {
	key := newKey(a.t)
	now := time.Now()
	template := workloadTemplate(id, now, life)
	template.NotBefore, template.BasicConstraintsValid = now.Add(-10*time.Second), true
	leaf := issue(a.t, template, key.Public(), a.root, nil)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &api.X509SVID{SpiffeId: id, X509Svid: leaf.Raw, X509SvidKey: der, Bundle: a.root.cert.Raw}
}

func (a *testAgent) give(id string, life time.Duration) {
	a.set(&api.X509SVIDResponse{Svids: []*api.X509SVID{a.svid(id, life)}}, nil)
}

func (a *testAgent) set(answer *api.X509SVIDResponse, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer, a.err = answer, err
	close(a.changed)
	a.changed = make(chan struct{})
}

// start opens the socket.
func (a *testAgent) start() {
	a.t.Helper()
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	a.grpc, a.served = grpc.NewServer(), make(chan struct{})
	api.RegisterSpiffeWorkloadAPIServer(a.grpc, a)
	go func() { defer close(a.served); a.grpc.Serve(l) }()
}

func (a *testAgent) stop() {
	if a.grpc != nil {
		a.grpc.Stop()
		<-a.served
	}
	a.grpc = nil
}

func (a *testAgent) FetchX509SVID(_ *api.X509SVIDRequest, stream api.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	if md.Get("workload.spiffe.io")[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		a.mu.Lock()
		answer, err, changed := a.answer, a.err, a.changed
		a.mu.Unlock()
		if err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// socketMachine is a VM whose certificates come from a Workload API.
func socketMachine(t *testing.T) (cfg Config, a *testAgent) {
	t.Helper()
	dir, err := os.MkdirTemp("", "spiffe") // a socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Config{
		CAAddress: "istiod.istio-system.svc:15012", SPIFFEID: testID, StateDir: filepath.Join(dir, "state"), OutputDir: filepath.Join(dir, "certs"),
		RootFile: filepath.Join(dir, "certs/root-cert.pem"), TokenFile: filepath.Join(dir, "istio-token"), WorkloadSocket: filepath.Join(dir, "agent.sock"),
	}, newTestAgent(t, filepath.Join(dir, "agent.sock"))
}

// until polls a manager's state.
func until(t *testing.T, m *Manager, what string, is func(State) bool) State {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		s := m.State()
		if is(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not %s: %+v", what, s)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestCertificatesOfAWorkloadAPI(t *testing.T) {
	cfg, a := socketMachine(t)
	putFile(t, cfg.TokenFile, token(time.Now().Add(time.Hour), nil))
	changes := changesOf(&cfg)
	m := start(t, cfg)
	until(t, m, "told that there is no socket", func(s State) bool {
		return s.LastError == "no SPIFFE Workload API at "+cfg.WorkloadSocket+": is the SPIRE agent running, with this socket_path?"
	})
	a.start()
	first := within(t, 30*time.Second, changes, "the first certificate")
	s := until(t, m, "valid", func(s State) bool { return s.Phase == Valid && s.LastError == "" })
	if s.Credential != viaSocket || s.Issuer != "SPIFFE Workload API at "+cfg.WorkloadSocket || s.RootProblem != "" || s.Token.Present {
		t.Errorf("state %+v", s)
	}
	if got := pairOnDisk(t, cfg.OutputDir); got != first.Serial || first.SPIFFEID != testID {
		t.Errorf("%s in the output folder, in use %v", got, first)
	}
	if _, err := m.Token(); !errors.Is(err, ErrNoToken) {
		t.Errorf("Token: %v: istiod is shown the certificate, and no token", err)
	}
	if err := m.Renew(t.Context()); !errors.Is(err, errSourceRenews) {
		t.Errorf("Renew: %v", err)
	}

	// The agent rotates, with the bundle of a federated domain: peers of that are trusted, an istiod is not.
	other, answer := spiffeRoot(t, "other.mesh"), &api.X509SVIDResponse{Svids: []*api.X509SVID{a.svid(testID+"-canary", time.Hour), a.svid(testID, time.Hour)}}
	answer.FederatedBundles = map[string][]byte{"spiffe://other.mesh": other.cert.Raw}
	a.set(answer, nil)
	second := within(t, 30*time.Second, changes, "the rotated certificate")
	if second.Serial == first.Serial || organizations(must(parseRoots(second.RootsPEM()))) != "cluster.local other.mesh" {
		t.Errorf("second %v with %s", second, organizations(must(parseRoots(second.RootsPEM()))))
	}
	if config := m.ClientTLS(); verifyPeer(config, serverBy(t, a.root)) != nil || verifyPeer(config, serverBy(t, other)) == nil {
		t.Error("who may vouch for istiod: our own trust domain, and no federated one")
	}

	// What cannot be used changes nothing, and is said.
	for _, bad := range []struct {
		answer *api.X509SVIDResponse
		err    error
		want   string
	}{
		{&api.X509SVIDResponse{Svids: []*api.X509SVID{a.svid("spiffe://cluster.local/ns/x/sa/y", time.Hour)}}, nil,
			`gives "spiffe://cluster.local/ns/x/sa/y", expected ` + testID + ": spire-server entry create -parentID AGENT -spiffeID " + testID},
		{&api.X509SVIDResponse{Svids: []*api.X509SVID{{SpiffeId: testID, X509Svid: []byte("garbage"), Bundle: a.root.cert.Raw}}}, nil, "the SPIFFE Workload API at "},
		{&api.X509SVIDResponse{Svids: []*api.X509SVID{a.svid(testID, -time.Second)}}, nil, "the certificate expired"},
		{nil, status.Error(codes.PermissionDenied, "no identity issued"), "knows no identity for this process (no identity issued): spire-server entry create"},
		{nil, status.Error(codes.Unimplemented, "unknown service SpiffeWorkloadAPI"), "serves no SPIFFE Workload API"},
		{nil, status.Error(codes.InvalidArgument, "odd"), "odd"},
	} {
		a.set(bad.answer, bad.err)
		until(t, m, "told "+bad.want, func(s State) bool { return strings.Contains(s.LastError, bad.want) })
		if m.Current().Serial != second.Serial {
			t.Errorf("%s: in use %v", bad.want, m.Current())
		}
	}

	// The agent goes, and comes back with another socket file.
	a.stop()
	until(t, m, "told that the socket is gone", func(s State) bool { return strings.Contains(s.LastError, "no SPIFFE Workload API at") })
	if m.Current().Serial != second.Serial || m.State().Phase != Valid {
		t.Errorf("%v, %s; want the last good one", m.Current(), m.State().Phase)
	}
	a.give(testID, time.Hour)
	a.start()
	third := within(t, 30*time.Second, changes, "the certificate after the agent's return")
	if third.Serial == second.Serial || organizations(must(parseRoots(third.RootsPEM()))) != "cluster.local" {
		t.Errorf("third %v with %s", third, organizations(must(parseRoots(third.RootsPEM()))))
	}
	until(t, m, "fine again", func(s State) bool { return s.LastError == "" && s.Phase == Valid })
}

// A SPIRE agent that is not there at a start costs nothing: the last certificate is on disk, with its roots.
func TestTheLastCertificateOfAWorkloadAPIOutlivesARestart(t *testing.T) {
	cfg, a := socketMachine(t)
	a.start()
	ctx, cancel := context.WithCancel(t.Context())
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	within(t, 30*time.Second, m.Ready(), "ready")
	serial := m.Current().Serial
	cancel()
	if err := within(t, 30*time.Second, done, "the end"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	again := start(t, cfg)
	within(t, 30*time.Second, again.Ready(), "ready without the agent")
	if again.Current().Serial != serial || again.State().Phase != Valid {
		t.Errorf("in use %v, want %s", again.Current(), serial)
	}
	// Without the setting istiod's CA is the source again; the bundle is trusted as long as the certificate that it belongs to lives.
	back := cfg
	back.StateDir, back.OutputDir, back.WorkloadSocket, back.CAAddress = filepath.Join(filepath.Dir(cfg.StateDir), "copy"), "", "", freeport.Addr().String()
	if err := os.CopyFS(back.StateDir, os.DirFS(cfg.StateDir)); err != nil {
		t.Fatal(err)
	}
	m = start(t, back)
	within(t, 30*time.Second, m.Ready(), "ready from disk")
	if roots := m.State().Roots; len(roots) != 1 || roots[0].Source != fromSPIFFE || !roots[0].Until.Equal(again.Current().NotAfter) {
		t.Errorf("roots %+v", roots)
	}
}

func TestAnSVIDIsRenewedWhenTheAgentPushes(t *testing.T) {
	t.Parallel() // it waits for half of this life
	cfg, a := socketMachine(t)
	a.give(testID, 20*time.Second)
	a.start()
	m := start(t, cfg)
	within(t, 30*time.Second, m.Ready(), "ready")
	first := m.Current().Serial
	until(t, m, "waiting for the agent at half of the life", func(s State) bool { return s.Phase == Renewing && s.LastError == "" })
	a.give(testID, time.Hour)
	until(t, m, "valid again", func(s State) bool { return s.Phase == Valid && s.Serial != first })
}
