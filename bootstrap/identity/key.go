package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
)

// KeyOptions choose the private key. The zero value is Istio's default, RSA with 2048 bits in PKCS#1.
type KeyOptions struct {
	Algorithm string // "RSA" (or "") or "ECDSA". Istio: ECC_SIGNATURE_ALGORITHM
	RSABits   int    // 2048 to 8192; zero means 2048. Istio: WORKLOAD_RSA_KEY_SIZE
	Curve     string // "P256" (or "") or "P384". Istio: ECC_CURVE
	PKCS8     bool   // PKCS#8 PEM instead of PKCS#1 (RSA) or SEC 1 (ECDSA). Istio: PKCS8_KEY
}

func (o KeyOptions) validate() error {
	switch o.Algorithm {
	case "", "RSA":
		if o.RSABits != 0 && (o.RSABits < 2048 || o.RSABits > 8192) {
			return fmt.Errorf("RSA key size %d: expected 2048 to 8192 bits", o.RSABits)
		}
	case "ECDSA":
		if o.Curve != "" && o.Curve != "P256" && o.Curve != "P384" {
			return fmt.Errorf("curve %q: expected P256 or P384", o.Curve)
		}
	default:
		return fmt.Errorf("key algorithm %q: expected RSA or ECDSA", o.Algorithm)
	}
	return nil
}

func (o KeyOptions) generate() (crypto.Signer, error) {
	switch {
	case o.Algorithm == "ECDSA" && o.Curve == "P384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case o.Algorithm == "ECDSA":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case o.RSABits == 0:
		return rsa.GenerateKey(rand.Reader, 2048)
	default:
		return rsa.GenerateKey(rand.Reader, o.RSABits)
	}
}

// encode writes key as PEM in the form that the options ask for.
func (o KeyOptions) encode(key crypto.Signer) ([]byte, error) {
	block := &pem.Block{}
	var err error
	switch k := key.(type) {
	case *rsa.PrivateKey:
		block.Type, block.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(k)
	case *ecdsa.PrivateKey:
		block.Type = "EC PRIVATE KEY"
		block.Bytes, err = x509.MarshalECPrivateKey(k)
	}
	if o.PKCS8 {
		block.Type = "PRIVATE KEY"
		block.Bytes, err = x509.MarshalPKCS8PrivateKey(key)
	}
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(block), nil
}

// parseKey reads the first private key of a PEM file in any of the three forms. Errors never hold bytes of it.
func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block, expected a private key")
	}
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %.40q, expected a private key", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("damaged %s", block.Type)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("private key of type %T, expected RSA or ECDSA", key)
}

// newCSR makes the PEM certificate request for id: one URI SAN and no subject (Istio: security/pkg/pki/util/generate_csr.go).
func newCSR(key crypto.Signer, id string) ([]byte, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("SPIFFE id: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{}, URIs: []*url.URL{uri},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("create certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}
