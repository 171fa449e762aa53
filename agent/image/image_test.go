package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"math/big"
	"os"
	"path/filepath"
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
		{"all of it", key + leaf + jwt, "a private key, a workload's certificate, a token"},
	} {
		if got := strings.Join(contents([]byte(tt.content)), ", "); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestWhereAUnitTakesCredentialsFrom(t *testing.T) {
	for _, tt := range []struct {
		unit  string
		files string
		set   bool
	}{
		{"[Service]\nExecStart=/usr/bin/wingman run\n", "", false},
		{"LoadCredential=istio-token\n", "", false}, // in /etc/credstore, which is looked at anyway
		{"LoadCredential=istio-token:/root/istio-token\n", "/root/istio-token", false},
		{" LoadCredentialEncrypted = a:/b/../c\n#LoadCredential=x:/y\n", "/c", false},
		{"LoadCredential=istio-token:/run/some.sock\nLoadCredential=b:relative\nLoadCredential=c:/two\n", "/run/some.sock /two", false},
		{"SetCredential=istio-token:abc\n", "", true},
		{"SetCredential=\n", "", false},
	} {
		files, set := loadedFrom(tt.unit)
		if got := strings.Join(files, " "); got != tt.files || set != tt.set {
			t.Errorf("%q: %q, %v; want %q, %v", tt.unit, got, set, tt.files, tt.set)
		}
	}
}

// lay puts files below a root; a content that begins with "-> " makes a link.
func lay(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, isLink := strings.CutPrefix(files[name], "-> "); isLink {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(files[name]), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// clean is an image as it should be: what the package, an operator and Istio's package put there.
func clean(t *testing.T) (root string, files map[string]string) {
	ca, _ := pair(t, true)
	files = map[string]string{
		"etc/istio":                              "-> /var/lib/istio", // as Istio's package has it; absolute, and still inside
		"var/run":                                "-> /run",
		"var/lib/istio/envoy/sidecar.env":        "",
		"var/lib/istio/config/mesh":              "",
		"etc/wingman/wingman.yaml":               "identity: {tokenFile: /srv/tokens/mine, outputDir: /srv/certs}\nlog: {file: /srv/log/agent.log}\n",
		"etc/machine-id":                         "",
		"etc/certs/root-cert.pem":                ca,
		"usr/lib/systemd/system/wingman.service": "[Service]\nExecStart=/usr/bin/wingman run\n",
		"usr/lib/systemd/system/wingman-x.path":  "",
		"etc/ssl/private/other.pem":              "-----BEGIN PRIVATE KEY-----\nnobody's business of ours\n",
		"etc/iptables/rules.v4":                  "*filter\n-A INPUT -m comment --comment \"no ISTIO here\" -j ACCEPT\nCOMMIT\n",
		"root/.bash_history":                     "cat " + jwt + "\n",
		"run/secrets/tokens/.keep":               "",
		"etc/systemd/system/multi-user.target.wants/wingman.service": "-> /usr/lib/systemd/system/wingman.service",
	}
	root = t.TempDir()
	lay(t, root, files)
	return root, files
}

func TestACleanImage(t *testing.T) {
	root, _ := clean(t)
	r, err := Check(root)
	if err != nil || !r.Clean || len(r.Findings) > 0 || len(r.Notes) > 0 {
		t.Fatalf("%+v, %v; want it clean", r, err)
	}
	if r.Units["wingman.service"] != "enabled" || r.Units["wingman-rules.service"] != "absent" {
		t.Errorf("units %v", r.Units)
	}
}

// Each kind of dirt alone makes an image dirty, is named by its path on the machine, and goes by the command that is named, or is left to do by hand.
func TestADirtyImage(t *testing.T) {
	leaf, key := pair(t, false)
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  map[string]string // a part of what, by path
		hand  bool              // not cleaned by the command
	}{
		{"an identity", map[string]string{
			"var/lib/wingman/identity/generations/1/key.pem": key,
			"var/lib/wingman/identity/current":               "-> generations/1",
			"var/lib/wingman/identity/token":                 jwt,
			"etc/certs/key.pem":                              "-> ../../var/lib/wingman/identity/current/key.pem",
		}, map[string]string{
			"/var/lib/wingman/identity/generations/1/key.pem": "identity",
			"/var/lib/wingman/identity/current":               "identity",
			"/var/lib/wingman/identity/token":                 "copy of its token",
			"/etc/certs/key.pem":                              "link",
		}, false},
		{"state", map[string]string{
			"var/lib/wingman/joined.json": "{}", "var/lib/wingman/nametable": "x", "var/lib/wingman/rules.in": "", "var/lib/wingman/placed.json": "{}",
			"var/lib/wingman/nametable.damaged": "x", "var/lib/wingman/other": "x", "var/lib/wingman-adopt/record.json": "{}",
		}, map[string]string{
			"/var/lib/wingman/joined.json": "has joined", "/var/lib/wingman/nametable": "saved table", "/var/lib/wingman/rules.in": "in the kernel", "/var/lib/wingman/placed.json": "wingman join",
			"/var/lib/wingman/nametable.damaged": "saved table", "/var/lib/wingman/other": "state of an agent", "/var/lib/wingman-adopt/record.json": "adopt",
		}, false},
		{"what was in /run when the disk was copied", map[string]string{"run/wingman/wingman.lock": "1", "run/wingman-machine/product": "h", "run/wingman-guard/ends": "1"},
			map[string]string{"/run/wingman/wingman.lock": "/run", "/run/wingman-machine/product": "/run", "/run/wingman-guard/ends": "/run"}, false},
		{"a token at its place", map[string]string{"run/secrets/tokens/istio-token": "anything"}, map[string]string{"/run/secrets/tokens/istio-token": "a token"}, false},
		{"a token where a setting says", map[string]string{"srv/tokens/mine": "no JWT even"}, map[string]string{"/srv/tokens/mine": "a token"}, false},
		{"another token beside it", map[string]string{"srv/tokens/older": jwt}, map[string]string{"/srv/tokens/older": "a token"}, false},
		{"a key where a setting says", map[string]string{"srv/certs/any-name": key, "srv/certs/groups/app/current/cert-chain.pem": leaf},
			map[string]string{"/srv/certs/any-name": "a private key", "/srv/certs/groups/app/current/cert-chain.pem": "a workload's certificate"}, false},
		{"a key behind Istio's link", map[string]string{"var/lib/istio/deep/er/k": key, "var/lib/istio/proxy/envoy-rev.json": "{}"},
			map[string]string{"/var/lib/istio/deep/er/k": "a private key", "/var/lib/istio/proxy/envoy-rev.json": "address"}, false},
		{"copies for groups", map[string]string{"etc/certs/groups/app/.1/key.pem": key}, map[string]string{"/etc/certs/groups/app/.1/key.pem": "a private key"}, false},
		{"what a join kept", map[string]string{"var/lib/istio/envoy/sidecar.env.before-join": "A=1\n"}, map[string]string{"/var/lib/istio/envoy/sidecar.env.before-join": "replaced"}, false},
		{"credentials", map[string]string{
			"etc/credstore/istio-token": "x", "etc/credstore.encrypted/wingman-seal-key": "x", "root/secret": "x",
			"etc/systemd/system/wingman.service.d/seal.conf":  "[Service]\n",
			"etc/systemd/system/wingman.service.d/token.conf": "[Service]\nLoadCredential=istio-token:/root/secret\n",
		}, map[string]string{"/etc/credstore/istio-token": "credential", "/etc/credstore.encrypted/wingman-seal-key": "credential", "/root/secret": "credential",
			"/etc/systemd/system/wingman.service.d/seal.conf": "only the build machine"}, false},
		{"a credential in the unit", map[string]string{"etc/systemd/system/wingman.service.d/x.conf": "[Service]\nSetCredential=istio-token:abc\n"},
			map[string]string{"/etc/systemd/system/wingman.service.d/x.conf": "SetCredential"}, true},
		{"logs", map[string]string{"var/log/istio/istio.log": "x", "srv/log/agent.log": "x"}, map[string]string{"/var/log/istio/istio.log": "a log", "/srv/log/agent.log": "a log"}, false},
		{"saved rules", map[string]string{"etc/iptables/rules.v6": "*nat\n:ISTIO_OUTPUT - [0:0]\nCOMMIT\n", "etc/nftables.conf": "table inet wingman {\n}\n"},
			map[string]string{"/etc/iptables/rules.v6": "rules", "/etc/nftables.conf": "rules"}, true},
		{"user-data", map[string]string{"var/lib/cloud/instances/i-1/user-data.txt": "#cloud-config\nwrite_files: [{content: " + jwt + "}]\n"},
			map[string]string{"/var/lib/cloud/instances/i-1/user-data.txt": "cloud-init's copy of a token"}, true},
		{"an address", map[string]string{"var/lib/istio/envoy/cluster.env": "ISTIO_META_CLUSTER_ID='x'\nISTIO_SVC_IP='10.0.0.7'\n"},
			map[string]string{"/var/lib/istio/envoy/cluster.env": "10.0.0.7"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, _ := clean(t)
			lay(t, root, tt.files)
			r, err := Check(root)
			if err != nil || r.Clean {
				t.Fatalf("clean %v, %v; want it dirty", r.Clean, err)
			}
			for _, f := range r.Findings {
				if want, ok := tt.want[f.Path]; !ok || !strings.Contains(f.What, want) {
					t.Errorf("found %s: %s; want %q", f.Path, f.What, want)
				}
				if f.Clean == "" || (f.Clean != ByCommand) != tt.hand {
					t.Errorf("%s: the way to clean it is %q", f.Path, f.Clean)
				}
				delete(tt.want, f.Path)
			}
			for path := range tt.want {
				t.Errorf("%s was not found", path)
			}
			removed, left, err := Clean(root)
			if err != nil || left.Clean == tt.hand {
				t.Errorf("after cleaning: removed %q, left %+v, %v", removed, left.Findings, err)
			}
			if _, err := os.Stat(filepath.Join(root, "var/lib/wingman")); err == nil {
				t.Error("the state folder is left")
			}
			if _, err := os.Stat(filepath.Join(root, "etc/wingman/wingman.yaml")); err != nil {
				t.Error("the settings are gone")
			}
		})
	}
}

// What is outside of the root is nobody's image: a link there is neither followed nor cleaned.
func TestNoLinkLeadsOutOfTheImage(t *testing.T) {
	_, key := pair(t, false)
	outside := t.TempDir()
	lay(t, outside, map[string]string{"key.pem": key, "dir/istio-token": jwt})
	root, _ := clean(t)
	lay(t, root, map[string]string{
		"etc/certs/out":             "-> " + outside + "/key.pem",
		"etc/certs/up":              "-> ../../../../../../../../../.." + outside + "/key.pem",
		"srv/certs":                 "-> " + outside,
		"var/lib/wingman":           "-> " + outside + "/dir",
		"etc/credstore/istio-token": "-> /etc/credstore/istio-token",
	})
	r, err := Check(root)
	if err != nil {
		t.Logf("said: %v", err)
	}
	for _, f := range r.Findings {
		if f.Path != "/var/lib/wingman" && f.Path != "/etc/credstore/istio-token" { // links where nothing should be
			t.Errorf("found %s: %s, which leads out", f.Path, f.What)
		}
	}
	_, _, _ = Clean(root)
	for _, name := range []string{"key.pem", "dir/istio-token"} {
		if _, err := os.Stat(filepath.Join(outside, name)); err != nil {
			t.Errorf("cleaning removed %s outside of the image", name)
		}
	}
}

// What cannot be looked at is not proven clean.
func TestBrokenSettingsAreNotClean(t *testing.T) {
	root, _ := clean(t)
	lay(t, root, map[string]string{"etc/wingman/wingman.yaml": "identity: {tokenFil: /x}\n"})
	if r, err := Check(root); err == nil || r.Clean || !strings.Contains(err.Error(), "tokenFil") {
		t.Errorf("%+v, %v; want the problem", r, err)
	}
	if _, err := Check(filepath.Join(root, "nowhere")); err == nil {
		t.Error("a root that is not there is clean")
	}
}

func TestNotesAreNoFault(t *testing.T) {
	root, _ := clean(t)
	lay(t, root, map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "var/lib/systemd/credential.secret": "x", "var/log/journal/0123/system.journal": "x",
		"var/lib/istio/envoy/cluster.env": "ISTIO_META_CLUSTER_ID='x'\nPOD_NAMESPACE='forum-services'\nSERVICE_ACCOUNT='forum-sa'\n",
	})
	r, err := Check(root)
	if err != nil || !r.Clean || len(r.Notes) != 4 || !strings.Contains(r.Notes[0], "ns/forum-services/sa/forum-sa") {
		t.Errorf("%+v, %v; want four notes", r, err)
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

func FuzzLoadedFrom(f *testing.F) {
	f.Add("LoadCredential=a:/b\nSetCredential=c:d\n")
	f.Add("=\n=:/\nLoadCredential=:\n")
	f.Fuzz(func(t *testing.T, unit string) {
		files, _ := loadedFrom(unit)
		for _, file := range files {
			if !strings.HasPrefix(file, "/") || filepath.Clean(file) != file {
				t.Errorf("%q names %q", unit, file)
			}
		}
	})
}
