package image

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

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
		"etc/os-release":                         "-> ../usr/lib/os-release",
		"usr/lib/os-release":                     "ID=debian\n",
		"etc/credstore/of-another-service":       "no key",
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
		{"another token beside it", map[string]string{"srv/tokens/older": jwt}, map[string]string{"/srv/tokens/older": "a token"}, true},
		{"a key where a setting says", map[string]string{"srv/certs/key.pem": key, "srv/certs/groups/app/current/cert-chain.pem": leaf},
			map[string]string{"/srv/certs/key.pem": "a private key", "/srv/certs/groups/app/current/cert-chain.pem": "a workload's certificate"}, false},
		{"a key of another name there", map[string]string{"srv/certs/any-name": key}, map[string]string{"/srv/certs/any-name": "a private key"}, true},
		{"what Istio's agent left", map[string]string{"var/lib/istio/proxy/envoy-rev.json": "{}"}, map[string]string{"/var/lib/istio/proxy/envoy-rev.json": "address"}, false},
		{"a key behind Istio's link", map[string]string{"var/lib/istio/deep/er/k": key}, map[string]string{"/var/lib/istio/deep/er/k": "a private key"}, true},
		{"a key deeper than anybody looks by hand", map[string]string{"etc/certs/1/2/3/4/5/6/7/8/k": key}, map[string]string{"/etc/certs/1/2/3/4/5/6/7/8/k": "a private key"}, true},
		{"state deeper than anybody looks by hand", map[string]string{"var/lib/wingman/1/2/3/4/5/6/7/8/k": key}, map[string]string{"/var/lib/wingman/1/2/3/4/5/6/7/8/k": "state"}, false},
		{"a key in a file of some size", map[string]string{"etc/certs/large": strings.Repeat("# nothing\n", 1<<19) + key}, map[string]string{"/etc/certs/large": "a private key"}, true},
		{"a key in DER", map[string]string{"etc/certs/key.der": der(key)}, map[string]string{"/etc/certs/key.der": "a private key"}, true},
		{"a key by a link", map[string]string{"etc/certs/key.pem": "-> /opt/elsewhere", "opt/elsewhere": key}, map[string]string{"/opt/elsewhere": "a private key (/etc/certs/key.pem leads to it)"}, true},
		{"a key by a link of a link", map[string]string{"etc/certs/key.pem": "-> other", "etc/certs/other": "-> ../../opt/elsewhere", "opt/elsewhere": key},
			map[string]string{"/opt/elsewhere": "a private key"}, true},
		{"a key in a folder by a link", map[string]string{"etc/certs/more": "-> /opt/elsewhere", "opt/elsewhere/deep/er/k": key},
			map[string]string{"/opt/elsewhere/deep/er/k": "a private key (/etc/certs/more leads to it)"}, true},
		{"a token by a link where a setting says", map[string]string{"srv/tokens/mine": "-> ../vault/t", "srv/vault/t": "no JWT even"}, map[string]string{"/srv/vault/t": "a token"}, false},
		{"credentials by a link", map[string]string{
			"etc/credstore/istio-token": "-> /srv/vault/t", "srv/vault/t": "x", "root/secret": "-> /srv/vault/u", "srv/vault/u": "x",
			"etc/systemd/system/wingman.service.d/token.conf": "-> /srv/unit.conf", "srv/unit.conf": "[Service]\nLoadCredential=istio-token:/root/secret\n",
		}, map[string]string{"/srv/vault/t": "credential", "/srv/vault/u": "credential"}, true},
		{"what our user-data left", map[string]string{"root/wingman-bundle/istio-token": "x", "root/wingman-bundle/mesh.yaml": "a: b\n"}, map[string]string{"/root/wingman-bundle/istio-token": "a token"}, false},
		{"a service account of Google's", map[string]string{"etc/wingman/account.json": `{"private_key": ` + inJSON(key) + `}`}, map[string]string{"/etc/wingman/account.json": "a private key"}, true},
		{"user-data in base64 of many lines", map[string]string{"var/lib/cloud/instances/i-1/user-data.txt": wrapped(inBase64Of(jwt), "\n")},
			map[string]string{"/var/lib/cloud/instances/i-1/user-data.txt": "cloud-init's copy of a token"}, true},
		{"user-data with a key", map[string]string{"var/lib/cloud/instances/i-1/user-data.txt": "content: " + inBase64Of(key)},
			map[string]string{"/var/lib/cloud/instances/i-1/user-data.txt": "cloud-init's copy of a private key"}, true},
		{"packed user-data", map[string]string{"var/lib/cloud/instances/i-1/user-data.txt": packed("content: " + inBase64Of(jwt))},
			map[string]string{"/var/lib/cloud/instances/i-1/user-data.txt": "cloud-init's copy of a token"}, true},
		{"Azure's user-data", map[string]string{"var/lib/waagent/ovf-env.xml": "<CustomData>" + inBase64Of("x: "+jwt) + "</CustomData>"},
			map[string]string{"/var/lib/waagent/ovf-env.xml": "Azure's copy of a token"}, true},
		{"copies for groups", map[string]string{"etc/certs/groups/app/.1/key.pem": key}, map[string]string{"/etc/certs/groups/app/.1/key.pem": "a private key"}, false},
		{"what a join kept", map[string]string{"var/lib/istio/envoy/sidecar.env.before-join": "A=1\n"}, map[string]string{"/var/lib/istio/envoy/sidecar.env.before-join": "replaced"}, false},
		{"credentials", map[string]string{
			"etc/credstore/istio-token": "x", "etc/credstore.encrypted/wingman-seal-key": "x", "root/istio-token": "x",
			"etc/systemd/system/wingman.service.d/seal.conf":  "[Service]\n",
			"etc/systemd/system/wingman.service.d/token.conf": "[Service]\nLoadCredential=istio-token:/root/istio-token\n",
		}, map[string]string{"/etc/credstore/istio-token": "credential", "/etc/credstore.encrypted/wingman-seal-key": "credential", "/root/istio-token": "credential",
			"/etc/systemd/system/wingman.service.d/seal.conf": "only the build machine"}, false},
		{"a credential of a name of its own", map[string]string{"root/secret": "x", "etc/systemd/system/wingman.service.d/token.conf": "[Service]\nLoadCredential=istio-token:/root/secret\n"},
			map[string]string{"/root/secret": "credential"}, true},
		{"a credential in the unit", map[string]string{"etc/systemd/system/wingman.service.d/x.conf": "[Service]\nSetCredential=istio-token:abc\n"},
			map[string]string{"/etc/systemd/system/wingman.service.d/x.conf": "SetCredential"}, true},
		{"a credential of another name in the store", map[string]string{"etc/credstore/build-token": "no JWT even", "etc/systemd/system/wingman.service.d/t.conf": "[Service]\nLoadCredential=istio-token:build-token\n"},
			map[string]string{"/etc/credstore/build-token": "credential"}, true},
		{"a credential that goes by its own name", map[string]string{"usr/lib/credstore/mine": "x", "etc/systemd/system/wingman-.service.d/t.conf": "[Service]\nLoadCredential=mine\n"},
			map[string]string{"/usr/lib/credstore/mine": "credential"}, true},
		{"imported credentials", map[string]string{"etc/credstore/wm.a": "x", "etc/credstore/other": "x", "etc/systemd/system/service.d/t.conf": "[Service]\nImportCredential=wm.*\n"},
			map[string]string{"/etc/credstore/wm.a": "credential"}, true},
		{"a token in the store that nobody names", map[string]string{"etc/credstore/any": jwt}, map[string]string{"/etc/credstore/any": "a token"}, true},
		{"a credential below a specifier", map[string]string{"var/lib/x/tok": "x", "etc/systemd/system/wingman.service.d/t.conf": "[Service]\nLoadCredential=istio-token:\\\n  %S/x/tok\n"},
			map[string]string{"/var/lib/x/tok": "credential"}, true},
		{"a token in the unit's environment", map[string]string{"etc/systemd/system/wingman.service.d/t.conf": "[Service]\nEnvironment=CA_TOKEN=" + jwt + "\n"},
			map[string]string{"/etc/systemd/system/wingman.service.d/t.conf": "a token in the unit itself"}, true},
		{"a token in a file of environment", map[string]string{"etc/default/wm": "CA_TOKEN=" + jwt + "\n", "etc/systemd/system/wingman.service.d/t.conf": "[Service]\nEnvironmentFile=-/etc/default/wm\n"},
			map[string]string{"/etc/default/wm": "a token"}, true},
		{"a token in everybody's environment", map[string]string{"etc/systemd/system.conf.d/t.conf": "[Manager]\nDefaultEnvironment=CA_TOKEN=" + jwt + "\n"},
			map[string]string{"/etc/systemd/system.conf.d/t.conf": "a token"}, true},
		{"packed files", map[string]string{"etc/certs/k.xz": "\xfd7zXZ\x00\x00\x04", "etc/certs/k.bz2": "BZh91AY&SY\x01\x02\x03\x04", "etc/wingman/k.zst": "\x28\xb5\x2f\xfd\x04", "var/lib/istio/k": packed("PK\x03\x04 a zip")},
			map[string]string{"/etc/certs/k.xz": "(xz) that is not looked into", "/etc/certs/k.bz2": "(bzip2)", "/etc/wingman/k.zst": "(zstd)", "/var/lib/istio/k": "(zip)"}, true},
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

