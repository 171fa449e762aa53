package enrol

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"wingman/bootstrap"
)

// The folders of token and root certificate are the agent's user's. What it puts there as a link must not have root give it the file behind, nor write to it,
// nor copy it.
func TestLinksOfTheAgentsUserAreNotFollowed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who may write to everything")
	}
	const uid = 990
	dir := t.TempDir()
	at := func(path string) string { return filepath.Join(dir, path) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{"tokens", "certs", "state", "etc", "real"} {
		must(os.Mkdir(at(folder), 0o755))
	}
	for _, folder := range []string{"tokens", "certs", "state"} {
		must(os.Chown(at(folder), uid, uid))
	}
	for _, file := range []string{"etc/rc.local", "etc/shadow", "real/env"} {
		must(os.WriteFile(at(file), []byte("root's"), 0o600))
	}
	for link, to := range map[string]string{"tokens/istio-token": "../etc/rc.local", "certs/root-cert.pem": at("etc/shadow")} {
		must(os.Symlink(to, at(link)))
		must(os.Lchown(at(link), uid, uid))
	}
	must(os.Symlink("../real/env", at("etc/cluster.env"))) // the operator's, who is root
	cfg := &bootstrap.Config{Root: "/", Paths: bootstrap.Paths{ClusterEnv: at("etc/cluster.env"), Token: at("tokens/istio-token"), RootCert: at("certs/root-cert.pem"), StateDir: at("state")}}
	cfg.Capture.UserKnown, cfg.Capture.ProxyUID, cfg.Capture.ProxyGID = true, uid, uid

	if _, _, err := machineOf(cfg).put(bundle{clusterEnv: []byte("A=1\n"), token: []byte("t"), rootCert: []byte("r")}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"etc/rc.local", "etc/shadow"} {
		info, err := os.Stat(at(file))
		must(err)
		if content, _ := os.ReadFile(at(file)); string(content) != "root's" || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s is %q of uid %d after a join", file, content, info.Sys().(*syscall.Stat_t).Uid)
		}
	}
	for file, want := range map[string]string{"tokens/istio-token": "t", "certs/root-cert.pem": "r", "real/env": "A=1\n"} {
		info, err := os.Lstat(at(file))
		must(err)
		if content, _ := os.ReadFile(at(file)); string(content) != want || !info.Mode().IsRegular() {
			t.Errorf("%s: %v with %q, want a file with %q", file, info.Mode(), content, want)
		}
	}
	if to, err := os.Readlink(at("certs/root-cert.pem.before-join")); to != at("etc/shadow") {
		t.Errorf("the link is not kept: %q, %v", to, err)
	}
	if info, err := os.Lstat(at("certs/root-cert.pem.before-join")); err != nil || info.Sys().(*syscall.Stat_t).Uid != uid {
		t.Errorf("the link that is kept has become root's: %v, %v", info, err)
	}
	if _, _, _, err := machineOf(cfg).undo(); err != nil {
		t.Error(err)
	}
	if to, err := os.Readlink(at("certs/root-cert.pem")); to != at("etc/shadow") {
		t.Errorf("the link is not back: %q, %v", to, err)
	}
	if content, _ := os.ReadFile(at("real/env")); string(content) != "root's" {
		t.Errorf("real/env: %q after undo", content)
	}

	// A folder of theirs that leads elsewhere is refused.
	must(os.Symlink(at("etc"), at("state/deep")))
	must(os.Lchown(at("state/deep"), uid, uid))
	if err := write(at("state/deep/new"), []byte("x"), 0o600, asIs); err == nil || !strings.Contains(err.Error(), "a link to one that root did not make") {
		t.Errorf("a write through a link of theirs: %v", err)
	}
	// So is a record that is none.
	must(os.RemoveAll(at("state/placed.json")))
	must(os.Symlink(at("etc/shadow"), at("state/placed.json")))
	if _, err := machineOf(cfg).record(); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a record behind a link: %v", err)
	}
	must(os.Remove(at("state/placed.json")))
	must(syscall.Mkfifo(at("state/placed.json"), 0o600))
	if _, err := machineOf(cfg).record(); err == nil || !strings.Contains(err.Error(), "is not a file") {
		t.Errorf("a record that is a pipe: %v", err)
	}
}
