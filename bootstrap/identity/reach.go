package identity

import (
	"crypto/tls"
	"crypto/x509"
	"time"
)

// ServerTLS is the way to a server of the control plane for who only wants to know whether it is the right one: without a certificate of its own, trusting
// the roots of a root file (PEM). rootFile and namespace are for the sentence that says what is wrong.
func ServerTLS(serverName string, roots []byte, rootFile, namespace string) (*tls.Config, error) {
	certs, err := parseRoots(roots)
	if err != nil {
		return nil, err
	}
	trusted := anchors{}.withFile(certs)
	return clientTLS(serverName, func() *tls.Certificate { return nil }, func(peers []*x509.Certificate) error {
		return verifyServer(peers, serverName, trusted, rootFile, namespace, time.Now())
	}), nil
}
