package identity

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxPEMSize bounds a certificate file; a bundle of hundreds of roots fits.
const maxPEMSize = 1 << 20

// CheckRoots says what is wrong with a root file, nil when it holds at least one CA certificate that is valid at now.
func CheckRoots(data []byte, now time.Time) error {
	certs, err := parseRoots(data)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(certs, func(c *x509.Certificate) bool { return now.Before(c.NotAfter) }) {
		last := slices.MaxFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		return fmt.Errorf("every root certificate in it has expired, the last one %s ago", span(now.Sub(last.NotAfter)))
	}
	return nil
}

// parseRoots reads a PEM bundle of CA certificates. One that is damaged, cut short or mixed with others is refused whole: a half
// written file must not become half a trust bundle.
func parseRoots(data []byte) ([]*x509.Certificate, error) {
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	for i, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("certificate %d (%s) is not a CA's: expected root certificates only", i+1, subject(c))
		}
	}
	return certs, nil
}

// parseCertificates reads every certificate of a PEM file, at least one. Text between blocks is allowed, as openssl writes it.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("it is empty, expected PEM certificates")
	case len(data) > maxPEMSize:
		return nil, fmt.Errorf("it is larger than %d kB, expected a few PEM certificates", maxPEMSize>>10)
	}
	var certs []*x509.Certificate
	for len(data) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		// Decode skips what it cannot read. A BEGIN among what it skipped is a block that was damaged.
		if skipped := data[:len(data)-len(rest)]; bytes.Count(skipped, []byte("-----BEGIN")) != 1 {
			return nil, fmt.Errorf("a PEM block after certificate %d is damaged", len(certs))
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a PEM block %.40q, expected CERTIFICATE only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d is damaged: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("the PEM block after certificate %d is cut short or damaged", len(certs))
	}
	if len(certs) == 0 {
		return nil, errors.New("it holds no PEM block, expected certificates")
	}
	return certs, nil
}

// Where an anchor comes from.
const (
	fromFile = "file" // the operator's root file
	fromCA   = "ca"   // an answer of the CA
	fromMesh = "mesh" // the mesh's trust bundle, that istiod pushes (PCDS)
	// Bundles of a SPIFFE Workload API: of our own trust domain, and of those that it is federated with. The latter vouch for peers, not for istiod.
	fromSPIFFE    = "spiffe"
	fromFederated = "federated"
)

// An anchor is one trusted root.
type anchor struct {
	cert   *x509.Certificate
	source string    // one of the above
	until  time.Time // zero: as long as its source lists it. Else when peers cannot hold certificates below it any more
}

// sources are all of them, in the order in which their roots are written.
var sources = []string{fromFile, fromCA, fromMesh, fromSPIFFE, fromFederated}

// An anchors is the trust bundle, in the order of sources.
type anchors []anchor

// withFile replaces the file's roots.
func (a anchors) withFile(certs []*x509.Certificate) anchors { return a.withSource(fromFile, certs) }

// withMesh replaces the mesh's roots: who takes one out of the mesh's settings does not want it trusted any more.
func (a anchors) withMesh(certs []*x509.Certificate) anchors { return a.withSource(fromMesh, certs) }

// withSource replaces the roots of one source.
func (a anchors) withSource(source string, certs []*x509.Certificate) anchors {
	var list anchors
	for _, c := range certs {
		list = append(list, anchor{cert: c, source: source})
	}
	return a.replace(source, list)
}

// replace is a with list in the place of what it has of source.
func (a anchors) replace(source string, list anchors) anchors {
	var next anchors
	for _, s := range sources {
		if s == source {
			next = append(next, list...)
		} else {
			next = append(next, a.of(s)...)
		}
	}
	return next
}

// retire has the roots of a source end at a date, if not earlier.
func (a anchors) retire(source string, at time.Time) anchors {
	list := a.of(source)
	for i := range list {
		if list[i].until.IsZero() || at.Before(list[i].until) {
			list[i].until = at
		}
	}
	return a.replace(source, list)
}

// withAnswer takes in the roots of a CA's answer. A root that the CA does not name any more stays until retire: other workloads
// may hold certificates below it for as long as a certificate lives.
func (a anchors) withAnswer(certs []*x509.Certificate, retire time.Time) anchors {
	var next anchors
	for _, c := range certs {
		next = append(next, anchor{cert: c, source: fromCA})
	}
	for _, old := range a.of(fromCA) {
		if slices.ContainsFunc(certs, old.cert.Equal) {
			continue
		}
		if old.until.IsZero() {
			old.until = retire
		}
		next = append(next, old)
	}
	return a.replace(fromCA, next)
}

// pruned is a without what has expired or retired at now, and without doubles. Expired roots stay when nothing else is left: they
// trust nobody, but the error then says "expired" and not "no roots".
func (a anchors) pruned(now time.Time) anchors {
	var next, expired anchors
	for _, x := range a {
		switch {
		case !x.until.IsZero() && !now.Before(x.until):
		case next.has(x):
		case !now.Before(x.cert.NotAfter):
			expired = append(expired, x)
		default:
			next = append(next, x)
		}
	}
	if len(next) == 0 {
		return expired
	}
	return next
}

// has reports whether x's root is trusted already on the word of the same source.
func (a anchors) has(x anchor) bool {
	return slices.ContainsFunc(a, func(y anchor) bool { return y.source == x.source && y.cert.Equal(x.cert) })
}

func (a anchors) of(source string) anchors {
	return slices.DeleteFunc(slices.Clone(a), func(x anchor) bool { return x.source != source })
}

func (a anchors) without(source string) anchors {
	return slices.DeleteFunc(slices.Clone(a), func(x anchor) bool { return x.source == source })
}

func (a anchors) certs() []*x509.Certificate {
	var certs []*x509.Certificate
	for _, x := range a {
		if !slices.ContainsFunc(certs, x.cert.Equal) {
			certs = append(certs, x.cert)
		}
	}
	return certs
}

func (a anchors) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, x := range a {
		pool.AddCert(x.cert)
	}
	return pool
}

func (a anchors) equal(b anchors) bool {
	return slices.EqualFunc(a, b, func(x, y anchor) bool {
		return x.source == y.source && x.until.Equal(y.until) && x.cert.Equal(y.cert)
	})
}

// selfSigned reports whether c is a root in the strict sense.
func selfSigned(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// subject names a certificate for people: its subject, or its serial when that is empty.
func subject(c *x509.Certificate) string {
	if name := c.Subject.String(); name != "" {
		return fmt.Sprintf("%.120q", name)
	}
	return "serial " + serialOf(c)
}

// serialOf is a certificate's serial as istioctl and openssl print it: two digits a byte.
func serialOf(c *x509.Certificate) string {
	return cmp.Or(hex.EncodeToString(c.SerialNumber.Bytes()), "00")
}