// On the machine itself the token's path is not resolved by the settings: the link is looked through all the same.
func TestALinkInTheTokensPlace(t *testing.T) {
	root := t.TempDir()
	lay(t, root, map[string]string{"srv/tokens/mine": "-> /srv/vault/t", "srv/vault/t": "no JWT even"})
	tree, err := openTree(root)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.dir.Close()
	l := &looker{tree: tree, found: map[string]Finding{}}
	l.exactly("/srv/tokens/mine", "a token")
	if got := l.found["/srv/vault/t"].What; len(l.found) != 1 || got != "a token (/srv/tokens/mine leads to it)" {
		t.Errorf("found %+v, want the token that the link leads to", l.found)
	}
}

// The command removes what is ours by name or place. What lies beside it may be a stranger's, whatever it holds.
func TestCleanLeavesStrangersFiles(t *testing.T) {
	leaf, key := pair(t, false)
	root, _ := clean(t)
	strangers := map[string]string{
		"srv/tokens/server.key": key, "srv/tokens/other.jwt": jwt, "etc/certs/nginx/tls.key": key, "etc/certs/nginx/key.pem": key, "etc/certs/mine.pem": leaf, "opt/tls/key.pem": key,
		"var/lib/istio/backup/k": key, "etc/wingman/account.json": `{"private_key": ` + inJSON(key) + `}`,
	}
	lay(t, root, strangers)
	lay(t, root, map[string]string{"srv/tokens/mine": jwt, "etc/certs/key.pem": key, "srv/certs/key.pem": "-> /opt/tls/key.pem", "var/lib/wingman/identity/token": jwt})
	removed, left, err := Clean(root)
	if want := []string{"/etc/certs/key.pem", "/srv/tokens/mine", "/var/lib/wingman/identity/token"}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("removed %q, %v; want %q", removed, err, want)
	}
	var paths []string
	for _, f := range left.Findings {
		paths = append(paths, strings.TrimPrefix(f.Path, "/"))
		if f.Clean != byHand {
			t.Errorf("%s: the way to clean it is %q, want %q", f.Path, f.Clean, byHand)
		}
	}
	want := slices.Sorted(maps.Keys(strangers))
	if !slices.Equal(paths, want) {
		t.Errorf("left %q, want %q", paths, want)
	}
	for name := range strangers {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("a stranger's file is gone: %v", err)
		}
	}
}

