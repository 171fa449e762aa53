package identity

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestInspectTokenReadsTheClaimsOfIstioctlsToken(t *testing.T) {
	raw, err := os.ReadFile("testdata/istio-token")
	if err != nil {
		t.Fatal(err)
	}
	want := TokenInfo{
		Subject: "system:serviceaccount:forum-services:forum-sa", Issuer: "https://kubernetes.default.svc",
		Namespace: "forum-services", ServiceAccount: "forum-sa", Audiences: []string{"istio-ca"},
		NotBefore: time.Unix(1795372435, 0), Expiry: time.Unix(1795376035, 0),
	}
	got, err := InspectToken(raw, want.NotBefore.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
}

func TestCheckToken(t *testing.T) {
	want := TokenWant{Audience: "istio-ca", Namespace: "forum-services", ServiceAccount: "forum-sa"}
	parts := func(header, claims string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	good := token(testNow.Add(time.Hour), nil)
	tests := []struct {
		name, raw string
		is        error
		says      string
	}{
		{"a good token passes", good, nil, ""},
		{"white space around it is not part of it", "\n " + good + "\r\n", nil, ""},
		{"one audience as a plain string passes", token(testNow.Add(time.Hour), func(j *jwt) { j.audience = "istio-ca" }), nil, ""},
		{"a date with a fraction passes", parts(`{"alg":"none"}`, `{"aud":"istio-ca","exp":1795999999.5}`), nil, ""},
		{"a token without an end passes", parts(`{"alg":"none"}`, `{"aud":"istio-ca"}`), nil, ""},
		{"an end beyond all calendars passes", parts(`{"alg":"none"}`, `{"aud":"istio-ca","exp":1e300}`), nil, ""},
		{"padding of base64 is tolerated", strings.Replace(parts(`{"alg":"no"}`, `{"aud":"istio-ca"}`), ".", "=.", 1), nil, ""},
		{"an OIDC token without service account passes", parts(`{"alg":"RS256"}`, `{"aud":"istio-ca","sub":"vm-17","exp":1795999999}`), nil, ""},
		{"the subject alone names the service account", parts(`{"alg":"RS256"}`, `{"aud":"istio-ca","sub":"system:serviceaccount:other:sa"}`), ErrTokenIdentity,
			`token of another service account: it is "sa"'s in namespace "other", expected "forum-sa" in "forum-services"`},
		{"an empty file", "", ErrNoToken, "no token: it is empty"},
		{"only white space", " \n\t", ErrNoToken, "no token: it is empty"},
		{"not a JWT", "hello world", ErrNotJWT, "not a JWT: 1 part(s) between dots, expected 3"},
		{"a PEM file by mistake", "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n", ErrNotJWT, "not a JWT: 1 part(s) between dots, expected 3"},
		{"three parts of nonsense", "a%.b.c", ErrNotJWT, "not a JWT: its header are not base64url"},
		{"claims that are no JSON", parts(`{"alg":"RS256"}`, "secret stuff"), ErrNotJWT, "not a JWT: its claims are not the JSON expected there"},
		{"claims of the wrong type", parts(`{"alg":"RS256"}`, `{"exp":"tomorrow"}`), ErrNotJWT, "not a JWT: its claims are not the JSON expected there"},
		{"an end before time began", parts(`{"alg":"RS256"}`, `{"exp":-1e300}`), ErrNotJWT, "not a JWT: its claims are not the JSON expected there"},
		{"no algorithm", parts(`{}`, `{"aud":"istio-ca"}`), ErrNotJWT, "not a JWT: its header names no algorithm"},
		{"a token as large as a file system", strings.Repeat("a", MaxToken+1), ErrNotJWT, "not a JWT: more than 64 kB"},
		{"expired three hours ago", token(testNow.Add(-3*time.Hour-2*time.Minute), nil), ErrTokenExpired, "token expired 3 h 2 min ago"},
		{"expired just now", token(testNow, nil), ErrTokenExpired, "token expired 0 s ago"},
		{"not valid yet", parts(`{"alg":"RS256"}`, fmt.Sprintf(`{"nbf":%d}`, testNow.Add(2*time.Hour).Unix())), ErrTokenNotYet,
			"token not valid yet: it begins in 2 h, so this machine's clock is probably behind"},
		{"not valid for some seconds is no problem", parts(`{"alg":"RS256"}`, fmt.Sprintf(`{"aud":"istio-ca","nbf":%d}`, testNow.Add(30*time.Second).Unix())), nil, ""},
		{"for another audience", token(testNow.Add(time.Hour), func(j *jwt) { j.audience = []string{"vault", "https://kubernetes.default.svc"} }), ErrTokenAudience,
			`token for another audience: it is for "vault", "https://kubernetes.default.svc", expected istio-ca`},
		{"for nobody", token(testNow.Add(time.Hour), func(j *jwt) { j.audience = []string{} }), ErrTokenAudience, "token for another audience: it is for nobody, expected istio-ca"},
		{"of another service account", token(testNow.Add(time.Hour), func(j *jwt) { j.who = "default" }), ErrTokenIdentity,
			`token of another service account: it is "default"'s in namespace "forum-services", expected "forum-sa" in "forum-services"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckToken([]byte(tt.raw), want, testNow)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if !errors.Is(err, tt.is) || got != tt.says {
				t.Errorf("got  %q\nwant %q (%v)", got, tt.says, tt.is)
			}
		})
	}
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	raw := token(testNow, nil)
	secret := hide(raw)
	cert := testCertificate(t, testNow, time.Hour)
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "token", secret, "credential", proof{token: secret}, "certificate", cert, "value", *cert)
	for _, verb := range []string{"%v", "%s", "%+v", "%#v", "%x", "%q"} {
		for _, v := range []any{secret, proof{token: secret}, request{offers: offering(raw), inHand: cert}, cert, *cert, outcome{cert: cert}} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	json.NewEncoder(&out).Encode([]any{secret, cert, *cert})
	forbidden := append(strings.Split(raw, "."), string(cert.KeyPEM()[40:80]), fmt.Sprintf("%x", cert.KeyPEM()[40:60]), strings.Trim(fmt.Sprint(cert.KeyPEM()[40:50]), "[]"))
	for _, part := range forbidden {
		if strings.Contains(out.String(), part) {
			at := strings.Index(out.String(), part)
			t.Errorf("%q was printed: …%s", part, out.String()[max(0, at-100):at])
		}
	}
}

// testCertificate is a certificate of testID by a CA of its own, received at now.
func testCertificate(t testing.TB, now time.Time, life time.Duration) *Certificate {
	t.Helper()
	root := newAuthority(t, "cluster.local", now, 24*365*time.Hour, nil)
	return certificateBy(t, root, testID, now, life)
}

// certificateBy is a certificate of id issued by ca at now.
func certificateBy(t testing.TB, ca *authority, id string, now time.Time, life time.Duration) *Certificate {
	t.Helper()
	key := newKey(t)
	keyPEM, err := KeyOptions{}.encode(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(t, workloadTemplate(id, now, life), key.Public(), ca, nil)
	return newCertificate(id, key, keyPEM, []*x509.Certificate{leaf}, now).withRoots(encodeCertificates([]*x509.Certificate{ca.cert}))
}

func FuzzInspectToken(f *testing.F) {
	raw, err := os.ReadFile("testdata/istio-token")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(raw))
	f.Add(token(testNow, nil))
	f.Add("e30.e30.")
	f.Fuzz(func(t *testing.T, raw string) {
		info, err := InspectToken([]byte(raw), testNow)
		if err == nil && !info.Expiry.IsZero() && !testNow.Before(info.Expiry) {
			t.Errorf("an expired token passed: %+v", info)
		}
		if _, jsonErr := info.Expiry.MarshalJSON(); jsonErr != nil {
			t.Errorf("expiry cannot be written: %v", jsonErr)
		}
		// The signature is the secret part. Claims are quoted, but never the token itself.
		if err := CheckToken([]byte(raw), TokenWant{Audience: "istio-ca"}, testNow); err != nil && len(raw) > 40 && strings.Contains(err.Error(), raw) {
			t.Errorf("the error holds the token: %v", err)
		}
	})
}
