package vm

import (
	"strings"
	"testing"
)

// cutHere stands before programs that an adopt calls, in its PATH. After the call that matches /run/cut it ends the adopt by kill -9, or has it wait for the power to
// be cut.
const cutHere = `#!/bin/sh
name=${0##*/}
case $name in systemctl) real=/usr/bin/$name ;; *) real=/usr/sbin/$name ;; esac
$real "$@"
status=$?
read -r how at </run/cut || exit $status
case "$name $*" in $at*)
	rm /run/cut
	if [ "$how" = kill ]; then kill -9 $PPID; exit; fi
	exec sleep 600 ;;
esac
exit $status
`

// cut runs wingman adopt (args: what follows) until a call has been made (at: how it begins, as a pattern of the shell's), and ends it then, or the machine's power
// with it.
func (s *stage) cut(t *testing.T, how, at string, args ...string) {
	t.Helper()
	m := s.forum
	m.Write("/run/cut", how+" "+at+"\n", 0o644)
	argv := append([]string{"env", "PATH=/root/cut:/usr/sbin:/usr/bin:/sbin:/bin", "wingman", "adopt"}, args...)
	if how == "kill" {
		if _, err := m.Try(argv...); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("adopt %q until %q: %v, want it killed", args, at, err)
		}
		return
	}
	cmd := m.Command(argv...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.await("adopt to come to "+at, func() bool { _, err := m.Try("test", "!", "-e", "/run/cut"); return err == nil })
	m.PowerCut()
	_ = cmd.Wait() // it went with the machine
	m.Boot()
}

// mustServe fails the test where names are not answered, or requests do not pass both ways.
func (s *stage) mustServe(t *testing.T) {
	t.Helper()
	s.forum.address(catalogName)
	l := s.traffic(t) // it fails where nothing flows
	for what, c := range map[string]*client{"queries": l.dns, "requests": l.out, "requests of peers": l.in} {
		if o := c.end(); len(o.Failed) > 0 {
			t.Logf("%s: %s", what, o)
		}
	}
}

// An adopt and an undo that are killed within a step, or lose the machine's power there: one owner serves after the boot, with its rules alone, and what is run
// next comes to its end. agent/adopt tries all of it, on a model.
func cutAdopts(t *testing.T, s *stage) {
	m := s.forum
	for _, name := range []string{"systemctl", "iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore"} {
		m.Write("/root/cut/"+name, cutHere, 0o755)
	}
	// What pilot-agent needs after a boot, and an administrator has to see to: the folder that it may not make itself.
	m.Write("/etc/tmpfiles.d/secrets.conf", "d /run/secrets 0755 istio-proxy root\nd /run/secrets/tokens 0755 istio-proxy root\n", 0o644)
	token := m.Run("cat", "/run/secrets/tokens/istio-token")

	const restore = "*tables-*-restore" // of the first table of many
	rules := m.rulesByTable()
	s.cut(t, "kill", restore)
	if m.rulesByTable() == rules {
		t.Error("no rule was changed before the kill")
	}
	m.awaitPilot()
	s.cut(t, "kill", "systemctl mask --quiet istio.service")
	m.awaitPilot() // it serves, with our rules
	s.cut(t, "kill", "systemctl start wingman.service")
	m.Run("wingman", "adopt") // it finds an agent that serves
	s.mustBeAdopted(t)
	s.mustServe(t)

	s.cut(t, "kill", "systemctl stop --no-block wingman-proxy.service", "--undo")
	s.cut(t, "kill", restore, "--undo")
	s.cut(t, "power", "systemctl unmask --quiet istio.service", "--undo")
	if got := m.show("wingman.service", "UnitFileState"); got != "enabled" {
		t.Fatalf("wingman.service is %s, want both units enabled", got)
	}
	s.mustHavePilot(t)
	s.mustServe(t)
	m.Run("wingman", "adopt", "--undo")
	s.mustBePilots(t)

	s.cut(t, "power", "systemctl kill --signal=SIGKILL istio.service")
	s.mustBeAdopted(t)
	s.mustServe(t)
	m.Run("wingman", "adopt")
	if out := m.Run("wingman", "status"); !strings.Contains(out, "adopted    since") {
		t.Errorf("status does not tell of the adopt:\n%s", out)
	}
	m.Run("wingman", "adopt", "--undo")
	s.mustBePilots(t)
	m.Sh("umask 027; cat >/run/secrets/tokens/istio-token <<'E'\n" + token + "\nE\nchown istio-proxy:istio-proxy /run/secrets/tokens/istio-token")
}
