package identity

import (
	"crypto"
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCheckAnswer(t *testing.T) {
	now := testNow
	root := newAuthority(t, "cluster.local", now, 1000*time.Hour, nil)
	next := newAuthority(t, "next root", now, 1000*time.Hour, nil)
	stranger := newAuthority(t, "stranger", now, 1000*time.Hour, nil)
	upper := newAuthority(t, "upper", now, 1000*time.Hour, root)
	lower := newAuthority(t, "lower", now, 1000*time.Hour, upper)
	key, otherKey := newKey(t), newKey(t)
	leaf := func(by *authority, key crypto.Signer, change func(*x509.Certificate)) string {
		template := workloadTemplate(testID, now, 24*time.Hour)
		if change != nil {
			change(template)
		}
		return string(encodeCertificates([]*x509.Certificate{issue(t, template, key.Public(), by, nil)}))
	}
	good := leaf(root, key, nil)
	deep := leaf(lower, key, nil)
	as := func(id string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.URIs = workloadTemplate(id, now, 0).URIs }
	}
	dates := func(from, to time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(from), now.Add(to) }
	}
	file := anchors{}.withFile([]*x509.Certificate{root.cert})
	tests := []struct {
		name    string
		trusted anchors
		answer  []string
		chain   int    // certificates of the chain when it passes
		roots   int    // roots of the answer
		want    string // else the sentence
	}{
		{"leaf and root", file, []string{good, root.pem()}, 1, 1, ""},
		{"the last element holds several roots", file, []string{good, root.pem() + next.pem()}, 1, 2, ""},
		{"a root that only the answer knows (a hard switch)", anchors{}.withFile([]*x509.Certificate{next.cert}), []string{good, root.pem()}, 1, 1, ""},
		{"intermediates in order", file, []string{deep, lower.pem(), upper.pem(), root.pem()}, 3, 1, ""},
		{"intermediates in one element with the leaf, as istio-csr sends them", file, []string{deep + lower.pem() + upper.pem(), root.pem()}, 3, 1, ""},
		{"intermediates in the wrong order", file, []string{deep, upper.pem(), root.pem(), lower.pem()}, 3, 1, ""},
		{"no self-signed root, but the file's", file, []string{deep, lower.pem(), upper.pem()}, 3, 1, ""},
		{"an anchor that is an intermediate itself", anchors{}, []string{deep, lower.pem()}, 2, 1, ""},
		{"a certificate that begins in our future: our clock is behind", file, []string{leaf(root, key, dates(2*time.Hour, 26*time.Hour)), root.pem()}, 1, 1, ""},
		{"a life of five seconds", file, []string{leaf(root, key, dates(-2*time.Minute, 5*time.Second)), root.pem()}, 1, 1, ""},

		{"nothing", file, nil, 0, 0, "the CA's answer holds 0 certificate(s): expected at least two, the leaf first and its root last"},
		{"one certificate", file, []string{good}, 0, 0, "the CA's answer holds 1 certificate(s): expected at least two, the leaf first and its root last"},
		{"garbage", file, []string{"garbage", root.pem()}, 0, 0, "element 1 of the CA's answer: it holds no PEM block, expected certificates"},
		{"an empty element", file, []string{good, ""}, 0, 0, "element 2 of the CA's answer: it is empty, expected PEM certificates"},
		{"a root cut short", file, []string{good, root.pem()[:100]}, 0, 0, "element 2 of the CA's answer: the PEM block after certificate 0 is cut short or damaged"},
		{"the leaf last", file, []string{root.pem(), good}, 0, 0, "the CA's answer is in the wrong order: the certificate for our key is number 2, expected it first"},
		{"for another key", file, []string{leaf(root, otherKey, nil), root.pem()}, 0, 0, "the CA's answer is for another key than the one in our request: its leaf is serial …"},
		{"for another identity", file, []string{leaf(root, key, as("spiffe://cluster.local/ns/forum-services/sa/default")), root.pem()}, 0, 0,
			`the CA's answer: the certificate is for "spiffe://cluster.local/ns/forum-services/sa/default", expected ` + testID + ": namespace, service account and trust domain must be those of the token"},
		{"for another trust domain", file, []string{leaf(root, key, as("spiffe://old.td/ns/forum-services/sa/forum-sa")), root.pem()}, 0, 0,
			`the CA's answer: the certificate is for "spiffe://old.td/ns/forum-services/sa/forum-sa", expected ` + testID + ": namespace, service account and trust domain must be those of the token"},
		{"for nobody", file, []string{leaf(root, key, func(c *x509.Certificate) { c.URIs = nil }), root.pem()}, 0, 0,
			"the CA's answer: the certificate is for nobody, expected " + testID + ": namespace, service account and trust domain must be those of the token"},
		{"for two identities at once", file, []string{leaf(root, key, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "td", Path: "/x"})
		}), root.pem()}, 0, 0,
			`the CA's answer: the certificate is for "` + testID + `", "spiffe://td/x", expected ` + testID + ": namespace, service account and trust domain must be those of the token"},
		{"expired on arrival", file, []string{leaf(root, key, dates(-27*time.Hour, -3*time.Hour)), root.pem()}, 0, 0,
			"the CA's answer: the certificate expired 3 h ago: either it is old or this machine's clock is ahead"},
		{"dates that contradict each other", file, []string{leaf(root, key, dates(2*time.Hour, time.Hour)), root.pem()}, 0, 0,
			"the CA's answer: the certificate's dates contradict each other: it ends before it begins"},
		{"signed by somebody whose root is not in the answer", file, []string{leaf(stranger, key, nil), root.pem()}, 0, 0,
			`the CA's answer: the certificate, issued by "O=stranger", does not chain to a root we know: x509: certificate signed by unknown authority`},
		{"an intermediate is missing", file, []string{deep, upper.pem(), root.pem()}, 0, 0,
			`the CA's answer: the certificate, issued by "O=lower", does not chain to a root we know: x509: certificate signed by unknown authority`},
		{"not for client authentication", file, []string{leaf(root, key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), root.pem()}, 0, 0,
			`the CA's answer: the certificate, issued by "O=cluster.local", does not chain to a root we know: x509: certificate specifies an incompatible key usage`},
		{"a file of leaf certificates and no CA", anchors{}, []string{good, good}, 0, 0,
			`the CA's answer: the certificate, issued by "O=cluster.local", does not chain to a root we know: x509: certificate signed by unknown authority`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ans, err := checkAnswer(tt.answer, key, testID, tt.trusted, now)
			got := oneLine(err)
			if want, cut := strings.CutSuffix(tt.want, "…"); cut && strings.HasPrefix(got, want) {
				return
			}
			if got != tt.want || len(ans.chain) != tt.chain || len(ans.roots) != tt.roots {
				t.Errorf("got %d + %d certificates, %q\nwant %d + %d, %q", len(ans.chain), len(ans.roots), got, tt.chain, tt.roots, tt.want)
			}
			// Whatever the order of the answer, what we store and show to peers is in the order of RFC 8446 section 4.4.2.
			for i := range max(0, len(ans.chain)-1) {
				if err := ans.chain[i].CheckSignatureFrom(ans.chain[i+1]); err != nil {
					t.Errorf("certificate %d is not signed by the next: %v", i+1, err)
				}
			}
		})
	}
}

