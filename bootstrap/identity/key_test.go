package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
)

func TestKeysOfEveryKindComeBackFromPEMAndMakeACSR(t *testing.T) {
	tests := []struct {
		name    string
		options KeyOptions
		header  string
		bits    int
	}{
		{"the zero value is Istio's default", KeyOptions{}, "RSA PRIVATE KEY", 2048},
		{"RSA of a chosen size", KeyOptions{Algorithm: "RSA", RSABits: 3072}, "RSA PRIVATE KEY", 3072},
		{"RSA in PKCS#8", KeyOptions{PKCS8: true}, "PRIVATE KEY", 2048},
		{"ECDSA is P-256 when not told", KeyOptions{Algorithm: "ECDSA"}, "EC PRIVATE KEY", 256},
		{"ECDSA P-384", KeyOptions{Algorithm: "ECDSA", Curve: "P384"}, "EC PRIVATE KEY", 384},
		{"ECDSA in PKCS#8", KeyOptions{Algorithm: "ECDSA", Curve: "P256", PKCS8: true}, "PRIVATE KEY", 256},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.options.validate(); err != nil {
				t.Fatal(err)
			}
			key, err := tt.options.generate()
			if err != nil {
				t.Fatal(err)
			}
			if got := bits(key); got != tt.bits {
				t.Errorf("%d bits, want %d", got, tt.bits)
			}
			text, err := tt.options.encode(key)
			if err != nil {
				t.Fatal(err)
			}
			if block, _ := pem.Decode(text); block == nil || block.Type != tt.header {
				t.Errorf("PEM block %v, want %s", block, tt.header)
			}
			back, err := parseKey(text)
			if err != nil || !back.(interface{ Equal(crypto.PrivateKey) bool }).Equal(key) {
				t.Errorf("parse gave another key: %v", err)
			}
			checkCSR(t, key)
		})
	}
}

func bits(key crypto.Signer) int {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return k.N.BitLen()
	case *ecdsa.PrivateKey:
		return k.Curve.Params().BitSize
	}
	return 0
}

// checkCSR holds a CSR against what istiod expects: one URI SAN, no subject, signed by the key.
func checkCSR(t *testing.T, key crypto.Signer) {
	t.Helper()
	text, err := newCSR(key, testID)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if block.Type != "CERTIFICATE REQUEST" || csr.CheckSignature() != nil {
		t.Errorf("block %q, signature %v", block.Type, csr.CheckSignature())
	}
	if csr.Subject.String() != "" || len(csr.URIs) != 1 || csr.URIs[0].String() != testID || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) != 0 {
		t.Errorf("subject %q, URIs %v, DNS %v: want only %s", csr.Subject, csr.URIs, csr.DNSNames, testID)
	}
}

func TestKeyOptionsAreRefusedWithASentence(t *testing.T) {
	for _, tt := range []struct {
		options KeyOptions
		want    string
	}{
		{KeyOptions{Algorithm: "DSA"}, `key algorithm "DSA": expected RSA or ECDSA`},
		{KeyOptions{RSABits: 1024}, "RSA key size 1024: expected 2048 to 8192 bits"},
		{KeyOptions{RSABits: 1 << 20}, "RSA key size 1048576: expected 2048 to 8192 bits"},
		{KeyOptions{Algorithm: "ECDSA", Curve: "P521"}, `curve "P521": expected P256 or P384`},
	} {
		if err := tt.options.validate(); err == nil || err.Error() != tt.want {
			t.Errorf("%+v: got %v, want %q", tt.options, err, tt.want)
		}
	}
}

func TestDamagedKeysAreRefusedWithoutQuotingThem(t *testing.T) {
	good, err := KeyOptions{}.encode(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"an empty file", "", "no PEM block, expected a private key"},
		{"a file cut short", string(good[:len(good)/2]), "no PEM block, expected a private key"},
		{"a certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", `PEM block "CERTIFICATE", expected a private key`},
		{"bytes changed", strings.Replace(string(good), "M", "A", 1), "damaged EC PRIVATE KEY"},
		{"nothing inside", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", "damaged PRIVATE KEY"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parseKey([]byte(tt.text)); err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
