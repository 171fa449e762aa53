package identity

import (
	"crypto/x509"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheMeshsTrustBundle(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		l.mustTrust("cluster.local")
		l.told()
		take := func(pems ...string) {
			t.Helper()
			if err := l.m.TakeBundle(pems); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		year := 365 * 24 * time.Hour
		east, west, old := newAuthority(t, "east", time.Now(), year, nil), newAuthority(t, "west", time.Now(), 30*time.Hour, nil), newAuthority(t, "old", time.Now().Add(-2*year), year, nil)

		take(l.ca.root.pem(), east.pem()+west.pem(), old.pem())
		l.mustTrust("cluster.local east west") // what has expired is no root
		if told := l.told(); len(told) != 1 || told[0] != l.m.Current() || organizations(must(parseRoots(told[0].RootsPEM()))) != "cluster.local east west" {
			t.Errorf("told of %v", told)
		}
		if config := l.m.ClientTLS(); verifyPeer(config, serverBy(t, east)) != nil || verifyPeer(config, serverBy(t, old)) == nil {
			t.Error("dialling does not follow the bundle")
		}
		take(l.ca.root.pem(), east.pem()+west.pem(), old.pem())
		if told := l.told(); len(told) != 0 {
			t.Errorf("the same bundle again is news: %v", told)
		}

		// What cannot be used changes nothing, nor does a bundle with nothing in it.
		for _, bad := range [][]string{{l.ca.root.pem(), "garbage"}, {string(testCertificate(t, time.Now(), time.Hour).ChainPEM())}, {""}} {
			if err := l.m.TakeBundle(bad); err == nil || !strings.HasPrefix(err.Error(), "trust bundle: anchor ") {
				t.Errorf("bundle %.20q: %v", bad, err)
			}
		}
		take()
		l.mustTrust("cluster.local east west")

		// It outlives a restart, and a renewal whose answer knows nothing of it.
		l.stop()
		l.down.Store(true)
		l.start()
		l.mustTrust("cluster.local east west")
		l.down.Store(false)
		if err := l.m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.mustTrust("cluster.local east west")

		l.pass(31 * time.Hour) // west has expired
		l.mustTrust("cluster.local east")
		take(l.ca.root.pem())
		l.mustTrust("cluster.local") // the operator took it out
	})
}

func TestABundleThatIsPushedMendsAHardSwitchOfTheRoot(t *testing.T) {
	inLab(t, func(t *testing.T, l *lab) {
		l.start()
		next := newAuthority(t, "next", time.Now(), 10000*time.Hour, nil)
		if err := l.m.TakeBundle([]string{l.ca.root.pem(), next.pem()}); err != nil {
			t.Fatal(err)
		}
		l.ca.rotate(next)
		putFile(t, l.vm.token, token(time.Now().Add(100*time.Hour), nil))
		l.poke()
		l.pass(13 * time.Hour)
		l.mustBe(Valid)
		if leaf := l.m.Current().TLS().Leaf; leaf.CheckSignatureFrom(next.cert) != nil {
			t.Errorf("the certificate is by %s, last error %q", leaf.Issuer, l.m.State().LastError)
		}
	})
}

// serverBy is istiod's own certificate, issued by a.
func serverBy(t *testing.T, a *authority) *x509.Certificate {
	return issue(t, &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{testServer}}, newKey(t).Public(), a, nil)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
