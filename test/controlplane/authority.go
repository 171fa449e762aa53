package controlplane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

const (
	// clockSkew is how far NotBefore lies in the past.
	// Istio: security/pkg/pki/util/generate_cert.go, ClockSkewGracePeriod.
	clockSkew = 2 * time.Minute

	rootLife    = 10 * 365 * 24 * time.Hour
	servingLife = 365 * 24 * time.Hour
)

// keyPair is a CA certificate and its key.
type keyPair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// authority signs workload and serving certificates. It is immutable: a rotation or a lever makes a new one.
type authority struct {
	cfg     Config
	root    keyPair
	signer  keyPair             // what signs leaves: root, or the intermediate
	chain   []*x509.Certificate // certificates between leaf and root, leaf side first
	bundle  []*x509.Certificate // trusted roots, the newest first
	bridge  *x509.Certificate   // root's key certified by the root before it; nil except after an overlapping rotation
	serving *tls.Certificate
}

// newAuthority makes a root, an intermediate if cfg wants one, and a serving certificate.
func newAuthority(cfg Config) (*authority, error) {
	a := &authority{cfg: cfg}
	var err error
	// Istio: the self-signed root's only name is its trust domain as organization.
	if a.root, err = newCA(cfg, pkix.Name{Organization: []string{cfg.TrustDomain}}, nil); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	a.signer = a.root
	a.bundle = []*x509.Certificate{a.root.cert}
	if cfg.Intermediate {
		if a.signer, err = newCA(cfg, pkix.Name{Organization: []string{"Istio"}, CommonName: "Intermediate CA"}, &a.root); err != nil {
			return nil, fmt.Errorf("intermediate: %w", err)
		}
		a.chain = []*x509.Certificate{a.signer.cert}
	}
	return a, a.serve(time.Now().Add(servingLife))
}

// rotated returns an authority with a new root. With overlap the old root stays in the bundle and certifies the new
// root's key, so that a client that trusts only the old one still accepts the serving certificate.
func (a *authority) rotated(overlap bool) (*authority, error) {
	next, err := newAuthority(a.cfg)
	if err != nil || !overlap {
		return next, err
	}
	bridge := caTemplate(next.root.cert.Subject)
	if next.bridge, err = sign(bridge, a.root, next.root.key.Public()); err != nil {
		return nil, fmt.Errorf("certify the new root by the old one: %w", err)
	}
	next.bundle = append(next.bundle, a.bundle...)
	return next, next.serve(time.Now().Add(servingLife))
}

// withServingExpiry returns a with a serving certificate that ends at notAfter.
func (a *authority) withServingExpiry(notAfter time.Time) (*authority, error) {
	next := *a
	return &next, next.serve(notAfter)
}

// serve makes the serving certificate. Only for an authority that nobody else has yet.
func (a *authority) serve(notAfter time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := leafTemplate(notAfter)
	leaf.DNSNames = a.cfg.ServerNames
	cert, err := sign(leaf, a.signer, key.Public())
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	a.serving = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	for _, c := range a.chain {
		a.serving.Certificate = append(a.serving.Certificate, c.Raw)
	}
	if a.bridge != nil {
		a.serving.Certificate = append(a.serving.Certificate, a.bridge.Raw)
	}
	return nil
}

// issue signs key for one SPIFFE identity, valid until notAfter or as long as its signer, whichever is shorter.
func (a *authority) issue(id string, key crypto.PublicKey, notAfter time.Time) (*x509.Certificate, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", id, err)
	}
	if notAfter.After(a.signer.cert.NotAfter) {
		notAfter = a.signer.cert.NotAfter
	}
	leaf := leafTemplate(notAfter)
	leaf.URIs = []*url.URL{uri}
	return sign(leaf, a.signer, key)
}

// pool holds the trusted roots.
func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range a.bundle {
		pool.AddCert(c)
	}
	return pool
}

func (a *authority) bundlePEM() []byte { return encodeCerts(a.bundle...) }

// parseCSR checks a request as istiod does: PEM, parsable, signed by the key it names.
func parseCSR(text string) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("certificate signing request is not properly encoded")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("failed to parse X.509 certificate signing request: %w", err)
	}
	return csr, csr.CheckSignature()
}

// newCA makes a CA certificate: self-signed when parent is nil.
func newCA(cfg Config, subject pkix.Name, parent *keyPair) (keyPair, error) {
	var (
		pair keyPair
		err  error
	)
	if cfg.RSA {
		pair.key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		pair.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return keyPair{}, err
	}
	template := caTemplate(subject)
	by := keyPair{template, pair.key}
	if parent != nil {
		by = *parent
	}
	pair.cert, err = sign(template, by, pair.key.Public())
	return pair, err
}

func caTemplate(subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{
		Subject: subject, NotBefore: time.Now().Add(-clockSkew), NotAfter: time.Now().Add(rootLife),
		KeyUsage: x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
	}
}

// leafTemplate has the usages istiod gives every leaf, client and server alike. The subject is empty, so that
// crypto/x509 marks the alternative names critical (RFC 5280 section 4.2.1.6), as istiod's are.
func leafTemplate(notAfter time.Time) *x509.Certificate {
	return &x509.Certificate{
		NotBefore: time.Now().Add(-clockSkew), NotAfter: notAfter, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// sign gives template a random serial number of 128 bits and has by sign it.
func sign(template *x509.Certificate, by keyPair, key crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key, by.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func encodeCerts(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
