package vm

import (
	"net"
	"strings"
	"testing"
	"time"
)

// An agent that cannot take its rules out when it is stopped leaves none all the same: Envoy goes with the stop, and what was captured would be refused.
func TestAStopWithoutAWorkingAgentLeavesNoRules(t *testing.T) {
	m := withEnvoy(t)
	if out := m.rules(); !strings.Contains(out, "15001") {
		t.Fatalf("nothing is captured:\n%s", out)
	}
	m.Run("systemctl", "restart", "wingman-proxy") // an end of Envoy alone is not the agent's
	if out := m.rules(); !strings.Contains(out, "15001") {
		t.Errorf("a restart of wingman-proxy took the rules out:\n%s", out)
	}
	m.awaitEnvoy()
	good := m.Read("/usr/bin/wingman")
	m.Write("/usr/bin/wingman", "#!/bin/sh\nexit 1\n", 0o755)
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman")
	m.await("the crash loop", func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })
	if out := m.rules(); !strings.Contains(out, "15001") { // a loop alone leaves traffic with Envoy
		t.Errorf("a loop of crashes took traffic away from Envoy:\n%s", out)
	}
	m.Run("systemctl", "stop", "wingman")
	m.mustHaveNoRules(t)
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
	if err := m.Do(func() error {
		c, err := net.DialTimeout("tcp", otherAddress, 5*time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}); err != nil {
		t.Errorf("TCP after the stop: %v", err)
	}
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d queries for a public name were lost, want none", lost, sent)
	}
	m.Write("/usr/bin/wingman", good, 0o755)
	if _, err := m.Try("wingman", "status"); err == nil || strings.Contains(err.Error(), "goes on trying") {
		t.Errorf("status after the stop: %v", err)
	}
	m.Run("systemctl", "start", "wingman")
	m.awaitEnvoy()
	m.stopBetweenStarts(t)
}

// mustHaveNoRules waits until a stop is through and fails the test where it left rules.
func (m *mesh) mustHaveNoRules(t *testing.T) {
	t.Helper()
	for _, unit := range []string{"wingman", "wingman-cleanup"} {
		m.await(unit+" to end", func() bool { state := m.show(unit, "ActiveState"); return state == "inactive" || state == "failed" })
	}
	if out := m.rules(); strings.Contains(out, "ISTIO") || strings.Contains(out, "WINGMAN") || strings.Contains(out, "wingman") {
		t.Errorf("rules are left:\n%s\n%s", out, m.lastWords())
	}
}

// stopBetweenStarts stops a machine on which agent and Envoy's supervisor both wait for their next start: systemd runs nothing of either unit then. A crash and a
// restart are no stop.
func (m *mesh) stopBetweenStarts(t *testing.T) {
	for _, unit := range []string{"wingman", "wingman-proxy"} {
		m.Write("/run/systemd/system/"+unit+".service.d/later.conf", "[Service]\nRestartSec=1h\n", 0o644)
	}
	m.Run("systemctl", "daemon-reload")
	up := m.show("wingman-cleanup", "ActiveEnterTimestampMonotonic")
	wait := func(unit string) {
		t.Helper()
		m.Run("systemctl", "kill", "--signal=KILL", unit)
		m.await(unit+" to wait", func() bool { return m.show(unit, "SubState") == "auto-restart" })
	}
	wait("wingman")
	m.Run("systemctl", "restart", "wingman")
	wait("wingman-proxy")
	wait("wingman")
	if now := m.show("wingman-cleanup", "ActiveEnterTimestampMonotonic"); now != up || m.show("wingman-cleanup", "ActiveState") != "active" {
		t.Errorf("wingman-cleanup is up since %s µs, and was since %s: a crash or a restart ended it", now, up)
	}
	if out := m.rules(); !strings.Contains(out, "15001") {
		t.Errorf("a crash or a restart took the rules out:\n%s", out)
	}
	m.Run("systemctl", "stop", "wingman")
	m.mustHaveNoRules(t)
	m.Sh("rm -r /run/systemd/system/wingman.service.d /run/systemd/system/wingman-proxy.service.d; systemctl daemon-reload; systemctl stop wingman-proxy") // else it would wait still
	m.Run("systemctl", "start", "wingman")
	m.awaitEnvoy()
}

// A supervisor that hangs would hide what becomes of Envoy.
func TestAHangingSupervisorIsReplaced(t *testing.T) {
	m := withEnvoy(t)
	if got := m.show("wingman-proxy", "WatchdogUSec"); got != "20s" {
		t.Errorf("the watchdog waits %s, want 20s", got)
	}
	m.Write("/run/systemd/system/wingman-proxy.service.d/soon.conf", "[Service]\nWatchdogSec=3\n", 0o644)
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "restart", "wingman-proxy")
	m.awaitEnvoy()
	m.await("its status", func() bool { return strings.HasPrefix(m.show("wingman-proxy", "StatusText"), "Envoy: live") })
	pid := m.mainPID("wingman-proxy")
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=STOP", "wingman-proxy")
	m.await("another supervisor", func() bool { next := m.mainPID("wingman-proxy"); return next != 0 && next != pid })
	m.awaitEnvoy()
	if starts := m.show("wingman-proxy", "NRestarts"); starts != "1" {
		t.Errorf("%s restarts, want the one of the supervisor that hung", starts)
	}
}
