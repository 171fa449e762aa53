package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"wingman/test/controlplane"
	"wingman/test/files"
)

// clone is another machine with this one's files, as one made from an image of it. Both are off.
func (m *Machine) clone(t *testing.T, name, prefix string) *Machine {
	t.Helper()
	c := &Machine{t: t, owner: t, name: name, segment: m.segment, root: filepath.Join(t.TempDir(), name)}
	must(t, exec.Command("cp", "--archive", m.root, c.root))
	const network = "/etc/systemd/network/10-host0.network"
	c.Write(network, strings.ReplaceAll(m.Read(network), "10.99.0.2/24", prefix), 0o644)
	c.Write("/etc/hostname", name+"\n", 0o644)
	return c
}

// exitCode runs a command whose exit code counts.
func (m *Machine) exitCode(argv ...string) (code int, out string) {
	m.t.Helper()
	out, err := m.Try(argv...)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), err.Error()
	} else if err != nil {
		m.t.Fatal(err)
	}
	return 0, out
}

// waits fails the test unless the machine waits for istioctl's files as it should: nothing is captured, redirected, failed or tried again.
func (m *Machine) waits(bareRules string) {
	m.t.Helper()
	if got := m.Run("systemctl", "is-system-running", "--wait"); got != "running" {
		m.t.Errorf("machine %s is %s, want running: %s", m.name, got, m.Run("systemctl", "--failed", "--plain", "--no-legend"))
	}
	for _, unit := range []string{"wingman.service", "wingman-proxy.service", "wingman-rules.service"} {
		if got := m.show(unit, "ActiveState") + " " + m.show(unit, "NRestarts"); got != "inactive 0" && got != "inactive " {
			m.t.Errorf("machine %s: %s is %q, want it inactive and never restarted", m.name, unit, got)
		}
		lines := m.Journal(unit)
		for _, e := range lines {
			m.t.Logf("machine %s: %s: %s", m.name, unit, e.Message)
		}
		if len(lines) > 1 {
			m.t.Errorf("machine %s: %s has %d lines in the journal, want at most one", m.name, unit, len(lines))
		}
	}
	if got := m.rules(); got != bareRules {
		m.t.Errorf("machine %s has rules:\n%s", m.name, got)
	}
	if got := m.Run("readlink", "/etc/resolv.conf"); got != "../run/systemd/resolve/stub-resolv.conf" {
		m.t.Errorf("machine %s: resolv.conf leads to %s", m.name, got)
	}
	if code, out := m.exitCode("wingman", "status"); code != 4 || !strings.Contains(out, "/var/lib/istio/envoy/cluster.env") {
		m.t.Errorf("machine %s: status exits with %d, want 4 and the missing file:\n%s", m.name, code, out)
	}
}

