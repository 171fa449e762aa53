package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"wingman/test/mesh"
)

// authority is a CA of an operator's own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes a CA: by another one, or by itself where by is nil.
func newAuthority(t *testing.T, name string, by *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certify(t, name, key, by)
}

func certify(t *testing.T, name string, key *ecdsa.PrivateKey, by *authority) *authority {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(20, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

// crossSigned is a, whose certificate is by another CA: who trusts that one trusts what a has signed.
func (a *authority) crossSigned(t *testing.T, by *authority) *authority {
	t.Helper()
	return certify(t, a.cert.Subject.CommonName, a.key, by)
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// cacerts are the files with which istiod signs as the intermediate CA issuer, shows what is above it in the chain, and tells the mesh to trust roots.
func cacerts(t *testing.T, issuer *authority, above []*authority, roots ...*authority) mesh.CACerts {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	chain, trusted := issuer.pem(), ""
	for _, a := range above {
		chain += a.pem()
	}
	for _, a := range roots {
		trusted += a.pem()
	}
	return mesh.CACerts{
		"ca-cert.pem": issuer.pem(), "ca-key.pem": string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		"cert-chain.pem": chain, "root-cert.pem": trusted,
	}
}
