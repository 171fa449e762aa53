package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// verifyServer checks istiod's certificate as crypto/tls would, and says in one sentence what is wrong and what mends it.
// rootFile and namespace are for that sentence only.
func verifyServer(peers []*x509.Certificate, serverName string, trusted anchors, rootFile, namespace string, now time.Time) error {
	if len(peers) == 0 {
		return errors.New("istiod showed no certificate")
	}
	leaf := peers[0]
	between := x509.NewCertPool()
	for _, c := range peers[1:] {
		between.AddCert(c)
	}
	fetch := fmt.Sprintf("kubectl get configmap istio-ca-root-cert -n %s -o jsonpath='{.data.root-cert\\.pem}', put at %s", namespace, rootFile)
	if len(trusted) == 0 {
		return fmt.Errorf("no root certificate to check istiod's certificate with: %s", fetch)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: trusted.pool(), Intermediates: between, CurrentTime: now, DNSName: serverName})
	var wrongName x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrongName):
		return fmt.Errorf("istiod's certificate is for %s, not for %q: set ISTIOD_SAN to the name that istiod has", quoteAll(serverNames(leaf)), serverName)
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the clock is at least %s behind istiod, whose certificate begins at %s: set the clock",
			span(leaf.NotBefore.Sub(now)), leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(leaf.NotAfter):
		return fmt.Errorf("istiod's certificate expired %s ago: either istiod lost its own renewal or this machine's clock is ahead",
			span(now.Sub(leaf.NotAfter)))
	case allExpired(trusted, now):
		return fmt.Errorf("root-cert.pem has expired: %s", fetch)
	case errors.As(err, &unknown):
		return fmt.Errorf("root-cert.pem does not match istiod's certificate: that is issued by %.120q, we trust %s: %s",
			leaf.Issuer.String(), names(trusted), fetch)
	}
	return fmt.Errorf("istiod's certificate: %w", err)
}

// clientTLS is the way to istiod: certificate gives what to show (nil: nothing), verify checks what istiod shows.
func clientTLS(serverName string, certificate func() *tls.Certificate, verify func([]*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: serverName,
		NextProtos: []string{"h2"},
		// Roots change while the program runs, and crypto/tls would read RootCAs only once: VerifyConnection checks in its stead,
		// on every handshake, resumed ones too.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return verify(cs.PeerCertificates) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert := certificate(); cert != nil {
				return cert, nil
			}
			return &tls.Certificate{}, nil // crypto/tls: "no certificate", not an error
		},
	}
}

func allExpired(a anchors, now time.Time) bool {
	for _, x := range a {
		if now.Before(x.cert.NotAfter) {
			return false
		}
	}
	return true
}

func serverNames(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names[:min(len(names), 8)]
}

// names lists the roots with what tells two of the same subject apart.
func names(a anchors) string {
	var list []string
	for _, c := range a.certs() {
		list = append(list, fmt.Sprintf("%s (serial %.8s…)", subject(c), serialOf(c)))
	}
	if more := len(list) - 3; more > 0 {
		list = append(list[:3], fmt.Sprintf("%d more", more))
	}
	return strings.Join(list, ", ")
}
