package vm

import (
	"strings"
	"testing"
)

// TestASealedIdentityIsOfNoUseElsewhere seals a member's identity with a key that systemd encrypted to its machine, reboots it, and puts the store on another machine.
func TestASealedIdentityIsOfNoUseElsewhere(t *testing.T) {
	m := newMesh(t)
	if out, err := m.Try("systemd-creds", "setup"); err != nil { // what a first boot does: the host's own key
		t.Fatalf("%v\n%s", err, out)
	}
	m.Run("systemctl", "start", "wingman.service")
	m.await("the join", func() bool {
		out, _ := m.Try("wingman", "cert", "show")
		return strings.Contains(out, "state        valid")
	})
	before := m.serial()
	// The agent, which is not root, tells this machine from a copy of it by its product UUID, where it has one.
	if out := m.Sh("cd /run/wingman-machine 2>/dev/null && stat -c '%a %U' . product; cat /sys/class/dmi/id/product_uuid 2>/dev/null || true"); out != "" {
		if !strings.HasPrefix(out, "755 root\n444 root\n") || !strings.Contains(m.Sh("cat /var/lib/wingman/identity/current/meta.json"), `"product": "`+m.Sh("cat /run/wingman-machine/product")+`"`) {
			t.Errorf("the product: %s", out)
		}
	} else {
		t.Log("this machine has no product UUID")
	}

	said := m.Run("wingman", "cert", "seal")
	if !strings.Contains(said, "encrypted to this machine") || !strings.Contains(said, "identity.seal: true") {
		t.Errorf("cert seal says\n%s", said)
	}
	m.Sh("echo 'identity: {seal: true}' >>" + settingsFile)
	m.Run("systemctl", "restart", "wingman.service")
	m.await("the sealed store", func() bool {
		out, err := m.Try("grep", "-c", "wingman-sealed-1", "/var/lib/wingman/identity/current/key.pem")
		return err == nil && out == "1"
	})
	if out, err := m.Try("grep", "-rl", "PRIVATE KEY", "/var/lib/wingman"); err == nil {
		t.Errorf("a key is in the clear at %s", out)
	}
	if got := m.serial(); got != before {
		t.Errorf("sealing changed the certificate from %s to %s", before, got)
	}
	// Applications read it where a power cut takes it away.
	if got := m.Sh("readlink -f /etc/certs/key.pem; stat -c '%a %U' /etc/certs/key.pem -L; stat -f -c %T /etc/certs/key.pem"); !strings.HasPrefix(got, "/run/wingman/identity/generations/") || !strings.Contains(got, "600 istio-proxy\ntmpfs") {
		t.Errorf("what applications read:\n%s", got)
	}
	out := m.Run("systemd-analyze", "security", "--no-pager", "--threshold=20", "wingman.service")
	t.Log(out[strings.LastIndex(out, "→"):])
	if out, err := m.Try("wingman", "cert", "unseal"); err == nil {
		t.Errorf("unseal of a sealed store says %s", out)
	}

	m.Reboot()
	m.waitActive("wingman.service")
	m.await("the certificate after a reboot", func() bool {
		out, _ := m.Try("wingman", "cert", "show")
		return strings.Contains(out, "state        valid")
	})
	if got := m.serial(); got != before {
		t.Errorf("after a reboot the certificate is %s, want %s", got, before)
	}

	// A key that cannot be decrypted, or is gone, keeps nothing from starting: it is said, and a token does what it can.
	m.Run("systemctl", "stop", "wingman.service")
	for _, lose := range []string{
		"cp /var/lib/systemd/credential.secret /root/secret && rm /var/lib/systemd/credential.secret && systemd-creds setup",
		"mv /etc/credstore.encrypted/wingman-seal-key /root/key",
	} {
		m.Sh("rm -rf /run/wingman/identity; rm -f /var/lib/wingman/identity/token /run/secrets/tokens/istio-token; " + lose)
		m.Run("systemctl", "start", "wingman.service")
		m.waitActive("wingman.service")
		m.await("the sentence after "+lose, func() bool {
			out, _ := m.Try("wingman", "cert", "show")
			return strings.Contains(out, "the unit has no key (credential wingman-seal-key, which is missing or not this machine's)")
		})
		if out, err := m.Try("wingman", "cert", "unseal"); err == nil || !strings.Contains(err.Error(), "--discard") {
			t.Errorf("unseal says %s, %v", out, err)
		}
		m.token()
		m.await("the join by a token", func() bool {
			out, _ := m.Try("wingman", "cert", "show")
			return strings.Contains(out, "state        valid")
		})
		m.Run("systemctl", "stop", "wingman.service")
	}
	m.Sh("mv /root/secret /var/lib/systemd/credential.secret; mv /root/key /etc/credstore.encrypted/wingman-seal-key")
	m.Run("systemctl", "start", "wingman.service")
	m.waitActive("wingman.service")
	m.await("the certificate with its key back", func() bool {
		out, _ := m.Try("wingman", "cert", "show")
		return strings.Contains(out, "state        valid") && strings.Contains(out, before)
	})

	// A token that systemd gives may go away.
	m.Sh("mkdir -p /etc/credstore && cp /run/secrets/tokens/istio-token /etc/credstore/istio-token && printf '[Service]\nLoadCredential=istio-token\n' >/etc/systemd/system/wingman.service.d/token.conf && systemctl daemon-reload")
	m.Run("systemctl", "restart", "wingman.service")
	m.Run("test", "-s", "/run/credentials/wingman.service/istio-token")
	m.Run("rm", "/etc/credstore/istio-token")
	m.Run("systemctl", "restart", "wingman.service")
	m.waitActive("wingman.service")
	if out, err := m.Try("test", "-e", "/run/credentials/wingman.service/istio-token"); err == nil {
		t.Errorf("the token is still there: %s", out)
	}
	m.Sh("rm /etc/systemd/system/wingman.service.d/token.conf; rm -f /run/secrets/tokens/istio-token /var/lib/wingman/identity/token; systemctl daemon-reload")

	// The same disk with another host key is another machine.
	m.Run("systemctl", "stop", "wingman.service")
	m.Sh("rm -rf /run/wingman/identity /var/lib/systemd/credential.secret && systemd-creds setup && rm /etc/credstore.encrypted/wingman-seal-key && wingman cert seal")
	m.Run("systemctl", "start", "wingman.service")
	m.await("the sentence", func() bool {
		out, _ := m.Try("wingman", "cert", "show")
		return strings.Contains(out, "sealed with another key: the store is a copy of another machine's")
	})
	if out, err := m.Try("grep", "-c", "wingman-sealed-1", "/var/lib/wingman/identity/current/key.pem"); err != nil || out != "1" {
		t.Errorf("the sealed generation did not stay: %s, %v", out, err)
	}
	m.token()
	m.await("the join by a fresh token", func() bool {
		out, _ := m.Try("wingman", "cert", "show")
		return strings.Contains(out, "state        valid")
	})
	if m.serial() == before {
		t.Error("the certificate of the other machine is in use")
	}

	if out, err := m.Try("wingman", "cert", "unseal", "--discard"); err == nil || !strings.Contains(err.Error(), "identity.seal is on") {
		t.Errorf("unseal with the setting on says %s, %v", out, err)
	}

	// Off again. What the first key sealed is lost with it.
	m.Sh("sed -i '/seal: true/d' " + settingsFile)
	m.Run("systemctl", "restart", "wingman.service")
	m.await("the store in the clear", func() bool { _, err := m.Try("wingman", "cert", "unseal"); return err == nil })
	if out, err := m.Try("ls", "/run/wingman-machine/seal-key"); err == nil {
		t.Errorf("the key is left: %s", out)
	}
	m.await("the links", func() bool {
		return strings.HasPrefix(m.Sh("readlink -f /etc/certs/key.pem"), "/var/lib/wingman/identity/")
	})
}

// serial is the certificate's that is in use.
func (m *Machine) serial() string {
	m.t.Helper()
	for line := range strings.Lines(m.Run("wingman", "cert", "show")) {
		if rest, ok := strings.CutPrefix(line, "certificate"); ok {
			serial, _, _ := strings.Cut(strings.TrimSpace(rest), ",")
			return serial
		}
	}
	m.t.Fatal("no certificate")
	return ""
}