// What is public, or lies where nobody asked us to look, makes no image dirty.
func TestStrangersMakeNoImageDirty(t *testing.T) {
	leaf, key := pair(t, false)
	ca, _ := pair(t, true)
	root, _ := clean(t)
	lay(t, root, map[string]string{
		"etc/ssl/certs/ca-certificates.crt":           strings.Repeat(ca, 200),
		"etc/certs/system.pem":                        "-> /etc/ssl/certs/ca-certificates.crt",
		"etc/certs/roots":                             "-> /etc/ssl/certs",
		"etc/certs/web.pem":                           server(t),
		"etc/certs/loop":                              "-> ../certs",
		"etc/certs/self":                              "-> self",
		"etc/certs/gone":                              "-> /nowhere/at/all",
		"etc/certs/null":                              "-> /etc/machine-id/below",
		"srv/tokens/database":                         strings.Repeat("\x00", 17<<20), // beside the token
		"srv/tokens/of-bob":                           "-> /home/bob/key",
		"srv/tokens/deep/er/key":                      key,
		"home/bob/key":                                key,
		"var/lib/waagent/Incarnation":                 jwt,
		"root/chain.pem":                              leaf,
		"var/lib/cloud/instance":                      "-> /var/lib/cloud/instances/i-1",
		"var/lib/cloud/instances/i-1/vendor-data.txt": "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAjwLz9sS6mR7yZ1bIYO0y2vJhLZ6hTgWmqK6o1uVdVn me]\nca: " + inBase64Of(ca) + "\n",
	})
	if r, err := Check(root); err != nil || !r.Clean {
		t.Errorf("%+v, %v; want it clean", r.Findings, err)
	}
}

