package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"wingman/test/freeport"
)

// A round is one round of asking, and what to expect of it. "…" at the end of want stands for whatever follows.
type round struct {
	name   string
	change func(ca *testCA, cfg *Config, r *request)
	want   string // of the error; "" means a certificate
	fails  failure
	by     string // the credential that brought it
}

// mendToken is the end of every sentence about a dead token.
const mendToken = "put the output of `kubectl create token forum-sa -n forum-services --audience istio-ca --duration 1h` at /run/istio-token"

// fetchRoot is the end of every sentence about a root that does not match.
const fetchRoot = `kubectl get configmap istio-ca-root-cert -n forum-services -o jsonpath='{.data.root-cert\.pem}', put at /etc/certs/root-cert.pem`

// rounds are the faults of a request, and what each prints.
func rounds() []round {
	withToken := func(change func(*jwt)) func(*testCA, *Config, *request) {
		return func(_ *testCA, _ *Config, r *request) {
			r.offers = offering(token(time.Now().Add(time.Hour), change))
		}
	}
	good := withToken(nil)
	with := func(steps ...func(*testCA, *Config, *request)) func(*testCA, *Config, *request) {
		return func(ca *testCA, cfg *Config, r *request) {
			for _, s := range steps {
				s(ca, cfg, r)
			}
		}
	}
	code := func(c codes.Code, text string) func(*testCA, *Config, *request) {
		return func(ca *testCA, _ *Config, _ *request) {
			ca.gate = func(context.Context) error { return status.Error(c, text) }
		}
	}
	_, notJWT := decodeClaims([]byte("secret"))
	notJWT = fmt.Errorf("/run/istio-token: %w", notJWT)
	answers := func(f func(good []string) []string) func(*testCA, *Config, *request) {
		return func(ca *testCA, _ *Config, _ *request) {
			ca.answer = func(_ *x509.CertificateRequest, good []string) ([]string, error) { return f(good), nil }
		}
	}
	inHand := func(ca *testCA, _ *Config, r *request) {
		r.inHand, r.left = certificateBy(ca.t, ca.root, testID, time.Now(), time.Hour), time.Hour
	}
	strangers := func(ca *testCA, _ *Config, r *request) {
		other := newAuthority(ca.t, "old root", time.Now(), time.Hour, nil)
		r.inHand, r.left = certificateBy(ca.t, other, testID, time.Now(), time.Hour), time.Hour
	}
	serverDates := func(from, to time.Duration) func(*testCA, *Config, *request) {
		return func(ca *testCA, _ *Config, _ *request) {
			key, now := newKey(ca.t), time.Now()
			leaf := issue(ca.t, &x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(to), DNSNames: []string{testServer}}, key.Public(), ca.root, nil)
			ca.server = &tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw}}
		}
	}
	return []round{
		{"a token that is good", good, "", 0, "token"},
		{"a certificate, and no token", inHand, "", 0, "certificate"},
		{"a certificate, and a token that expired long ago", with(inHand, withToken(func(j *jwt) { j.expires = time.Now().Add(-100 * time.Hour) })), "", 0, "certificate"},
		{"a certificate that istiod no longer accepts, and a good token", with(strangers, good), "", 0, "token"},

		{"no certificate, no token", func(*testCA, *Config, *request) {}, "nothing to prove who we are with: no living certificate, and no token at /run/istio-token; " + mendToken, failedRefused, ""},
		{"a certificate that has expired, no token", func(_ *testCA, _ *Config, r *request) { r.over = time.Now().Add(-3*time.Hour - time.Second) },
			"nothing to prove who we are with: the certificate expired 3 h ago, and no token at /run/istio-token; " + mendToken, failedRefused, ""},
		{"a token file that holds no token", func(_ *testCA, _ *Config, r *request) { r.offers[0].err = notJWT },
			"nothing to prove who we are with: no living certificate, and /run/istio-token: not a JWT: 1 part(s) between dots, expected 3; " + mendToken, failedRefused, ""},
		{"a token that has expired", withToken(func(j *jwt) { j.expires = time.Now().Add(-3*time.Hour - 2*time.Minute) }), "istiod refuses the token: token expired 3 h 2 min ago; " + mendToken, failedRefused, ""},
		{"a token for another audience", withToken(func(j *jwt) { j.audience = "vault" }), `istiod refuses the token: token for another audience: it is for "vault", expected istio-ca; ` + mendToken, failedRefused, ""},
		{"a token that istiod refuses although it looks right", with(good, code(codes.Unauthenticated, "request authenticate failure")),
			`istiod refuses the token although its claims look right (issuer "https://kubernetes.default.svc"): it was revoked, its service account is gone, or cluster "Kubernetes" does not know its issuer; ` + mendToken, failedRefused, ""},
		{"a token of another service account", withToken(func(j *jwt) { j.who = "default" }),
			`the CA's answer: the certificate is for "spiffe://cluster.local/ns/forum-services/sa/default", expected ` + testID + ": namespace, service account and trust domain must be those of the token", failedInvalid, ""},
		{"a token of another service account, refused", with(withToken(func(j *jwt) { j.who = "default" }), code(codes.Unauthenticated, "request authenticate failure")),
			`istiod refuses the token: token of another service account: it is "default"'s in namespace "forum-services", expected "forum-sa" in "forum-services"; ` + mendToken, failedRefused, ""},
		{"a CA that takes tokens only, and no token", with(inHand, code(codes.Unauthenticated, "no bearer token")),
			"istiod does not accept our certificate as a credential: its roots may have changed, or this CA takes tokens only; " + mendToken, failedRefused, ""},
		{"a certificate that istiod no longer accepts, and a token that has expired", with(strangers, withToken(func(j *jwt) { j.expires = time.Now().Add(-time.Hour) })), "…; istiod refuses the token: token expired 1 h ago; " + mendToken, failedRefused, ""},
		{"not allowed to", with(good, code(codes.PermissionDenied, "impersonation")), `istiod knows our token but will not sign for it: "impersonation"`, failedRefused, ""},
		{"overloaded", with(good, code(codes.ResourceExhausted, "too many")), `istiod is overloaded and asks for patience: "too many"`, failedOverloaded, ""},
		{"unavailable", with(good, code(codes.Unavailable, "shutting down")), `istiod's CA at HOST:PORT is not available: "shutting down"`, failedUnreachable, ""},
		{"no CA there", with(good, code(codes.Unimplemented, "unknown service")), `there is no CA at HOST:PORT: set CA_ADDR to the one that signs ("unknown service")`, failedUnreachable, ""},
		{"an error inside istiod", with(good, code(codes.Internal, "CSR sign error\nsecond line")), `istiod's CA could not sign: Internal: "CSR sign error\nsecond line"`, failedUnreachable, ""},
		{"an error of a megabyte", with(good, code(codes.Internal, strings.Repeat("x", 5000))), `istiod's CA could not sign: Internal: "` + strings.Repeat("x", 300) + `"`, failedUnreachable, ""},
		{"an answer without end", with(good, answers(func(good []string) []string { return append(good, strings.Repeat(good[1], 2000)) })), "the answer of HOST:PORT is larger than 1024 kB: is this istiod's CA?", failedUnreachable, ""},
		{"an answer that is garbage", with(good, answers(func([]string) []string { return []string{"x", "y"} })), "element 1 of the CA's answer: it holds no PEM block, expected certificates", failedInvalid, ""},
		{"an answer with one certificate", with(good, answers(func(good []string) []string { return good[:1] })), "the CA's answer holds 1 certificate(s): expected at least two, the leaf first and its root last", failedInvalid, ""},
		{"an answer in the wrong order", with(good, answers(func(good []string) []string { return []string{good[1], good[0]} })), "the CA's answer is in the wrong order: the certificate for our key is number 2, expected it first", failedInvalid, ""},
		{"an answer for another key", with(good, func(ca *testCA, _ *Config, _ *request) {
			other := string(certificateBy(ca.t, ca.root, testID, time.Now(), time.Hour).ChainPEM())
			ca.answer = func(_ *x509.CertificateRequest, good []string) ([]string, error) {
				return []string{other, good[1]}, nil
			}
		}), "the CA's answer is for another key than the one in our request: its leaf is serial …", failedInvalid, ""},

		{"istiod's certificate is by another root", with(good, func(ca *testCA, _ *Config, r *request) {
			r.roots = anchors{}.withFile([]*x509.Certificate{newAuthority(ca.t, "other.mesh", time.Now(), time.Hour, nil).cert})
		}), `root-cert.pem does not match istiod's certificate: that is issued by "O=cluster.local", we trust "O=other.mesh" (serial …`, failedUnreachable, ""},
		{"istiod's certificate is by another root of the same name", with(good, func(ca *testCA, _ *Config, r *request) {
			r.roots = anchors{}.withFile([]*x509.Certificate{newAuthority(ca.t, "cluster.local", time.Now(), time.Hour, nil).cert})
		}), `root-cert.pem does not match istiod's certificate: that is issued by "O=cluster.local", we trust "O=cluster.local" (serial …`, failedUnreachable, ""},
		{"our root has expired", with(good, func(ca *testCA, _ *Config, r *request) {
			r.roots = anchors{}.withFile([]*x509.Certificate{newAuthority(ca.t, "cluster.local", time.Now().Add(-2*time.Hour), time.Hour, nil).cert})
		}), "root-cert.pem has expired: " + fetchRoot, failedUnreachable, ""},
		{"no root at all", with(good, func(_ *testCA, _ *Config, r *request) { r.roots = nil }), "no root certificate to check istiod's certificate with: " + fetchRoot, failedUnreachable, ""},
		{"istiod's certificate is for another name", with(good, func(_ *testCA, cfg *Config, _ *request) { cfg.ServerName = "10.0.0.1" }),
			`istiod's certificate is for "istiod.istio-system.svc", not for "10.0.0.1": set ISTIOD_SAN to the name that istiod has`, failedUnreachable, ""},
		{"istiod's certificate has expired", with(good, serverDates(-5*time.Hour, -2*time.Hour)), "istiod's certificate expired 2 h ago: either istiod lost its own renewal or this machine's clock is ahead", failedUnreachable, ""},
		{"istiod's certificate begins in our future", with(good, serverDates(2*time.Hour+3*time.Minute+30*time.Second, 9*time.Hour)), "the clock is at least 2 h 3 min behind istiod, whose certificate begins at …", failedUnreachable, ""},
		{"nobody listens", with(good, func(ca *testCA, cfg *Config, _ *request) {
			cfg.CAAddress = freeport.Addr().String()
		}), "cannot reach istiod's CA at HOST:PORT: connect: connection refused", failedUnreachable, ""},
		{"the name does not resolve", with(good, func(_ *testCA, cfg *Config, _ *request) {
			cfg.Dial = func(context.Context, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "istiod.istio-system.svc"}}
			}
		}), `cannot reach istiod's CA at HOST:PORT: its name "istiod.istio-system.svc" does not resolve (no such host): istioctl's hosts file maps it`, failedUnreachable, ""},
		{"a firewall that says nothing", with(good, hurry, func(_ *testCA, cfg *Config, _ *request) {
			cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		}), "cannot reach istiod's CA at HOST:PORT: the connection was not accepted in time: is the port open along the way?", failedUnreachable, ""},
		{"a CA that hangs", with(good, hurry, func(ca *testCA, _ *Config, _ *request) {
			ca.gate = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}), "no answer from istiod's CA at HOST:PORT within 2 s", failedUnreachable, ""},
		{"a port that accepts and says nothing", with(good, hurry, func(ca *testCA, cfg *Config, _ *request) {
			cfg.CAAddress = silentPort(ca.t)
		}), "no answer from istiod's CA at HOST:PORT within 2 s", failedUnreachable, ""},
		{"a web server without TLS", with(good, func(ca *testCA, cfg *Config, _ *request) {
			cfg.CAAddress = plainPort(ca.t)
		}), "istiod's CA at HOST:PORT is not available: …", failedUnreachable, ""},
		{"a server that insists on client certificates", with(good, func(ca *testCA, cfg *Config, _ *request) {
			cfg.CAAddress = strictPort(ca)
		}), "HOST:PORT broke off the TLS handshake (tls: handshake failure): is this istiod's CA?", failedUnreachable, ""},
	}
}

