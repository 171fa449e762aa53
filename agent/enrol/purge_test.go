package enrol

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wingman/agent"
	"wingman/bootstrap"
)

// A purge has no program and no settings to ask: what join and agent have put outside of the state folder goes by their lists, and nothing else does.
func TestAPurgeTakesWhatLiesElsewhere(t *testing.T) {
	const removal = "../../packaging/scripts/postremove.sh"
	if _, err := os.Stat(removal); err != nil { // go test sees by this that the script was changed
		t.Fatal(err)
	}
	type files map[string]string // by path; "-> X" is a link to X
	lay := func(t *testing.T, root string, files files) {
		t.Helper()
		for name, content := range files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			if to, isLink := strings.CutPrefix(content, "-> "); isLink {
				err = os.Symlink(to, path)
			} else {
				err = os.WriteFile(path, []byte(content), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	tree := func(t *testing.T, root string) string {
		t.Helper()
		var all []string
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			is, err := os.Readlink(path)
			if err != nil {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				is = string(b)
			}
			all = append(all, strings.TrimPrefix(path, root)+": "+strings.TrimSpace(is))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return strings.Join(all, "\n")
	}
	strangers := files{ // there before, and afterwards
		"etc/passwd":                      fmt.Sprintf("root:x:0:0::/:/bin/sh\nistio-proxy:x:%d:%d::/:/bin/sh", os.Getuid(), os.Getgid()),
		"srv/mesh/tls.key":                "somebody's",
		"srv/mesh/groups/web/key.pem":     "somebody's",
		"srv/log/agent.log.old":           "somebody's",
		"srv/log/other.log":               "somebody's",
		"srv/old/key.pem":                 "-> /etc/ssl/key.pem",
		"var/lib/istio/envoy/cluster.env": "OLD=1",
		"etc/istio/config/mesh":           "edited",
	}
	ours := files{ // an agent's that runs, and of settings of before
		"var/lib/wingman/joined.json":                   "{}",
		"var/lib/wingman/identity/generations/1/key":    "key",
		"srv/mesh/key.pem":                              "-> ../../var/lib/wingman/identity/current/key.pem",
		"srv/mesh/.cert-chain.pem.wingman":              "-> ../../var/lib/wingman/identity/current/cert-chain.pem",
		"srv/mesh/groups/app/1/key.pem":                 "key",
		"srv/mesh/groups/app/2/key.pem":                 "key",
		"srv/mesh/groups/app/new/key.pem":               "key",
		"srv/mesh/groups/app/current":                   "-> 2",
		"srv/mesh/groups/app/key.pem":                   "-> current/key.pem",
		"srv/log/agent log":                             "log",
		"srv/log/agent log.1":                           "log",
		"srv/log/agent log-20261124.gz":                 "log",
		"srv/before/key.pem":                            "-> ../../run/wingman/identity/current/key.pem",
		"srv/before/groups/app/7/key.pem":               "key",
		"srv/before/groups/app/current":                 "-> 7",
		"etc/certs/key.pem":                             "-> ../../var/lib/wingman/identity/current/key.pem",
		"etc/wingman/wingman.yaml":                      "identity: {outputDir: [broken",
		"etc/certs/groups/app/3/key.pem":                "key",
		"etc/certs/groups/app/current":                  "-> 3",
		"etc/certs/groups/app/current.new":              "-> 4",
		"etc/credstore.encrypted/wingman-seal-key":      "sealed",
		"etc/systemd/system/wingman.service.d/our.conf": "[Service]",
	}
	config := func(root, output string) *bootstrap.Config {
		cfg := &bootstrap.Config{Root: root, Paths: bootstrap.DefaultPaths(root)}
		cfg.Paths.OutputCerts, cfg.Log.File = filepath.Join(root, output), filepath.Join(root, "srv/log/agent log")
		return cfg
	}
	for _, tt := range []struct {
		name, argument string
		before         func(t *testing.T, root string) // what somebody does in between
		stays          files                           // beside what was there before

	}{
		{name: "purge", argument: "purge", stays: files{"etc/wingman/wingman.yaml": "identity: {outputDir: [broken"}}, // dpkg takes its settings by itself
		{name: "what was changed since the join", argument: "purge", before: func(t *testing.T, root string) {
			if err := os.WriteFile(filepath.Join(root, "var/lib/istio/envoy/cluster.env"), []byte("MINE=1"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, stays: files{"etc/wingman/wingman.yaml": "identity: {outputDir: [broken", "var/lib/istio/envoy/cluster.env": "MINE=1", "var/lib/istio/envoy/cluster.env.before-join": "OLD=1"}},
		{name: "removal of an .rpm", argument: "0"},
		{name: "lists that lead out", argument: "purge", before: func(t *testing.T, root string) {
			// A folder that is a link out of the root, and lists that name what is not the agent's.
			outside := t.TempDir()
			t.Cleanup(func() {
				if got := tree(t, outside); !strings.Contains(got, "/groups/app/1/key.pem: key") || !strings.Contains(got, "/agent.log: log") {
					t.Errorf("outside of the root there is only\n%s", got)
				}
			})
			lay(t, outside, files{"groups/app/1/key.pem": "key", "groups/app/current": "-> 1", "agent.log": "log"})
			lay(t, root, files{"srv/out": "-> " + outside})
			list := filepath.Join(root, "var/lib/wingman", "elsewhere")
			b, err := os.ReadFile(list)
			if err == nil {
				err = os.WriteFile(list, append(b, "output /srv/out\nlog /srv/out/agent.log\noutput srv/mesh\nlog /srv/log\noutput /srv/old\n"...), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, stays: files{"etc/wingman/wingman.yaml": "identity: {outputDir: [broken", "srv/out": ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, want := t.TempDir(), t.TempDir()
			lay(t, root, strangers)
			cfg := config(root, "srv/mesh")
			if _, backups, err := machineOf(cfg).put(bundle{clusterEnv: []byte("NEW=1\n"), meshYAML: []byte("edited"), hosts: []byte("h"), token: []byte("t"), rootCert: []byte("r")}); err != nil || len(backups) != 1 {
				t.Fatalf("kept %q, %v", backups, err)
			}
			for _, c := range []*bootstrap.Config{config(root, "srv/before"), cfg, cfg} {
				if err := agent.NoteElsewhere(c); err != nil {
					t.Fatal(err)
				}
			}
			lay(t, root, ours)
			if err := os.Rename(filepath.Join(root, "etc/certs/root-cert.pem"), filepath.Join(root, "etc/certs/root-cert.pem.before-wingman")); err != nil {
				t.Fatal(err)
			}
			lay(t, root, files{"etc/certs/root-cert.pem": "-> ../../var/lib/wingman/identity/current/root-cert.pem"})
			if tt.before != nil {
				tt.before(t, root)
			}
			helpers := t.TempDir() // Debian's own refuses to be called by anybody but dpkg
			if err := os.WriteFile(filepath.Join(helpers, "deb-systemd-helper"), []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("sh", removal, tt.argument)
			cmd.Env = []string{"PATH=" + helpers + ":/usr/bin:/bin", "DPKG_ROOT=" + root}
			if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("postremove.sh %s: %v\n%s", tt.argument, err, out)
			}
			if tt.argument == "0" { // no purge follows: keys go from where applications read them, the rest is the owner's to delete
				for name := range ours {
					_, err := os.Lstat(filepath.Join(root, name))
					if isOutput := strings.HasPrefix(name, "srv/mesh/") || strings.HasPrefix(name, "srv/before/") || strings.HasPrefix(name, "etc/certs/"); (err != nil) != isOutput {
						t.Errorf("%s: %v", name, err)
					}
				}
				for name := range strangers {
					if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
						t.Error(err)
					}
				}
				return
			}
			after := files{}
			for _, m := range []files{strangers, tt.stays} {
				for name, content := range m {
					after[name] = content
				}
			}
			if to, err := os.Readlink(filepath.Join(root, "srv/out")); err == nil {
				after["srv/out"] = "-> " + to
			}
			lay(t, want, after)
			if got, want := tree(t, root), tree(t, want); got != want {
				t.Errorf("there is\n%s\nwant\n%s", got, want)
			}
			for _, dir := range []string{"var/lib/wingman", "etc/certs", "srv/mesh/groups/app", "var/run/secrets"} {
				if _, err := os.Lstat(filepath.Join(root, dir)); err == nil {
					t.Errorf("the folder /%s is left", dir)
				}
			}
		})
	}
}
