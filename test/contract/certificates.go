package contract

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func certificates(t *testing.T, cp ControlPlane) {
	own := "spiffe://" + cp.TrustDomain() + "/ns/" + namespace + "/sa/" + account

	t.Run("a token buys a certificate for its own identity, whatever the request asks for", func(t *testing.T) {
		key, req := csr(t, "spiffe://"+cp.TrustDomain()+"/ns/kube-system/sa/admin")
		before := time.Now()
		chain, err := createCertificate(t, cp, token(t, cp), req, 600)
		if err != nil {
			t.Fatal(err)
		}
		checkChain(t, cp, chain, key, own, before, 600*time.Second)
	})

	t.Run("a request without a life gets the CA's default", func(t *testing.T) {
		_, req := csr(t, own)
		chain, err := createCertificate(t, cp, token(t, cp), req, 0)
		if err != nil {
			t.Fatal(err)
		}
		if life := time.Until(parse(t, chain[0]).NotAfter); life < time.Hour {
			t.Errorf("life is %s, want the default of many hours", life)
		}
	})

	t.Run("a certificate buys the next one without a token", func(t *testing.T) {
		cert := buy(t, cp, token(t, cp), 600)
		key, req := csr(t, own)
		before := time.Now()
		chain, err := createCertificate(t, cp, credential{cert: cert}, req, 300)
		if err != nil {
			t.Fatal(err)
		}
		checkChain(t, cp, chain, key, own, before, 300*time.Second)
	})

	t.Run("an expired token beside a certificate is no obstacle", func(t *testing.T) {
		cert := buy(t, cp, token(t, cp), 600)
		expired := mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: account, Audience: caAudience, Expired: true})
		_, req := csr(t, own)
		if _, err := createCertificate(t, cp, credential{token: expired, cert: cert}, req, 300); err != nil {
			t.Errorf("got %v, want a certificate", err)
		}
	})

	t.Run("the certificate's identity wins over the token's", func(t *testing.T) {
		cert := buy(t, cp, token(t, cp), 600)
		other := mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: "other-sa", Audience: caAudience})
		key, req := csr(t, own)
		before := time.Now()
		chain, err := createCertificate(t, cp, credential{token: other, cert: cert}, req, 300)
		if err != nil {
			t.Fatal(err)
		}
		checkChain(t, cp, chain, key, own, before, 300*time.Second)
	})

	t.Run("every refused caller hears the same", func(t *testing.T) {
		good := token(t, cp).token
		for _, c := range []struct{ name, token string }{
			{"no token", ""},
			{"an expired token", mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: account, Audience: caAudience, Expired: true})},
			{"a token for another audience", mint(t, cp, TokenRequest{Namespace: namespace, ServiceAccount: account, Audience: "vault"})},
			{"a token that is no JWT", "not-a-token"},
			{"a token with a broken signature", good[:strings.LastIndex(good, ".")+1] + strings.Repeat("A", 86)},
		} {
			t.Run(c.name, func(t *testing.T) {
				_, req := csr(t, own)
				_, err := createCertificate(t, cp, credential{token: c.token}, req, 300)
				if got := status.Convert(err); got.Code() != codes.Unauthenticated || got.Message() != "request authenticate failure" {
					t.Errorf("got %v: %q, want Unauthenticated: \"request authenticate failure\"", got.Code(), got.Message())
				}
			})
		}
	})

	t.Run("an expired certificate ends the handshake, a good token notwithstanding", func(t *testing.T) {
		cert := buy(t, cp, token(t, cp), 1)
		expiry := time.NewTimer(time.Until(cert.Leaf.NotAfter) + time.Millisecond)
		defer expiry.Stop()
		<-expiry.C
		_, req := csr(t, own)
		_, err := createCertificate(t, cp, credential{token: token(t, cp).token, cert: cert}, req, 300)
		if got := status.Code(err); got != codes.Unavailable {
			t.Errorf("got %v, want a broken connection: Unavailable", err)
		}
	})

	t.Run("a bad request is InvalidArgument", func(t *testing.T) {
		_, good := csr(t, own)
		for _, c := range []struct {
			name, csr string
			seconds   int64
		}{
			{"a CSR that is no PEM", "garbage", 300},
			{"a CSR that is no request", "-----BEGIN CERTIFICATE REQUEST-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE REQUEST-----\n", 300},
			{"a life of a hundred years", good, 100 * 365 * 24 * 3600},
		} {
			t.Run(c.name, func(t *testing.T) {
				if _, err := createCertificate(t, cp, token(t, cp), c.csr, c.seconds); status.Code(err) != codes.InvalidArgument {
					t.Errorf("got %v, want InvalidArgument", err)
				}
			})
		}
	})
}

// buy returns a certificate of the tests' account.
func buy(t *testing.T, cp ControlPlane, c credential, seconds int64) *tls.Certificate {
	t.Helper()
	key, req := csr(t, "spiffe://"+cp.TrustDomain()+"/ns/"+namespace+"/sa/"+account)
	chain, err := createCertificate(t, cp, c, req, seconds)
	if err != nil {
		t.Fatalf("buy a certificate: %v", err)
	}
	cert := &tls.Certificate{PrivateKey: key, Leaf: parse(t, chain[0])}
	for _, c := range chain[:len(chain)-1] {
		cert.Certificate = append(cert.Certificate, parse(t, c).Raw)
	}
	return cert
}

// checkChain checks a reply of the CA: leaf first, roots last, the caller's identity, our key, the life asked for and
// the two minutes before it, the usages of client and server.
func checkChain(t *testing.T, cp ControlPlane, chain []string, key *ecdsa.PrivateKey, id string, before time.Time, life time.Duration) {
	t.Helper()
	if len(chain) < 2 {
		t.Fatalf("chain has %d elements, want the leaf first and the root last", len(chain))
	}
	leaf := parse(t, chain[0])
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		t.Errorf("URI names are %v, want %s alone", leaf.URIs, id)
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || leaf.Subject.String() != "" {
		t.Errorf("certificate has names beside the URI: %v %v %q", leaf.DNSNames, leaf.IPAddresses, leaf.Subject)
	}
	const slack = 5 * time.Second // certificates count whole seconds, and the call took some
	if d := leaf.NotBefore.Sub(before.Add(-2 * time.Minute)).Abs(); d > slack {
		t.Errorf("NotBefore is %s, want two minutes before %s", leaf.NotBefore, before)
	}
	if d := leaf.NotAfter.Sub(before.Add(life)).Abs(); d > slack {
		t.Errorf("NotAfter is %s, want %s after %s", leaf.NotAfter, life, before)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if !slices.Contains(leaf.ExtKeyUsage, usage) {
			t.Errorf("extended usages are %v, want client and server", leaf.ExtKeyUsage)
		}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(chain[len(chain)-1])) {
		t.Fatal("the last element is no PEM certificate")
	}
	for _, c := range chain[1 : len(chain)-1] {
		between.AddCert(parse(t, c))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("the leaf does not chain to the last element: %v", err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(cp.RootPEM())
	if !trusted.Equal(roots) {
		t.Error("the last element is not what the control plane says is its root")
	}
}

// parse returns the one certificate in a PEM text.
func parse(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode([]byte(text))
	if block == nil || strings.TrimSpace(string(rest)) != "" {
		t.Fatalf("want one PEM block, got %q", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