// run makes the request, and returns its outcome and where the CA was.
func (tt round) run(t *testing.T) (out outcome, r request, address string) {
	ca := newTestCA(t, nil)
	cfg := Config{
		CAAddress: ca.addr, ServerName: testServer, SPIFFEID: testID, ClusterID: "Kubernetes", Key: KeyOptions{Algorithm: "ECDSA"},
		TokenFile: "/run/istio-token", RootFile: "/etc/certs/root-cert.pem", StateDir: "/nowhere",
	}
	r = request{roots: anchors{}.withFile([]*x509.Certificate{ca.root.cert}), offers: offering("")}
	ca.with(func() { tt.change(ca, &cfg, &r) })
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m.ask(t.Context(), r), r, cfg.CAAddress
}

func TestRequestsEachFaultInOneSentence(t *testing.T) {
	for _, tt := range rounds() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out, r, address := tt.run(t)
			got, want := oneLine(out.err), strings.ReplaceAll(tt.want, "HOST:PORT", address)
			before, after, open := strings.Cut(want, "…")
			if got != want && !(open && strings.HasPrefix(got, before) && strings.HasSuffix(got, after)) {
				t.Errorf("said\n%s\nwant\n%s", got, want)
			}
			if out.failure != tt.fails || (out.cert != nil) != (tt.want == "") || out.credential != tt.by {
				t.Errorf("failure %v, certificate %v by %q; want %v, %v by %q", out.failure, out.cert, out.credential, tt.fails, tt.want == "", tt.by)
			}
			for _, o := range r.offers {
				if secret := o.token.reveal(); secret != "" && strings.Contains(got, secret) {
					t.Error("a token is in the error")
				}
			}
		})
	}
}

