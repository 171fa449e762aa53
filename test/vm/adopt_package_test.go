package vm

import (
	"strings"
	"testing"
)

// What the package does on a machine that was taken over: its removal gives the machine back first, or does not happen.
func packageOfAnAdopted(t *testing.T, s *stage) {
	m, deb := s.forum, buildPackages(t, "deb")[newVersion]
	m.Run("rm", "/etc/tmpfiles.d/certs.conf")
	m.install(deb)

	// Both agents are started at once, and pilot-agent has to wait for something: the other one sees it all the same.
	m.Write("/run/systemd/system/late.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 2\n", 0o644)
	m.Write("/run/systemd/system/istio.service.d/late.conf", "[Unit]\nWants=late.service\nAfter=late.service\n", 0o644)
	m.Sh("systemctl daemon-reload; systemctl stop istio.service; systemctl start istio.service wingman.service")
	s.mustHavePilot(t)
	m.Sh("rm -r /run/systemd/system/istio.service.d /run/systemd/system/late.service; systemctl daemon-reload")

	m.Run("wingman", "adopt")
	s.mustBeAdopted(t)
	m.Sh("mv /usr/bin/wingman /root/wingman; printf '#!/bin/sh\\nexit 1\\n' >/usr/bin/wingman; chmod 755 /usr/bin/wingman")
	_, err := m.Try("dpkg", "--remove", "wingman")
	m.Run("mv", "/root/wingman", "/usr/bin/wingman")
	if err == nil || !strings.Contains(err.Error(), "run wingman adopt --undo") {
		t.Errorf("removal where istio.service cannot be given its place back: %v, want a refusal that names wingman adopt --undo", err)
	}
	s.mustBeAdopted(t)

	m.Run("dpkg", "--remove", "wingman")
	s.mustHavePilot(t)
	m.install(deb)
	m.Run("wingman", "adopt")
	s.mustBeAdopted(t)
	m.Run("dpkg", "--purge", "wingman")
	s.mustHavePilot(t)
	if left := m.Sh("ls -d /var/lib/wingman* /run/wingman* /etc/systemd/system/*wingman* /etc/systemd/system/istio.service 2>/dev/null || :"); left != "" {
		t.Errorf("the purge left %s", left)
	}
}

// mustHavePilot fails the test where pilot-agent does not serve, enabled, with rules of its own alone, or Wingman runs too.
func (s *stage) mustHavePilot(t *testing.T) {
	t.Helper()
	s.forum.awaitPilot()
	if got := s.forum.show("istio.service", "ActiveState") + " " + s.forum.show("istio.service", "UnitFileState"); got != "active enabled" {
		t.Errorf("istio.service is %s, want active enabled", got)
	}
	if got := s.forum.show("wingman.service", "ActiveState"); got != "inactive" {
		t.Errorf("wingman.service is %s beside istio.service, want inactive", got)
	}
	if rules := s.forum.rulesByTable(); strings.Contains(strings.ToLower(rules), "wingman") || !strings.Contains(rules, "ISTIO_OUTPUT") && !strings.Contains(rules, "inet istio-proxy-nat") {
		t.Errorf("rules are\n%s\nwant pilot-agent's alone", rules)
	}
}
