package credential

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// jwt is a token by its shape. Its claims hold the mark that must never be printed.
var jwt = part(`{"alg":"RS256"}`) + "." + part(`{"sub":"secret-mark","aud":"istio-ca"}`) + "." + part("signature of many bytes, as they all are")

func part(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// mustNotLeak fails the test when text holds the claims or the signature of the token; everybody knows its header.
func mustNotLeak(t *testing.T, text string) {
	t.Helper()
	for _, p := range strings.Split(jwt, ".") {
		if len(p) >= 40 && strings.Contains(text, p) {
			t.Errorf("%q holds a part of the token", text)
		}
	}
}

func TestASecretIsNotPrinted(t *testing.T) {
	token := Token{JWT: Hide(jwt)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		mustNotLeak(t, fmt.Sprintf(verb, token))
		mustNotLeak(t, fmt.Sprintf(verb, &token))
		mustNotLeak(t, fmt.Sprintf(verb, token.JWT))
	}
	mustNotLeak(t, token.JWT.LogValue().String())
	for _, text := range []string{jwt, "Bearer " + jwt, "https://x.example/?token=" + jwt, "token=" + jwt + ",x", `{"token":"` + jwt + `"}`} {
		mustNotLeak(t, quoted(text))
	}
	if got := quoted("no such role: myrole\nsecond line"); got != `"no such role: myrole"` {
		t.Errorf("quoted: %s", got)
	}
}

func TestUnwrap(t *testing.T) {
	tests := []struct{ name, content, want, err string }{
		{"plain", " " + jwt + "\r\n", jwt, ""},
		{"kubectl create token -o json", `{"kind":"TokenRequest","apiVersion":"authentication.k8s.io/v1","status":{"token":"` + jwt + `","expirationTimestamp":"2026-11-23T12:00:00Z"}}`, jwt, ""},
		{"Vault's answer, kubernetes secrets engine", `{"request_id":"x","lease_duration":3600,"wrap_info":null,"data":{"service_account_name":"forum-sa","service_account_token":"` + jwt + `"}}`, jwt, ""},
		{"Vault's answer, identity token", `{"data":{"client_id":"x","token":"` + jwt + `","ttl":3600}}`, jwt, ""},
		{"the data alone", `{"service_account_token":"` + jwt + `"}`, jwt, ""},
		{"a simple program's", `{"token":"` + jwt + `"}`, jwt, ""},
		{"something that is no token is not judged here", "secret", "secret", ""},
		{"empty", " \n", "", "no token: it is empty"},
		{"Vault Agent's sink", "hvs.CAESIJ" + strings.Repeat("x", 80), "", "a token for Vault itself, not one that Vault gave out: let a template write that of a role (docs/identity.md)"},
		{"Vault Agent's sink, old", "s.abcdefghijklmnop", "", "a token for Vault itself, not one that Vault gave out: let a template write that of a role (docs/identity.md)"},
		{"a wrapping sink", `{"token":"hvs.x","accessor":"a","ttl":300,"creation_time":"2026-11-23T12:00:00Z","creation_path":"sys/wrapping/wrap","wrapped_accessor":"b"}`, "",
			"a response-wrapped or encrypted token of Vault Agent's sink: leave wrap_ttl and dh_type out, and let a template write the token of a role"},
		{"an encrypting sink", `{"curve25519_public_key":"x","nonce":"y","encrypted_payload":"z"}`, "",
			"a response-wrapped or encrypted token of Vault Agent's sink: leave wrap_ttl and dh_type out, and let a template write the token of a role"},
		{"JSON without one", `{"a":1}`, "", "JSON without a token: expected it at token, status.token, data.token or data.service_account_token"},
		{"half of it", `{"token":"` + jwt, "", "JSON that cannot be read"},
		{"of another type", `{"token":["` + jwt + `"]}`, "", "JSON that cannot be read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Unwrap([]byte(tt.content))
			if text := fmt.Sprint(err); string(got) != tt.want || (err != nil || tt.err != "") && text != tt.err {
				t.Errorf("%d bytes, %v; want %q", len(got), err, tt.err)
			}
			mustNotLeak(t, fmt.Sprint(err))
		})
	}
}

// FuzzUnwrap also reads the answers of programs and clouds: whatever they are, a token comes out whole or not at all, and no error holds it.
func FuzzUnwrap(f *testing.F) {
	for _, seed := range []string{jwt, `{"token":"` + jwt + `"}`, `{"data":{"token":"x"}}`, `{"kind":"ExecCredential","apiVersion":"client.authentication.k8s.io/v1","status":{"token":"` + jwt + `","expirationTimestamp":"2026-11-23T12:00:00Z"}}`,
		"<a><WebIdentityToken>" + jwt + "</WebIdentityToken></a>", "hvs.x", "{", `{"status":null}`, `{"access_token":"` + jwt + `","expires_in":"3599"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := Unwrap(content)
		if err == nil && len(got) == 0 || err != nil && got != nil {
			t.Fatalf("%d bytes and %v", len(got), err)
		}
		if err != nil {
			mustNotLeak(t, err.Error())
		}
		got, _, err = execAnswer(content)
		if err == nil && len(got) == 0 {
			t.Fatal("neither a token nor an error")
		}
		if err != nil {
			mustNotLeak(t, err.Error())
		}
		if text := element(content, "WebIdentityToken"); strings.ContainsAny(text, "<>") {
			t.Fatalf("an element of %q", text)
		}
		if token, ok := tokenOf(string(content)); ok && strings.ContainsAny(token.JWT(), " \n{\"<") {
			t.Fatal("taken for a token")
		}
		mustNotLeak(t, quoted(string(content)))
	})
}
