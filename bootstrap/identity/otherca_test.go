package identity

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// TestACAThatIsNotIstiod is istio-csr's kind: the same call at another host, by another name; an intermediate signs, the chain ends in a root that
// istiod's certificate has nothing to do with, a signer is named, and only tokens are taken.
func TestACAThatIsNotIstiod(t *testing.T) {
	const host = "cert-manager-istio-csr.cert-manager.svc"
	inLab(t, func(t *testing.T, l *lab) {
		between := newAuthority(t, "between", time.Now(), 1000*time.Hour, l.ca.root)
		deeper := newAuthority(t, "deeper", time.Now(), 1000*time.Hour, between)
		l.ca.with(func() {
			l.ca.signer = deeper
			l.ca.answer = nil
			l.ca.gate = func(ctx context.Context) error {
				p, _ := peer.FromContext(ctx)
				if len(p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates) > 0 {
					return status.Error(codes.Unauthenticated, "request authenticate failure")
				}
				return nil
			}
		})
		l.ca.serve(host, 365*24*time.Hour)
		l.ca.with(func() { l.ca.extra = between })
		l.cfg.CAAddress, l.cfg.ServerName, l.cfg.CertSigner = host+":443", "", "clusterissuers.cert-manager.io/mesh"
		putFile(t, l.vm.token, token(time.Now().Add(100*time.Hour), nil))
		l.start()
		l.mustBe(Valid)
		first := l.m.Current()
		if chain := first.TLS().Certificate; len(chain) != 3 {
			t.Errorf("%d certificates in the chain, want the leaf and two intermediates", len(chain))
		}
		if call := l.ca.seen()[0]; call.certSigner != "clusterissuers.cert-manager.io/mesh" {
			t.Errorf("the CA was told of signer %q", call.certSigner)
		}
		// Renewal: the certificate is not taken there, the token is.
		l.pass(12*time.Hour + time.Minute)
		if s := l.m.State(); s.Serial == first.Serial || s.Credential != "token" || s.LastError != "" {
			t.Errorf("in use %s (first %s) by %q, last error %q", s.Serial, first.Serial, s.Credential, s.LastError)
		}
		// istiod, which is not the CA, is dialled under its own name.
		if err := verifyPeer(l.m.ClientTLSFor(testServer), serverBy(t, l.ca.root)); err != nil {
			t.Error(err)
		}
		if err := verifyPeer(l.m.ClientTLS(), serverBy(t, l.ca.root)); err == nil {
			t.Error("istiod's certificate passes for the CA's")
		}
	})
}