func TestACrossSignedIntermediateStaysInTheChain(t *testing.T) {
	oldRoot := newAuthority(t, "root", testNow, 1000*time.Hour, nil)
	newRoot := newAuthority(t, "new root", testNow, 1000*time.Hour, nil)
	cross := &authority{key: newRoot.key, cert: issue(t, &x509.Certificate{
		Subject: newRoot.cert.Subject, NotBefore: testNow.Add(-time.Hour), NotAfter: testNow.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: newRoot.cert.SubjectKeyId,
	}, newRoot.key.Public(), oldRoot, nil)}
	key := newKey(t)
	leaf := issue(t, workloadTemplate(testID, testNow, time.Hour), key.Public(), newRoot, nil)
	answerPEM := []string{string(encodeCertificates([]*x509.Certificate{leaf})), cross.pem(), newRoot.pem()}
	ans, err := checkAnswer(answerPEM, key, testID, anchors{}, testNow)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(ans.chain, cross.cert.Equal) {
		t.Errorf("chain of %d lacks the cross-signed certificate that peers with the old root need", len(ans.chain))
	}
}

func TestTheLifeToCountRenewalFrom(t *testing.T) {
	root := newAuthority(t, "cluster.local", testNow, 1000*time.Hour, nil)
	key := newKey(t)
	issued := func(received, notBefore, notAfter time.Duration) *Certificate {
		template := workloadTemplate(testID, testNow, 0)
		template.NotBefore, template.NotAfter = testNow.Add(notBefore), testNow.Add(notAfter)
		c := newCertificate(testID, key, nil, []*x509.Certificate{issue(t, template, key.Public(), root, nil)}, testNow.Add(received))
		return c
	}
	const m = time.Minute
	unknown := issued(0, -2*m, 60*m)
	unknown.ReceivedAt = time.Time{}
	tests := []struct {
		name     string
		cert     *Certificate
		now      time.Duration
		from, to time.Duration
	}{
		{"as received, not from the backdated NotBefore", issued(0, -2*m, 60*m), 0, 0, 60 * m},
		{"an unknown time of receipt leaves the certificate's dates", unknown, 0, -2 * m, 60 * m},
		{"so does one after the end", issued(100*m, -2*m, 60*m), 0, -2 * m, 60 * m},
		{"a clock two hours behind: peers see the end two hours before us", issued(0, 118*m, 180*m), 0, 0, 60 * m},
		{"once that clock has been set, the dates are right again", issued(0, 118*m, 180*m), 121 * m, 118 * m, 180 * m},
		{"a short life by a clock far behind keeps its own dates", issued(0, 118*m, 119*m), 0, 118 * m, 119 * m},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := life{received: testNow.Add(tt.from), notAfter: testNow.Add(tt.to)}
			got := tt.cert.lifeAt(testNow.Add(tt.now))
			if !got.received.Equal(want.received) || !got.notAfter.Equal(want.notAfter) {
				t.Errorf("got %v to %v, want %v to %v", got.received.Sub(testNow), got.notAfter.Sub(testNow), tt.from, tt.to)
			}
		})
	}
}
