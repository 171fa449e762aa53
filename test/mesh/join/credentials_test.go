package join

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

// An issuer is an OpenID provider: discovery, keys, and tokens that it signs.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	i.Server = httptest.NewTLSServer(i)
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256"}}
	if r.URL.Path == "/keys" {
		b64 := base64.RawURLEncoding.EncodeToString
		answer = map[string]any{"keys": []any{map[string]string{
			"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "1", "n": b64(i.key.N.Bytes()), "e": b64(big.NewInt(int64(i.key.E)).Bytes()),
		}}}
	}
	json.NewEncoder(w).Encode(answer)
}

// token signs claims; iss, iat and exp are added.
func (i *issuer) token(t *testing.T, claims map[string]any) string {
	t.Helper()
	claims["iss"], claims["iat"], claims["exp"] = i.URL, time.Now().Unix(), time.Now().Add(time.Hour).Unix()
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := part(map[string]string{"alg": "RS256", "kid": "1"}) + "." + part(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// authentication has the API server take the issuer's tokens, as those of one service account: that of the machine whose number is the subject.
func (i *issuer) authentication(t *testing.T) string {
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}))
	path := filepath.Join(t.TempDir(), "authentication.yaml")
	yaml := fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: %s
    audiences: [istio-ca]
    certificateAuthority: |
      %s
  claimValidationRules:
  - expression: claims.sub == "104817"
    message: not a machine of ours
  claimMappings:
    username: {expression: "'system:serviceaccount:istioinaction:' + claims.google.compute_engine.instance_name.split('-')[0] + '-sa'"}
    groups: {expression: "['system:serviceaccounts', 'system:serviceaccounts:istioinaction']"}
`, i.URL, strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n      "))
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTokensOfAnOIDCIssuer shows who takes the tokens of somebody else's issuer, end to end: istiod itself by JWT_RULE, if their subject is a service account's, and the API server by
// its own configuration, which maps a cloud's machine to a service account. One machine has its token from a program, the other from a metadata service at the usual address.
func TestTokensOfAnOIDCIssuer(t *testing.T) {
	theirs, clouds := newIssuer(t), newIssuer(t)
	// istiod cannot be told of a CA for jwks_uri by JWT_RULE, so its keys come by plain HTTP.
	keys := httptest.NewServer(theirs)
	t.Cleanup(keys.Close)
	bed := testbed.New(t, mesh.Options{
		IstiodEnv:     map[string]string{"JWT_RULE": fmt.Sprintf(`{"issuer": %q, "jwks_uri": %q, "audiences": ["istio-ca"]}`, theirs.URL, keys.URL+"/keys")},
		APIServerArgs: []string{"--authentication-config=" + clouds.authentication(t)},
	})

	t.Run("istiod takes it by JWT_RULE, from a program", func(t *testing.T) {
		vm := bed.VM(t, testbed.Forum)
		vm.App(t, 8080)
		vm.RemoveToken(t)
		credential := func(claims map[string]any) {
			text := fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": %q}}`, theirs.token(t, claims))
			if err := vm.WriteFile("/run/credential.json", text, 0o644, 0); err != nil {
				t.Fatal(err)
			}
		}
		vm.WriteSettings(t, "identity:\n  credentials: [file, exec]\n  exec: {command: [/bin/cat, /run/credential.json]}\n")
		// With aud as one text, which is just as valid, istiod's JwtAuthenticator cannot read the claims.
		credential(map[string]any{"sub": "system:serviceaccount:forum-services:forum-sa", "aud": "istio-ca"})
		vm.StartAgent(t)
		vm.AwaitStatus(t, "istiod wants a list of audiences", func(s testbed.Status) error {
			return says(s, "istiod refuses the token of exec although its claims look right")
		})
		credential(map[string]any{"sub": "system:serviceaccount:forum-services:forum-sa", "aud": []string{"istio-ca"}})
		vm.AwaitStatus(t, "the machine joins", joined)
		if s, err := vm.Status(t.Context()); err != nil || s.Identity.Credential != "token" || s.Identity.Source != "exec" {
			t.Errorf("by %s of %q, %v", s.Identity.Credential, s.Identity.Source, err)
		}
	})

	t.Run("the API server maps a cloud's machine, from a metadata service", func(t *testing.T) {
		vm := bed.VM(t, testbed.Catalog)
		vm.App(t, 8080)
		vm.RemoveToken(t)
		if _, err := vm.Run(t.Context(), "/sbin/ip", "address", "add", "169.254.169.254/32", "dev", "lo"); err != nil {
			t.Fatal(err)
		}
		var subject atomic.Value
		subject.Store("999") // somebody else's machine
		serveMetadata(t, vm, func(audience string) string {
			return clouds.token(t, map[string]any{"sub": subject.Load(), "aud": audience, "google": map[string]any{"compute_engine": map[string]any{"instance_name": "catalog-vm-7"}}})
		})
		vm.WriteSettings(t, "identity: {credentials: [gce, file]}\n")
		vm.StartAgent(t)
		vm.AwaitStatus(t, "another machine's token is refused", func(s testbed.Status) error {
			return says(s, `istiod refuses the token of gce: its subject "999"`)
		})
		subject.Store("104817")
		vm.AwaitStatus(t, "the machine joins", joined)
		if s, err := vm.Status(t.Context()); err != nil || s.Identity.Source != "gce" || s.Identity.SPIFFEID != "spiffe://cluster.local/ns/istioinaction/sa/catalog-sa" {
			t.Errorf("by %q as %s, %v", s.Identity.Source, s.Identity.SPIFFEID, err)
		}
		if strings.Contains(vm.AgentLog(t), "eyJ") {
			t.Error("a token is in the log")
		}
	})
}

// serveMetadata is GCE's metadata server in the machine, at its real address.
func serveMetadata(t *testing.T, vm *testbed.VM, token func(audience string) string) {
	t.Helper()
	lis, err := vm.Listen(net.JoinHostPort("169.254.169.254", "80"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity" || r.FormValue("format") != "full" {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		fmt.Fprint(w, token(r.FormValue("audience")))
	})}
	served := make(chan struct{})
	go func() { defer close(served); server.Serve(lis) }()
	t.Cleanup(func() { server.Close(); <-served })
}
