package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	security "istio.io/api/security/v1alpha1"
)

const (
	testID     = "spiffe://cluster.local/ns/forum-services/sa/forum-sa"
	testServer = "istiod.istio-system.svc"
)

// An authority is a CA key with its certificate.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (a *authority) pem() string { return string(encodeCertificates([]*x509.Certificate{a.cert})) }

// issue signs a certificate made from template for public; by nil it signs itself.
func issue(t testing.TB, template *x509.Certificate, public crypto.PublicKey, by *authority, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template.SerialNumber = serial(t)
	parent := template
	if by != nil {
		parent, key = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func serial(t testing.TB) *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newAuthority makes a CA valid from an hour before now; by nil it is a root.
func newAuthority(t testing.TB, name string, now time.Time, life time.Duration, by *authority) *authority {
	t.Helper()
	key := newKey(t)
	return &authority{key: key, cert: issue(t, &x509.Certificate{
		Subject: pkix.Name{Organization: []string{name}}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, key.Public(), by, key)}
}

// workloadTemplate is what istiod makes of a CSR: one URI SAN, NotBefore two minutes back.
func workloadTemplate(id string, now time.Time, life time.Duration) *x509.Certificate {
	uri, _ := url.Parse(id)
	return &x509.Certificate{
		NotBefore: now.Add(-backdated), NotAfter: now.Add(life), URIs: []*url.URL{uri},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// A testCA is istiod as far as this package sees it: a real gRPC server over real TLS. Its levers may be pulled at any time.
type testCA struct {
	t    testing.TB
	root *authority
	addr string
	grpc *grpc.Server

	mu     sync.Mutex // guards everything below
	signer *authority
	extra  *authority // between signer and root; nil: none
	life   time.Duration
	clock  func() time.Time
	server *tls.Certificate
	calls  []call
	// answer, if set, takes the place of the whole CA once the caller is known.
	answer func(csr *x509.CertificateRequest, good []string) ([]string, error)
	// gate, if set, comes before authentication: its error is the answer.
	gate func(ctx context.Context) error

	security.UnimplementedIstioCertificateServiceServer
}

// A call is what the CA saw of one request.
type call struct {
	credential, clusterID, certSigner string
	seconds                           int64
	at                                time.Time
	code                              codes.Code
}

// newTestCA starts a CA on lis, nil: on loopback.
func newTestCA(t testing.TB, lis net.Listener) *testCA {
	t.Helper()
	if lis == nil {
		var err error
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	root := newAuthority(t, "cluster.local", time.Now(), 10*365*24*time.Hour, nil)
	ca := &testCA{t: t, root: root, signer: root, life: 24 * time.Hour, clock: time.Now, addr: lis.Addr().String()}
	ca.serve(testServer, 365*24*time.Hour)
	ca.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		// Go's server checks what VerifyClientCertIfGiven would, against the roots of the moment.
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			ca.mu.Lock()
			defer ca.mu.Unlock()
			return ca.server, nil
		},
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error { return ca.checkClient(raw) },
	})))
	security.RegisterIstioCertificateServiceServer(ca.grpc, ca)
	done := make(chan struct{})
	go func() { defer close(done); ca.grpc.Serve(lis) }()
	t.Cleanup(func() { ca.grpc.Stop(); <-done })
	return ca
}

// serve gives the CA a new serving certificate.
func (ca *testCA) serve(name string, life time.Duration) {
	key := newKey(ca.t)
	ca.mu.Lock()
	defer ca.mu.Unlock()
	now := ca.clock()
	begin := now.Add(-time.Hour)
	if life < 0 { // one that has expired
		begin = now.Add(2 * life)
	}
	leaf := issue(ca.t, &x509.Certificate{
		NotBefore: begin, NotAfter: now.Add(life), DNSNames: []string{name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public(), ca.root, nil)
	ca.server = &tls.Certificate{PrivateKey: key, Certificate: [][]byte{leaf.Raw, ca.root.cert.Raw}}
}

// rotate makes root the one that signs everything from now on.
func (ca *testCA) rotate(root *authority) {
	ca.mu.Lock()
	ca.root, ca.signer = root, root
	ca.mu.Unlock()
	ca.serve(testServer, 365*24*time.Hour)
}

func (ca *testCA) with(change func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	change()
}

func (ca *testCA) seen() []call {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return slices.Clone(ca.calls)
}

func (ca *testCA) checkClient(raw [][]byte) error {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if len(raw) == 0 {
		return nil
	}
	leaf, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root.cert)
	between := x509.NewCertPool()
	for _, der := range raw[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		between.AddCert(c)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: ca.clock(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

func (ca *testCA) CreateCertificate(ctx context.Context, in *security.IstioCertificateRequest) (*security.IstioCertificateResponse, error) {
	ca.mu.Lock()
	gate := ca.gate
	ca.mu.Unlock()
	var err error
	if gate != nil {
		err = gate(ctx) // may wait: not under the lock
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	seen := call{
		clusterID: strings.Join(md.Get("ClusterID"), ","), seconds: in.GetValidityDuration(), at: ca.clock(),
		certSigner: in.GetMetadata().GetFields()["CertSigner"].GetStringValue(),
	}
	var out []string
	if err == nil {
		out, err = ca.sign(ctx, md, in, &seen)
	}
	seen.code = status.Code(err)
	ca.calls = append(ca.calls, seen)
	return &security.IstioCertificateResponse{CertChain: out}, err
}

// sign authenticates as istiod does: any failure is one opaque answer.
func (ca *testCA) sign(ctx context.Context, md metadata.MD, in *security.IstioCertificateRequest, seen *call) ([]string, error) {
	opaque := status.Error(codes.Unauthenticated, "request authenticate failure")
	id := ""
	p, _ := peer.FromContext(ctx)
	if certs := p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates; len(certs) > 0 {
		seen.credential, id = "certificate", certs[0].URIs[0].String()
	} else if token, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ","), "Bearer "); ok {
		seen.credential = "token"
		info, err := InspectToken([]byte(token), ca.clock())
		if err != nil || !slices.Contains(info.Audiences, "istio-ca") {
			return nil, opaque
		}
		id = fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", info.Namespace, info.ServiceAccount)
	}
	if id == "" {
		return nil, opaque
	}
	block, _ := pem.Decode([]byte(in.GetCsr()))
	if block == nil {
		return nil, status.Error(codes.InvalidArgument, "no CSR")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, status.Error(codes.InvalidArgument, "bad CSR")
	}
	leaf := issue(ca.t, workloadTemplate(id, ca.clock(), ca.life), csr.PublicKey, ca.signer, nil)
	chain := []string{string(encodeCertificates([]*x509.Certificate{leaf}))}
	if ca.signer != ca.root {
		chain = append(chain, ca.signer.pem())
	}
	if ca.extra != nil {
		chain = append(chain, ca.extra.pem())
	}
	chain = append(chain, ca.root.pem())
	if ca.answer != nil {
		return ca.answer(csr, chain)
	}
	return chain, nil
}

// A jwt is the claims of a test token.
type jwt struct {
	audience       any
	namespace, who string
	expires        time.Time
	subject        string // of a token that is no service account's
}

// token makes an unsigned JWT for testID; change may spoil it.
func token(expires time.Time, change func(*jwt)) string {
	c := jwt{audience: []string{"istio-ca"}, namespace: "forum-services", who: "forum-sa", expires: expires}
	if change != nil {
		change(&c)
	}
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	if c.subject != "" {
		return part(map[string]any{"alg": "RS256"}) + "." + part(map[string]any{
			"aud": c.audience, "exp": c.expires.Unix(), "iss": "https://accounts.google.com", "sub": c.subject,
		}) + ".c2lnbmF0dXJl"
	}
	claims := map[string]any{
		"aud": c.audience, "iss": "https://kubernetes.default.svc",
		"sub":           "system:serviceaccount:" + c.namespace + ":" + c.who,
		"kubernetes.io": map[string]any{"namespace": c.namespace, "serviceaccount": map[string]any{"name": c.who}},
	}
	if !c.expires.IsZero() {
		claims["exp"] = c.expires.Unix()
	}
	return part(map[string]any{"alg": "RS256"}) + "." + part(claims) + ".c2lnbmF0dXJl"
}

// A machineDirs is the part of a VM's file system that this package works on.
type machineDirs struct{ root, token, rootCert, state, output string }

// newMachine lays out a VM with ca's root in /etc/certs and no token.
func newMachine(t testing.TB, ca *testCA) machineDirs {
	t.Helper()
	dir := t.TempDir()
	m := machineDirs{
		root: dir, token: filepath.Join(dir, "var/run/secrets/tokens/istio-token"), rootCert: filepath.Join(dir, "etc/certs/root-cert.pem"),
		state: filepath.Join(dir, "var/lib/wingman"), output: filepath.Join(dir, "etc/certs"),
	}
	putFile(t, m.rootCert, ca.root.pem())
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(m.rootCert, old, old); err != nil {
		t.Fatal(err)
	}
	return m
}

// config is what bootstrap would hand over for m.
func (m machineDirs) config(ca *testCA) Config {
	return Config{
		CAAddress: ca.addr, ServerName: testServer, SPIFFEID: testID, ClusterID: "Kubernetes", Key: KeyOptions{Algorithm: "ECDSA"},
		TokenFile: m.token, RootFile: m.rootCert, StateDir: m.state, OutputDir: m.output,
	}
}

// putFile writes a file as a careful program does: whole, by rename.
func putFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".tmp", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}
