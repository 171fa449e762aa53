package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"time"
)

// A Certificate is one identity with its private key, and the roots that were trusted when it was published. It never changes; a
// renewal, and a change of roots, publish another one. It prints as serial, id and dates: never its key.
type Certificate struct {
	SPIFFEID            string
	Serial              string // hexadecimal, as openssl prints it
	NotBefore, NotAfter time.Time
	ReceivedAt          time.Time // when the CA gave it; NotBefore is earlier, istiod backdates it

	pair     hidden[*pair]
	chain    []*x509.Certificate // leaf first, no self-signed root
	rootsPEM []byte
}

// A pair is the secret half of a Certificate.
type pair struct {
	keyPEM []byte
	tls    tls.Certificate
}

// newCertificate puts together what checkIssued has checked.
func newCertificate(id string, key crypto.Signer, keyPEM []byte, chain []*x509.Certificate, received time.Time) *Certificate {
	leaf := chain[0]
	var raw [][]byte
	for _, cert := range chain {
		raw = append(raw, cert.Raw)
	}
	return &Certificate{
		SPIFFEID: id, Serial: serialOf(leaf),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, ReceivedAt: received,
		chain: chain, pair: hide(&pair{keyPEM: keyPEM, tls: tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: raw}}),
	}
}

// lifeAt is the life of c to count renewal from, on a clock that says now.
//
// When the clock was behind the CA's at the receipt, peers see the certificate end earlier than we do: the end is then moved by as
// much, unless the clock has been set since and that moment is over. A time of receipt that is unknown or makes no sense
// leaves the certificate's own dates.
func (c *Certificate) lifeAt(now time.Time) life {
	own := life{received: c.NotBefore, notAfter: c.NotAfter}
	if c.ReceivedAt.IsZero() || !c.ReceivedAt.Before(c.NotAfter) {
		return own
	}
	l := life{received: c.ReceivedAt, notAfter: c.NotAfter.Add(-clockBehind(c.chain[0], c.ReceivedAt))}
	if !l.received.Before(l.notAfter) || l.notAfter.Before(c.NotAfter) && !now.Before(l.notAfter) {
		return own
	}
	return l
}

// withRoots is c with another trust bundle beside it.
func (c *Certificate) withRoots(rootsPEM []byte) *Certificate {
	next := *c
	next.rootsPEM = rootsPEM
	return &next
}

// TLS is the chain with its key, to be shared, not changed.
func (c *Certificate) TLS() *tls.Certificate { return &c.pair.reveal().tls }

// KeyPEM is the private key, in the form KeyOptions asked for. It is a secret: Envoy's SDS is the one place it goes to.
func (c *Certificate) KeyPEM() []byte { return c.pair.reveal().keyPEM }

// ChainPEM is the leaf and its intermediates, leaf first, without self-signed roots.
func (c *Certificate) ChainPEM() []byte { return encodeCertificates(c.chain) }

// RootsPEM is the trust bundle: what peers' certificates and istiod's chain to.
func (c *Certificate) RootsPEM() []byte { return c.rootsPEM }

// usable reports whether c may be shown to a peer at now. A certificate that is not valid yet may: its NotBefore is the CA's
// clock, and so is the one that peers check it by; ours is behind.
func (c *Certificate) usable(now time.Time) bool { return c != nil && now.Before(c.NotAfter) }

func (c *Certificate) String() string {
	return fmt.Sprintf("certificate %s of %s until %s", c.Serial, c.SPIFFEID, c.NotAfter.UTC().Format(time.RFC3339))
}

func (c *Certificate) GoString() string { return c.String() }

// LogValue keeps the key out of logs.
func (c *Certificate) LogValue() slog.Value {
	return slog.GroupValue(slog.String("serial", c.Serial), slog.String("spiffe_id", c.SPIFFEID), slog.Time("not_after", c.NotAfter))
}

func encodeCertificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