// hurry makes the time-out two seconds.
func hurry(_ *testCA, _ *Config, r *request) { r.left = time.Second }

func listen(t testing.TB) net.Listener {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	return lis
}

// silentPort accepts by the kernel's backlog and never answers.
func silentPort(t testing.TB) string { return listen(t).Addr().String() }

// plainPort speaks HTTP to whoever connects.
func plainPort(t testing.TB) string {
	lis := listen(t)
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\nthis is no TLS\r\n")
			conn.Close()
		}
	}()
	return lis.Addr().String()
}

// strictPort is a gRPC server that wants a client certificate. By TLS 1.2, where that is a part of the handshake: by 1.3 the server's
// alert races with its reset of the connection.
func strictPort(ca *testCA) string {
	lis := listen(ca.t)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{*ca.server}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12})))
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(lis) }()
	ca.t.Cleanup(func() { srv.Stop(); <-done })
	return lis.Addr().String()
}

// Over TLS 1.3 the alert about a client certificate and the reset of the connection race: what each makes of it is held here.
func TestACertificateThatIstiodBreaksOffOver(t *testing.T) {
	shown := proof{name: "certificate", cert: &tls.Certificate{}}
	tests := []struct{ name, message, want string }{
		{"the alert arrives", `connection error: desc = "error reading server preface: remote error: tls: expired certificate"`,
			"istiod broke off the TLS handshake over our certificate (tls: expired certificate): its roots have probably changed"},
		{"the reset arrives first", "write: broken pipe", `istiod's CA at istiod:15012 is not available: "write: broken pipe"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := explain(&callError{rpc: status.Error(codes.Unavailable, tt.message)}, shown, scene{address: "istiod:15012"})
			if got.Error() != tt.want || !got.another {
				t.Errorf("got %q, try another credential: %v; want %q and another", got, got.another, tt.want)
			}
		})
	}
}

func TestWhatTheCAIsTold(t *testing.T) {
	ca := newTestCA(t, nil)
	m, err := New(Config{
		CAAddress: ca.addr, ServerName: testServer, SPIFFEID: testID, ClusterID: "cluster-7", CertSigner: "vault", TTL: 20 * time.Second,
		Key: KeyOptions{Algorithm: "ECDSA"}, RootFile: "/r", StateDir: "/s",
	})
	if err != nil {
		t.Fatal(err)
	}
	out := m.ask(t.Context(), request{roots: anchors{}.withFile([]*x509.Certificate{ca.root.cert}), offers: offering(token(time.Now().Add(time.Hour), nil))})
	if out.err != nil {
		t.Fatal(out.err)
	}
	got := ca.seen()[0]
	got.at = time.Time{}
	if want := (call{credential: "token", clusterID: "cluster-7", certSigner: "vault", seconds: 20}); got != want {
		t.Errorf("the CA saw %+v, want %+v", got, want)
	}
}

func TestTheKeyOfAFailedRoundIsUsedAgain(t *testing.T) {
	m, err := New(Config{CAAddress: freeport.Addr().String(), ServerName: testServer, SPIFFEID: testID, RootFile: "/r", StateDir: "/s"})
	if err != nil {
		t.Fatal(err)
	}
	r := request{offers: offering("x"), roots: newKeyring(t).roots()}
	first := m.ask(t.Context(), r)
	r.key = first.key
	if second := m.ask(t.Context(), r); first.key == nil || second.key != first.key {
		t.Error("a failing CA makes us generate an RSA key at every try")
	}
}

func TestARequestEndsWithItsContext(t *testing.T) {
	ca := newTestCA(t, nil)
	asked := make(chan struct{})
	ca.gate = func(ctx context.Context) error { close(asked); <-ctx.Done(); return ctx.Err() }
	m, err := New(Config{CAAddress: ca.addr, ServerName: testServer, SPIFFEID: testID, RootFile: "/r", StateDir: "/s", Key: KeyOptions{Algorithm: "ECDSA"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan outcome, 1)
	go func() {
		done <- m.ask(ctx, request{offers: offering(token(time.Now().Add(time.Hour), nil)), roots: anchors{}.withFile([]*x509.Certificate{ca.root.cert})})
	}()
	within(t, 30*time.Second, asked, "the request at the CA")
	cancel()
	if out := within(t, 30*time.Second, done, "the end of the request"); out.err == nil || !strings.Contains(out.err.Error(), "given up") {
		t.Errorf("got %v", out.err)
	}
}

func TestAConfigIsRefusedWithEveryProblemAtOnce(t *testing.T) {
	_, err := New(Config{
		CAAddress: "http://istiod:15012", SPIFFEID: "me", Key: KeyOptions{Algorithm: "DSA"}, TTL: time.Millisecond, GraceRatio: 1.5, GraceJitter: 2,
		TokenFile: "token", StateDir: "",
	})
	want := []string{
		`CA address "http://istiod:15012": expected host:port`, `SPIFFE id "me": expected spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`,
		`key algorithm "DSA": expected RSA or ECDSA`, "certificate life 1ms: expected at least 1 s", "grace ratio 1.5: expected more than 0 and less than 1",
		"grace jitter 2: expected less than 1", `state folder "": expected an absolute path`, `token file "token": expected an absolute path`, `root file "": expected an absolute path`,
	}
	if got := "identity settings: " + strings.Join(want, "\n"); err == nil || err.Error() != got {
		t.Errorf("got\n%v\nwant\n%s", err, got)
	}
	for _, bad := range []string{"", "istiod", "istiod:", ":15012", "istiod:0", "istiod:70000", "istiod:http"} {
		if _, err := New(Config{CAAddress: bad, SPIFFEID: testID, RootFile: "/r", StateDir: "/s"}); err == nil {
			t.Errorf("address %q passed", bad)
		}
	}
	if _, err := New(Config{CAAddress: "[2001:db8::1]:15012", SPIFFEID: testID, RootFile: "/r", StateDir: "/s"}); err != nil {
		t.Errorf("an IPv6 address: %v", err)
	}
}
