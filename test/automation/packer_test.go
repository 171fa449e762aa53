package automation

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wingman/test/vm"
)

// packer prepares Debian's packer (1.6) on the templates. It is older than plugins: their block is left out.
func packer(t *testing.T, argv ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	run(t, exec.Command("sh", "-euc", `cd ../../packaging/packer; cp -r wingman.pkr.hcl scripts "$1"`, "sh", dir))
	cmd := exec.Command(tool(t, "packer"), append(argv, ".")...)
	cmd.Dir = dir // this old one takes path.root for the working directory
	cmd.Env = append(cmd.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1", "HOME="+t.TempDir(), "PACKER_CACHE_DIR="+t.TempDir())
	return cmd
}

func TestPackerTemplates(t *testing.T) {
	vm.Require(t)
	run(t, exec.Command(tool(t, "packer"), "fmt", "-check", "-diff", "../../packaging/packer")) // parses plugins.pkr.hcl too
	key := filepath.Join(t.TempDir(), "key")
	run(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key))
	// Every builder, as far as it can be judged without its cloud: the checksum's list would be downloaded.
	out := run(t, packer(t, "validate", "-var", `packages=["/etc/hostname"]`, "-var", "ssh_private_key_file="+key, "-var", "disk_checksum=none"))
	t.Log(out)
	if out, err := packer(t, "validate", "-var", "ssh_private_key_file="+key, "-var", "disk_checksum=none").CombinedOutput(); err == nil {
		t.Errorf("no package is no mistake:\n%s", out)
	}

	// What docs/automation.md says to type, as far as this Packer knows it: from the folder of a checkout, with values for what it leaves open.
	page, err := os.ReadFile("../../docs/automation.md")
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(string(page), "## Packer")
	_, lines, _ = strings.Cut(lines, "```\n")
	lines, _, _ = strings.Cut(lines, "```")
	for _, r := range [][2]string{{"packer init", ": packer init"}, {"packer build", "packer validate -var disk_checksum=none"}, {"ssh_private_key_file=…", "ssh_private_key_file=" + key}, {"seed=…", "seed=."}, {"/srv/mesh/wingman_1.2.3-1_amd64.deb", "/etc/hostname"}} {
		if !strings.Contains(lines, r[0]) {
			t.Fatalf("the documented lines have no %q:\n%s", r[0], lines)
		}
		lines = strings.ReplaceAll(lines, r[0], r[1])
	}
	checkout := t.TempDir()
	run(t, exec.Command("sh", "-euc", `mkdir "$1/packaging"; cp -r ../../packaging/packer "$1/packaging/"; rm "$1/packaging/packer/plugins.pkr.hcl"`, "sh", checkout))
	typed := exec.Command("sh", "-euc", lines)
	typed.Dir = checkout
	typed.Env = append(typed.Environ(), "CHECKPOINT_DISABLE=1", "HOME="+t.TempDir(), "PACKER_CACHE_DIR="+t.TempDir())
	run(t, typed)
}

// A real build over ssh, of a machine that somebody else makes an image of: what it leaves, and that it fails for what one machine leaves in it.
func TestPackerBuild(t *testing.T) {
	f := newFleet(t, "image")
	m := f.machines["image"]
	build := func(argv ...string) (string, error) {
		t.Helper()
		return f.output(packer(t, append([]string{"build", "-only=null.machine", "-var", "machine=10.99.0.2", "-var", "ssh_private_key_file=" + f.key,
			"-var", fmt.Sprintf("packages=[%q, %q]", packageOf(t, oldVersion, "deb"), standIn(t, "wingman-envoy", "all"))}, argv...)...))
	}
	if out, err := build("-var", "settings=log: {level: loud}"); err == nil || !strings.Contains(out, "log.level: found") {
		t.Errorf("a build with wrong settings: %v\n%s", err, out)
	}
	m.Sh("rm /tmp/script_*") // of Packer, which leaves it where a build fails
	m.Write("/etc/hostname", "build-7\n", 0o644)
	m.Write("/var/lib/systemd/credential.secret", "of this machine", 0o600)
	// What the seed's unit does where it is no container's: it saves another one when it stops.
	m.Write("/etc/systemd/system/systemd-random-seed.service.d/as-on-a-computer.conf",
		"[Unit]\nConditionVirtualization=\n[Service]\nExecStart=\nExecStart=/bin/true\nExecStop=\nExecStop=/bin/sh -c 'echo seed >/var/lib/systemd/random-seed'\n", 0o644)
	m.Sh("systemctl daemon-reload; systemctl start systemd-random-seed; systemctl is-active systemd-random-seed")
	out, err := build("-var", "settings=log: {level: debug}")
	if err != nil {
		t.Fatalf("packer build: %v\n%s", err, out)
	}
	for _, look := range []struct{ line, want string }{
		{"systemctl stop systemd-random-seed; ls /var/lib/systemd/random-seed 2>/dev/null || :", ""}, // as at the shutdown
		{"systemctl is-enabled wingman", "enabled"},
		{"systemctl is-active wingman || :", "inactive"},
		{"dpkg-query --show --showformat='${db:Status-Status}' wingman-envoy", "installed"},
		{"cat /etc/wingman/wingman.yaml", "log: {level: debug}"},
		{"wc -c </etc/machine-id", "0"},
		{"wc -c </etc/hostname", "0"},
		{"ls /var/lib/systemd/credential.secret 2>/dev/null || :", ""},
		{"test -s /root/.ssh/authorized_keys && echo there", "there"}, // nobody would write another: this machine has no cloud-init
		{"ls /tmp/wingman-package* /tmp/script* 2>/dev/null || :", ""},
		{"iptables-save | grep -i istio || :", ""},
	} {
		if got := m.Sh(look.line); got != look.want {
			t.Errorf("%s in the image: %q, want %q", look.line, got, look.want)
		}
	}

	// What a member would leave.
	key, err := os.ReadFile(f.key)
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/var/lib/wingman/identity/key.pem", string(key), 0o600)
	if out, err := build(); err == nil || !strings.Contains(out, "/var/lib/wingman/identity/key.pem") {
		t.Errorf("a build on a machine with a key: %v, want a failure that names it\n%s", err, out)
	}

	// With cloud-init, which lets each machine's owner in, the build's own way in goes. Last: Packer cannot come again.
	m.Sh("rm /var/lib/wingman/identity/key.pem; useradd --create-home builder; useradd --create-home other; for h in builder other; do mkdir /home/$h/.ssh; echo key >/home/$h/.ssh/authorized_keys; done")
	m.Write("/usr/local/bin/cloud-init", "#!/bin/sh\n", 0o755)
	script, err := os.ReadFile("../../packaging/packer/scripts/seal.sh")
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/root/seal.sh", string(script), 0o755)
	t.Log(m.Sh("SUDO_USER=builder sh /root/seal.sh"))
	if got := m.Sh("ls /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null || :"); got != "/home/other/.ssh/authorized_keys" {
		t.Errorf("who may come in after the build: %q, want the key of another user alone", got)
	}
}