// One image, and what is made from it: the agent waits, and each machine joins by itself once its files are there, in whatever order they come.
func TestMachinesOfAnImageJoinByThemselves(t *testing.T) {
	dist := t.TempDir()
	build := exec.Command("sh", "../../packaging/build.sh", runtime.GOARCH)
	build.Env = append(build.Environ(), "VERSION=1.0.0", "DIST="+dist, "KINDS=deb")
	must(t, build)
	debs, _ := filepath.Glob(filepath.Join(dist, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("packaging/build.sh left %q, want one package", debs)
	}

	m := newMeshWithout(t)
	content := map[string]string{}
	for _, name := range []string{files.ClusterEnv, files.MeshConfig, files.Hosts, files.RootCert} {
		content[name] = m.Read("/" + name)
	}
	for name := range content {
		if err := os.RemoveAll(filepath.Join(m.root, filepath.Dir(name))); err != nil {
			t.Fatal(err)
		}
	}
	m.Boot()
	m.install(debs[0])
	m.settings()
	m.Run("systemctl", "enable", "wingman")
	bare := m.rules()
	m.Reboot()
	m.waits(bare)
	m.Run("systemctl", "stop", "wingman")
	if got := m.show("wingman.path", "ActiveState"); got != "inactive" {
		t.Errorf("after a stop of a waiting agent its path is %s, want inactive", got)
	}
	if code, out := m.exitCode("wingman", "status"); code != 1 {
		t.Errorf("after a stop the status exits with %d, want 1:\n%s", code, out)
	}
	if code, out := m.exitCode("wingman", "image", "check"); code != 0 || !strings.Contains(out, "wingman.service is enabled") {
		t.Errorf("image check on the build machine exits with %d, want 0 and the unit enabled:\n%s", code, out)
	} else {
		t.Logf("image check on the build machine:\n%s", out)
	}
	m.Sh("rm /root/wingman.deb; : >/etc/machine-id; journalctl --rotate --vacuum-time=1us")
	m.PowerOff()
	checkTree := func(m *Machine) (string, error) { // as with a mounted image, by this computer
		out, err := exec.Command(Wingman(t), "image", "check", "--root", m.root).CombinedOutput()
		return string(out), err
	}
	if out, err := checkTree(m.Machine); err != nil {
		t.Errorf("image check of the image: %v\n%s", err, out)
	}

	first, second := m.clone(t, "first", "10.99.0.3/24"), m.clone(t, "second", "10.99.0.4/24")
	put := func(m *Machine, name string) { // not in one step, as most write
		t.Helper()
		cmd := m.Command("sh", "-euc", `mkdir -p "$(dirname "$1")"; cat >"$1"`, "sh", "/"+name)
		cmd.Stdin = strings.NewReader(content[name])
		must(t, cmd)
	}
	for _, c := range []struct {
		m     *Machine
		order []string
	}{
		{first, []string{files.ClusterEnv, files.MeshConfig, files.Hosts, files.RootCert, files.Token}},
		{second, []string{files.Token, files.RootCert, files.Hosts, files.MeshConfig, files.ClusterEnv}},
	} {
		c.m.Boot()
		c.m.waits(bare)
		fresh, err := m.istiod.MintToken(controlplane.TokenOptions{Namespace: files.Namespace, ServiceAccount: files.ServiceAccount})
		if err != nil {
			t.Fatal(err)
		}
		content[files.Token] = fresh
		for i, name := range c.order {
			if name == files.ClusterEnv { // half of it first, which is right as far as it goes
				half := content[name][:strings.Index(content[name], "\n")+1]
				cmd := c.m.Command("sh", "-euc", `mkdir -p "$(dirname "$1")"; cat >"$1"`, "sh", "/"+name)
				cmd.Stdin = strings.NewReader(half)
				must(t, cmd)
			}
			put(c.m, name)
			if i == len(c.order)-1 {
				break
			}
			if name == files.Token {
				c.m.Sh("chown istio-proxy /run/secrets/tokens/istio-token; chmod 600 /run/secrets/tokens/istio-token")
			}
			next := c.order[i+1]
			if c.order[0] != files.ClusterEnv {
				continue // nothing runs yet
			}
			switch next {
			case files.MeshConfig, files.RootCert:
				c.m.await("a status that names "+next, func() bool {
					code, out := c.m.exitCode("wingman", "status")
					return code == 4 && strings.Contains(out, "waiting for /") && strings.Contains(out, "/"+next) && strings.Contains(out, "pid ") // the agent's own word
				})
			}
		}
		began := time.Now()
		c.m.Sh("chown istio-proxy /run/secrets/tokens/istio-token; chmod 600 /run/secrets/tokens/istio-token")
		c.m.await("the join", func() bool {
			out, _ := c.m.Try("wingman", "status")
			return strings.HasPrefix(out, "phase      joined")
		})
		t.Logf("%s: joined %s after its last file, %s", c.m.name, time.Since(began).Round(10*time.Millisecond), filepath.Base(c.order[len(c.order)-1]))
		for _, unit := range []string{"wingman.service", "wingman-proxy.service"} {
			if got := c.m.show(unit, "NRestarts"); got != "0" {
				t.Errorf("%s: %s was restarted %s times, want none", c.m.name, unit, got)
			}
		}
		for _, e := range c.m.Journal("") {
			if strings.Contains(e.Unit+e.Message, "wingman") {
				t.Logf("%s: %s %s: %s", c.m.name, e.At.Format("05.000"), e.Unit, e.Message)
				if e.Priority <= 3 {
					t.Errorf("%s: the journal complains: %+v", c.m.name, e)
				}
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.istiod.WaitEntries(ctx, func(es []controlplane.Entry) bool {
		return len(es) == 2 && es[0].Connected && es[1].Connected && es[0].Name != es[1].Name
	}); err != nil {
		t.Fatalf("entries: %v: %+v", err, m.istiod.Entries())
	}
	keys := map[string]bool{}
	for _, m := range []*Machine{first, second} {
		m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
		keys[m.Sh("openssl x509 -noout -serial -in /etc/certs/cert-chain.pem 2>/dev/null || sha256sum </etc/certs/cert-chain.pem")] = true
	}
	if len(keys) != 2 {
		t.Error("both machines have the same certificate")
	}

	// A stop is a stop, whatever happens to the files then.
	first.Run("systemctl", "stop", "wingman")
	first.Sh("touch /var/lib/istio/envoy/cluster.env; echo >>/var/lib/istio/envoy/cluster.env")
	second.Sh("systemctl restart wingman")
	second.waitActive("wingman.service")
	if got := first.show("wingman.service", "ActiveState") + first.show("wingman.path", "ActiveState"); got != "inactiveinactive" {
		t.Errorf("after a stop and a change of cluster.env the agent and its path are %q, want both inactive", got)
	}
	first.Run("systemctl", "start", "wingman")
	first.waitActive("wingman.service")

	// An image of this machine would be dirty, and one command makes it clean.
	code, out := first.exitCode("wingman", "image", "check")
	t.Logf("image check of a member:\n%s", out)
	for _, want := range []string{"/var/lib/wingman/joined.json: ", "/key.pem: ", "/var/lib/wingman/nametable: ", "/etc/certs/cert-chain.pem: "} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("image check of a member exits with %d, want 1 and a line with %q:\n%s", code, want, out)
		}
	}
	if code, out := first.exitCode("wingman", "image", "clean"); code != 1 || !strings.Contains(out, "systemctl stop wingman") {
		t.Errorf("image clean beside a running agent exits with %d, want 1 and how to stop it:\n%s", code, out)
	}
	if strings.Contains(out, "/run/") {
		t.Error("image check names what lies on a tmpfs, which no image holds")
	}
	first.Run("systemctl", "stop", "wingman")
	if code, out := first.exitCode("wingman", "image", "clean"); code != 0 {
		t.Errorf("image clean exits with %d:\n%s", code, out)
	}
	first.PowerOff()
	if out, err := checkTree(first); err != nil {
		t.Errorf("image check of a cleaned image: %v\n%s", err, out)
	}
	if out, err := checkTree(second); err == nil {
		t.Errorf("image check of the tree of a member is content:\n%s", out)
	}
}
