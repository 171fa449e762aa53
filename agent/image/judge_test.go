package image

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// jwt is a token, as far as anybody can tell without its issuer.
var jwt = strings.Join([]string{
	base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","kid":"k"}`)),
	base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:forum-services:forum-sa","aud":["istio-ca"]}`)),
	base64.RawURLEncoding.EncodeToString([]byte("signature")),
}, ".")

// pair is a self-signed certificate and its key, in PEM.
func pair(t testing.TB, ca bool) (certificate, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}}, NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
	if !ca {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/forum-services/sa/forum-sa"}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

// Ways in which user-data and the like carry a file.
func inBase64Of(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func wrapped(s, end string) string {
	var b strings.Builder
	for chunk := range slices.Chunk([]byte(s), 76) {
		b.Write(chunk)
		b.WriteString(end)
	}
	return b.String()
}

func packed(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(s)) // a Buffer takes everything
	_ = w.Close()
	return b.String()
}

func inJSON(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// der takes the first block out of PEM.
func der(s string) string {
	block, _ := pem.Decode([]byte(s))
	return string(block.Bytes)
}

// server is the certificate of a web server: no machine's of a mesh.
func server(t testing.TB) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"www.example.org"}, NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
	b, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b}))
}

func TestWhatAFileHolds(t *testing.T) {
	leaf, key := pair(t, false)
	ca, _ := pair(t, true)
	for _, tt := range []struct {
		name, content, want string
	}{
		{"nothing", "", ""},
		{"settings", "log: {level: debug}\n", ""},
		{"roots of the mesh", ca + ca, ""},
		{"a leaf", leaf, "a workload's certificate"},
		{"a chain", leaf + ca, "a workload's certificate"},
		{"a key", key, "a private key"},
		{"a key of openssl's old form", strings.ReplaceAll(key, "PRIVATE KEY", "EC PRIVATE KEY"), "a private key"},
		{"a key that is cut off", key[:60], "a private key"},
		{"a key inside YAML", "key: |\n  " + strings.ReplaceAll(key, "\n", "\n  "), "a private key"},
		{"the words for one", `header: "-----BEGIN PRIVATE KEY-----"`, ""},
		{"a token", jwt + "\n", "a token"},
		{"a token inside YAML", "write_files: [{content: \"" + jwt + "\"}]", "a token"},
		{"a token inside JSON", `{"status": {"token": "` + jwt + `"}}`, "a token"},
		{"a token in base64", "content: " + base64.StdEncoding.EncodeToString([]byte(jwt+"\n")), "a token"},
		{"something with dots", "eyJub3.a.b and eyJ.x.y", ""},
		{"three parts without alg", base64.RawURLEncoding.EncodeToString([]byte(`{"x":1}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + ".x", ""},
		{"what is sealed", sealMark + "\x00\x01", "a sealed secret"},
		{"a token in base64 of many lines", "content: |\n  " + wrapped(inBase64Of("# a first line\n"+jwt+"\n"), "\n  "), "a token"},
		{"a token in base64 of many lines inside JSON", `{"data": "` + wrapped(inBase64Of(jwt), `\n`) + `"}`, "a token"},
		{"a part of a MIME archive", "Content-Transfer-Encoding: base64\r\n\r\n" + wrapped(inBase64Of("#cloud-config\nx: "+jwt), "\r\n") + "--===1==--\r\n", "a token"},
		{"a key in base64", "content: " + inBase64Of(key), "a private key"},
		{"a key in base64 of many lines", wrapped(inBase64Of(key), "\n"), "a private key"},
		{"a key in base64 behind an equals sign", "KEY=" + inBase64Of(key) + "\n", "a private key"},
		{"a key inside JSON", `{"type": "service_account", "private_key": ` + inJSON(key) + `}`, "a private key"},
		{"a leaf inside JSON", `{"certificate": ` + inJSON(ca+leaf) + `}`, "a workload's certificate"},
		{"a leaf inside YAML", "chain: |\n  " + strings.ReplaceAll(leaf, "\n", "\n  "), "a workload's certificate"},
		{"packed user-data", packed("#cloud-config\nx: " + jwt), "a token"},
		{"packed user-data that was cut off", packed("#cloud-config\nx: " + jwt)[:len(packed("#cloud-config\nx: "+jwt))-6], "a token"},
		{"packed user-data in base64", inBase64Of(packed("content: " + inBase64Of(jwt))), "a token"},
		{"packed zeros without end", packed(strings.Repeat("\x00", 17<<20)), "packed data that is too large to look at"},
		{"a key in DER", der(key), "a private key"},
		{"a key in DER in base64", "key: " + inBase64Of(der(key)) + "\n- next", "a private key"},
		{"a leaf in DER", der(leaf), "a workload's certificate"},
		{"a root in DER", der(ca), ""},
		{"roots in base64", wrapped(inBase64Of(ca+ca), "\n"), ""},
		{"roots, packed", packed(ca), ""},
		{"the certificate of a web server", server(t), ""},
		{"the words for one, in base64", inBase64Of(`header: "-----BEGIN PRIVATE KEY-----"`), ""},
		{"all of it", key + leaf + jwt, "a private key, a workload's certificate, a token"},
	} {
		if got := strings.Join(contents([]byte(tt.content)), ", "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestWhatAUnitIsGiven(t *testing.T) {
	for _, tt := range []struct {
		unit string
		want given
	}{
		{"[Service]\nExecStart=/usr/bin/wingman run\nEnvironment=A=B\n", given{}},
		{"LoadCredential=istio-token\n", given{names: []string{"istio-token"}}},
		{"LoadCredential=istio-token:/root/istio-token\n", given{credentials: []string{"/root/istio-token"}}},
		{" LoadCredentialEncrypted = a:/b/../c\n#LoadCredential=x:/y\n", given{credentials: []string{"/c"}}},
		{"LoadCredential=istio-token:/run/some.sock\nLoadCredential=b:relative\nLoadCredential=c:/two\n", given{credentials: []string{"/run/some.sock", "/two"}, names: []string{"relative"}}},
		{"LoadCredential=a:%S/x\nLoadCredential=b:%E/%%y\nLoadCredential=c:%i\nLoadCredential=d:a/b\nLoadCredential=e:x%", given{credentials: []string{"/var/lib/x", "/etc/%y"},
			unknown: []string{"LoadCredential=c:%i", "LoadCredential=d:a/b", "LoadCredential=e:x%"}}},
		{"ImportCredential=wm.*\nEnvironmentFile=-/etc/a\nEnvironmentFile=/etc/b*\n", given{names: []string{"glob:wm.*"}, environment: []string{"/etc/a"}, unknown: []string{"EnvironmentFile=/etc/b*"}}},
		{"SetCredential=istio-token:abc\n", given{set: true}},
		{"SetCredential=\nLoadCredential=\n", given{}},
	} {
		if got := givenTo(tt.unit); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: %+v, want %+v", tt.unit, got, tt.want)
		}
	}
}

func FuzzContents(f *testing.F) {
	leaf, key := pair(f, false)
	for _, s := range []string{"", leaf, key, jwt, sealMark, base64.StdEncoding.EncodeToString([]byte(jwt)), "eyJ.eyJ.", "-----BEGIN PRIVATE KEY-----"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		contents(b)
		// A token is found whatever stands around it, as long as no letter of it touches.
		with := append(append(slices.Clone(b), " \n"+jwt+"\n "...), b...)
		if !hasJWT(with) {
			t.Errorf("the token in %q was not found", with)
		}
	})
}

func FuzzGivenTo(f *testing.F) {
	f.Add("LoadCredential=a:/b\nSetCredential=c:d\n")
	f.Add("=\n=:/\nLoadCredential=:\n")
	f.Fuzz(func(t *testing.T, unit string) {
		g := givenTo(unit)
		for _, file := range append(g.credentials, g.environment...) {
			if !strings.HasPrefix(file, "/") || filepath.Clean(file) != file {
				t.Errorf("%q names %q", unit, file)
			}
		}
	})
}
