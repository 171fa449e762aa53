package vm

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wingman/test/controlplane"
	"wingman/test/files"
)

// istioctlDir is where an operator has istioctl's files.
const istioctlDir = "/root/vm-files"

// leftTree lists what a join may change, with modes, owners and content.
func (m *mesh) leftTree() string {
	return m.Sh(`cd /; places=$(ls -d etc/istio etc/certs etc/wingman etc/systemd/system var/lib/istio var/lib/wingman run/wingman run/wingman-proxy run/wingman-guard run/secrets 2>/dev/null || :)
		(find $places -printf '%p %y %m %u:%g %l\n'; find $places -type f -exec md5sum '{}' +) | sort`)
}

func TestJoinAndLeave(t *testing.T) {
	m := newMesh(t, func(m *mesh) {
		must(t, exec.Command("systemctl", "--root="+m.root, "--quiet", "disable", "wingman.service"))
		for name, to := range map[string]string{
			files.ClusterEnv: "cluster.env", files.MeshConfig: "mesh.yaml", files.Hosts: "hosts", files.RootCert: "root-cert.pem",
		} {
			m.Write(istioctlDir+"/"+to, m.Read("/"+name), 0o644)
			must(t, exec.Command("rm", m.root+"/"+name))
		}
	})
	m.Sh("mv /run/secrets/tokens/istio-token " + istioctlDir + "/istio-token; rm -rf /run/secrets/tokens /run/secrets; chmod 755 /root")
	rules, tree := m.rules(), m.leftTree()
	if got := m.Run("wingman", "leave"); !strings.Contains(got, "nothing to undo") {
		t.Errorf("leave before a join says %q", got)
	}
	for round, from := range []string{istioctlDir, "/root/vm-files.tar.gz"} {
		if round == 1 {
			m.Sh("tar czf /root/vm-files.tar.gz -C /root vm-files")
		}
		began := time.Now()
		out, err := m.Try("wingman", "join", from)
		if err != nil {
			t.Fatalf("join from %s: %v\n%s", from, err, m.lastWords())
		}
		t.Logf("join from %s took %s:\n%s", from, time.Since(began).Round(time.Millisecond), out)
		m.entry("joined", serving)
		m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
		if got := m.Sh("stat -c '%a %U' /run/secrets/tokens/istio-token /run/secrets/tokens; systemctl is-enabled wingman wingman-rules"); got != "600 istio-proxy\n700 istio-proxy\nenabled\nenabled" {
			t.Errorf("after a join: %q", got)
		}
		if round == 1 { // what leave finds when the agent is down, and was when it was killed
			m.Sh("systemctl kill --signal=KILL wingman; systemctl stop wingman || :; iptables -t nat -N ISTIO_OUTPUT 2>/dev/null || :")
		}
		out = m.Run("wingman", "leave")
		t.Logf("leave:\n%s", out)
		want := "istiod was told"
		if round == 1 {
			want = "was not running"
		}
		if !strings.Contains(out, want) {
			t.Errorf("leave says %q, want %q in it", out, want)
		}
		if got := m.rules(); got != rules && strings.Contains(got, "ISTIO") {
			t.Errorf("rules are left:\n%s", got)
		}
		if got := m.leftTree(); got != tree {
			t.Errorf("after leave %d the files are\n%s\nwant\n%s", round, got, tree)
		}
		if got, _ := m.Try("systemctl", "is-active", "wingman", "wingman-proxy", "wingman-rules"); strings.Contains(got, "\nactive") || strings.HasPrefix(got, "active") {
			t.Errorf("units are %q after leave", got)
		}
		m.entry("left", func(e controlplane.Entry) bool { return !e.Connected })
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.istiod.WaitEntries(ctx, func(es []controlplane.Entry) bool { return len(es) == 0 }); err != nil {
		t.Errorf("the entry is still there: %v", err)
	}
	told := 0
	for _, event := range m.istiod.Events() {
		if event.Kind == controlplane.HealthReported && !event.Healthy {
			told++
		}
	}
	if told == 0 {
		t.Error("istiod was never told that the machine is unhealthy")
	}
}

// Who tries rules may lose the session that he does it in, and systemd ends everything of it: the guardian is not part of it.
func TestATrialOutlivesItsSession(t *testing.T) {
	m := newMesh(t)
	m.Run("systemctl", "stop", "wingman")
	bare := m.rules()
	m.Run("systemd-run", "--quiet", "--wait", "--unit=session", "wingman", "rules", "try", "--for", "5s")
	if in := m.rules(); !strings.Contains(in, "ISTIO_OUTPUT") {
		t.Fatalf("the rules on trial are not in:\n%s", in)
	}
	if got := m.Sh("systemctl list-units --no-legend --plain 'wingman-trial-*.scope'"); !strings.Contains(got, "running") {
		t.Errorf("there is no scope of the guardian: %q", got)
	}
	m.await("the former rules", func() bool { return !strings.Contains(m.rules(), "ISTIO_OUTPUT") })
	if got := m.rules(); strings.Contains(got, "wingman-trial") && !strings.Contains(bare, "wingman-trial") {
		t.Errorf("the trial's mark is left:\n%s", got)
	}
}