// What is too large or too deep to look at is not proven clean.
func TestBeyondItsBoundsAnImageIsNotClean(t *testing.T) {
	deep := strings.Repeat("d/", 60)
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"a large file", map[string]string{"etc/certs/large": strings.Repeat("\x00", 17<<20)}, "/etc/certs/large: more than 16 MB"},
		{"a large copy of user-data", map[string]string{"var/lib/cloud/instances/i-1/user-data.txt": strings.Repeat("\x00", 17<<20)}, "user-data.txt: more than 16 MB"},
		{"a large file by a link", map[string]string{"etc/certs/large": "-> /opt/x", "opt/x": strings.Repeat("\x00", 17<<20)}, "/opt/x: more than 16 MB"},
		{"a deep folder", map[string]string{"etc/certs/" + deep + "f": "x"}, "folders deep"},
		{"a deep folder of state", map[string]string{"var/lib/wingman/" + deep + "f": "x"}, "folders deep"},
	} {
		root, _ := clean(t)
		lay(t, root, tt.files)
		if r, err := Check(root); err == nil || r.Clean || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: clean %v, %v; want %q", tt.name, r.Clean, err, tt.want)
		}
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
	for _, lacks := range []string{"etc/os-release", "var/lib", "etc"} {
		root, _ := clean(t)
		if err := os.RemoveAll(filepath.Join(root, lacks)); err != nil {
			t.Fatal(err)
		}
		if lacks == "etc/os-release" {
			if err := os.RemoveAll(filepath.Join(root, "usr/lib/os-release")); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := Check(root); err == nil || r.Clean || !strings.Contains(err.Error(), "not all mounted: it has no /"+lacks) {
			t.Errorf("without %s: %+v, %v; want the problem", lacks, r, err)
		}
	}
	for _, setting := range []string{"LoadCredential=istio-token:%h/token", "LoadCredential=istio-token:some/where", "EnvironmentFile=/etc/default/wm*"} {
		root, _ := clean(t)
		lay(t, root, map[string]string{"etc/systemd/system/wingman.service.d/t.conf": "[Service]\n" + setting + "\n"})
		if r, err := Check(root); err == nil || r.Clean || !strings.Contains(err.Error(), setting) {
			t.Errorf("%s: clean %v, %v; want the problem", setting, r.Clean, err)
		}
	}
}

func TestNotesAreNoFault(t *testing.T) {
	root, _ := clean(t)
	lay(t, root, map[string]string{
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/hostname": "build-7\n", "var/lib/systemd/credential.secret": "x", "var/log/journal/0123/system.journal": "x",
		"var/lib/istio/envoy/cluster.env": "ISTIO_META_CLUSTER_ID='x'\nPOD_NAMESPACE='forum-services'\nSERVICE_ACCOUNT='forum-sa'\n",
	})
	r, err := Check(root)
	if err != nil || !r.Clean || len(r.Notes) != 5 || !strings.Contains(strings.Join(r.Notes, "\n"), `/etc/hostname is "build-7"`) || !strings.Contains(r.Notes[0], "ns/forum-services/sa/forum-sa") {
		t.Errorf("%+v, %v; want five notes", r, err)
	}
}
