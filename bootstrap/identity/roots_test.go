package identity

import (
	"crypto/x509"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"
)

func TestCheckRoots(t *testing.T) {
	istioctl, err := os.ReadFile("testdata/root-cert.pem")
	if err != nil {
		t.Fatal(err)
	}
	now := testNow
	other := newAuthority(t, "other.mesh", now, time.Hour, nil)
	old := newAuthority(t, "old.mesh", now.Add(-48*time.Hour), 24*time.Hour, nil)
	leaf := string(testCertificate(t, now, time.Hour).ChainPEM())
	key, err := KeyOptions{}.encode(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	good := string(istioctl)
	tests := []struct{ name, data, want string }{
		{"istioctl's root passes", good, ""},
		{"several roots pass", good + other.pem(), ""},
		{"text around the blocks passes, as openssl writes it", "subject=O = cluster.local\n" + good + "\nissuer=x\n" + other.pem() + "\n# end\n", ""},
		{"an expired root beside a good one passes", old.pem() + good, ""},
		{"an empty file", "", "it is empty, expected PEM certificates"},
		{"white space", "\n\n", "it is empty, expected PEM certificates"},
		{"garbage", "not a certificate", "it holds no PEM block, expected certificates"},
		{"binary garbage", "\x30\x82\x00\x01", "it holds no PEM block, expected certificates"},
		{"cut short", good[:len(good)/2], "the PEM block after certificate 0 is cut short or damaged"},
		{"a second root cut short is no half bundle", good + other.pem()[:200], "the PEM block after certificate 1 is cut short or damaged"},
		{"a first root cut short before a good one", good[:200] + "\n" + other.pem(), "a PEM block after certificate 0 is damaged"},
		{"damaged inside", strings.Replace(good, "MIIC", "AAAA", 1), "certificate 1 is damaged: x509: malformed certificate"},
		{"a private key", string(key), `it holds a PEM block "EC PRIVATE KEY", expected CERTIFICATE only`},
		{"a private key behind a root", good + string(key), `it holds a PEM block "EC PRIVATE KEY", expected CERTIFICATE only`},
		{"larger than any bundle", strings.Repeat("x", maxPEMSize+1), "it is larger than 1024 kB, expected a few PEM certificates"},
		{"only an expired root", old.pem(), "every root certificate in it has expired, the last one 1 d ago"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := oneLine(CheckRoots([]byte(tt.data), now))
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
	if got := oneLine(CheckRoots([]byte(leaf), now)); !strings.HasSuffix(got, "is not a CA's: expected root certificates only") {
		t.Errorf("a leaf certificate: got %q", got)
	}
}

func TestTheTrustBundle(t *testing.T) {
	roots := map[string]*x509.Certificate{}
	for _, name := range []string{"A", "B", "C"} {
		roots[name] = newAuthority(t, name, testNow, 1000*time.Hour, nil).cert
	}
	roots["x"] = newAuthority(t, "x", testNow, time.Hour, nil).cert // expires in an hour
	list := func(names string) (certs []*x509.Certificate) {
		for _, n := range names {
			certs = append(certs, roots[string(n)])
		}
		return certs
	}
	// A name for each anchor: its root, and "f" or "c" for where it is from, and "-" when it is to be retired.
	show := func(a anchors) string {
		var out []string
		for _, x := range a {
			s := x.cert.Subject.Organization[0] + x.source[:1]
			if !x.until.IsZero() {
				s += "-"
			}
			out = append(out, s)
		}
		return strings.Join(out, " ")
	}
	retire := testNow.Add(24 * time.Hour)
	tests := []struct {
		name string
		got  anchors
		want string
	}{
		{"the file's root alone", anchors{}.withFile(list("A")), "Af"},
		{"the union of both, the file first", anchors{}.withAnswer(list("B"), retire).withFile(list("A")), "Af Bc"},
		{"the same root from both is kept for each", anchors{}.withFile(list("A")).withAnswer(list("A"), retire), "Af Ac"},
		{"a new file replaces the file's roots only", anchors{}.withFile(list("A")).withAnswer(list("B"), retire).withFile(list("C")), "Cf Bc"},
		{"a root that the CA drops is retired, not forgotten", anchors{}.withAnswer(list("A"), retire).withAnswer(list("B"), retire), "Bc Ac-"},
		{"a root that comes back is no longer retired", anchors{}.withAnswer(list("A"), retire).withAnswer(list("B"), retire).withAnswer(list("AB"), retire), "Ac Bc"},
		{"a retired root goes when its time is over", anchors{}.withAnswer(list("A"), retire).withAnswer(list("B"), retire).pruned(retire), "Bc"},
		{"not before", anchors{}.withAnswer(list("A"), retire).withAnswer(list("B"), retire).pruned(retire.Add(-time.Second)), "Bc Ac-"},
		{"an expired root goes", anchors{}.withFile(list("xA")).pruned(testNow.Add(time.Hour)), "Af"},
		{"the last root stays when it has expired", anchors{}.withFile(list("x")).pruned(testNow.Add(time.Hour)), "xf"},
		{"doubles go", anchors{}.withFile(list("AAB")).pruned(testNow), "Af Bf"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := show(tt.got); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	// A second renewal must not put the retirement of an old root off again and again.
	a := anchors{}.withAnswer(list("A"), retire).withAnswer(list("B"), retire).withAnswer(list("B"), retire.Add(24*time.Hour))
	if !a[1].until.Equal(retire) {
		t.Errorf("retirement moved from %v to %v", retire, a[1].until)
	}
	if n := len(anchors{}.withFile(list("A")).withAnswer(list("A"), retire).certs()); n != 1 {
		t.Errorf("a root of both sources is written %d times, want once", n)
	}
}

// People compare serials with what istioctl proxy-config secret and openssl x509 show.
func TestSerialHasTwoDigitsForEachByte(t *testing.T) {
	for serial, want := range map[int64]string{0x0822d3: "0822d3", 0x10: "10", 0: "00"} {
		if got := serialOf(&x509.Certificate{SerialNumber: big.NewInt(serial)}); got != want {
			t.Errorf("serial %d is %q, want %q", serial, got, want)
		}
	}
}
