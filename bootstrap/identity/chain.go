package identity

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// An answer is what the CA gave, checked: chain is the leaf and what lies between it and the roots, roots are the CA's own.
type answer struct {
	chain []*x509.Certificate
	roots []*x509.Certificate
}

// checkAnswer reads and checks a CertificateResponse's cert_chain: PEM elements, leaf first, root last (istio.io/api
// security/v1alpha1). Each element may hold several certificates: istiod's last one does while its root is rotated. The leaf must
// come first; the order of the intermediates does not matter, the path is found by verification and stored in that order.
func checkAnswer(elements []string, key crypto.Signer, id string, trusted anchors, now time.Time) (answer, error) {
	if len(elements) < 2 {
		return answer{}, fmt.Errorf("the CA's answer holds %d certificate(s): expected at least two, the leaf first and its root last", len(elements))
	}
	var certs, last []*x509.Certificate
	for i, text := range elements {
		part, err := parseCertificates([]byte(text))
		if err != nil {
			return answer{}, fmt.Errorf("element %d of the CA's answer: %w", i+1, err)
		}
		certs, last = append(certs, part...), part
	}
	var ans answer
	for _, c := range certs {
		if selfSigned(c) {
			ans.roots = append(ans.roots, c)
		} else {
			ans.chain = append(ans.chain, c)
		}
	}
	if len(ans.roots) == 0 { // a CA whose anchor is itself an intermediate
		ans.roots = slices.DeleteFunc(last, func(c *x509.Certificate) bool { return !c.IsCA })
	}
	if !sameKey(certs[0], key) {
		for i, c := range certs[1:] {
			if sameKey(c, key) {
				return answer{}, fmt.Errorf("the CA's answer is in the wrong order: the certificate for our key is number %d, expected it first", i+2)
			}
		}
		return answer{}, fmt.Errorf("the CA's answer is for another key than the one in our request: its leaf is %s", subject(certs[0]))
	}
	anchored := trusted.withAnswer(ans.roots, time.Time{})
	chain, err := checkIssued(ans.chain, key, id, anchored, now)
	if err != nil {
		return answer{}, fmt.Errorf("the CA's answer: %w", err)
	}
	ans.chain = chain
	return ans, nil
}

// checkIssued checks a chain, leaf first, against the key, the identity, the roots and the dates, and returns it in the order of its
// path to a root. A leaf that is not valid yet is accepted: its dates are the CA's clock, by which peers check it (see clockBehind).
func checkIssued(chain []*x509.Certificate, key crypto.Signer, id string, trusted anchors, now time.Time) ([]*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("it holds no leaf certificate")
	}
	leaf := chain[0]
	if !sameKey(leaf, key) {
		return nil, errors.New("the certificate does not belong to the private key")
	}
	if ids := uriNames(leaf); len(ids) != 1 || ids[0] != id {
		return nil, fmt.Errorf("the certificate is for %s, expected %s: namespace, service account and trust domain must be those of the token",
			quoteAll(ids), id)
	}
	if !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate expired %s ago: either it is old or this machine's clock is ahead", span(now.Sub(leaf.NotAfter)))
	}
	if !leaf.NotBefore.Before(leaf.NotAfter) {
		return nil, errors.New("the certificate's dates contradict each other: it ends before it begins")
	}
	at := now
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	paths, err := leaf.Verify(x509.VerifyOptions{
		Roots: trusted.pool(), Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("the certificate, issued by %.120q, does not chain to a root we know: %w", leaf.Issuer.String(), err)
	}
	return inOrder(chain, paths[0]), nil
}

// inOrder is chain sorted along path; what is not on it (a cross-signed intermediate that a peer with another root needs) follows.
func inOrder(chain, path []*x509.Certificate) []*x509.Certificate {
	var sorted []*x509.Certificate
	for _, c := range slices.Concat(path, chain) {
		if slices.ContainsFunc(chain, c.Equal) && !slices.ContainsFunc(sorted, c.Equal) {
			sorted = append(sorted, c)
		}
	}
	return sorted
}

func sameKey(c *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}

func uriNames(c *x509.Certificate) []string {
	var names []string
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	return names
}
