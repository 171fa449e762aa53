package vm

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	echoAddress = "127.0.0.1:15053"
	ends        = "/var/lib/wingman/ends" // how the daemon of testdata ended each time
)

// withDaemon boots a machine on which the daemon of testdata runs under the units of the package.
func withDaemon(t *testing.T) *Machine {
	t.Helper()
	Require(t)
	m := NewSegment(t).Machine(t, "forum", "10.99.0.2/24")
	m.Install(Build(t, "wingman/test/vm/testdata/daemon"))
	m.Write("/var/lib/istio/envoy/cluster.env", "", 0o644) // without it the unit waits
	m.Enable("wingman.service")
	m.Boot()
	m.waitActive("wingman.service")
	return m
}

// waitActive returns once a unit has no job any more, and fails the test when it is not active then.
func (m *Machine) waitActive(unit string) {
	m.t.Helper()
	m.await("unit "+unit, func() bool { return m.show(unit, "ActiveState") == "active" })
}

// await polls the machine, which has no way to call us, until done.
func (m *Machine) await(what string, done func() bool) {
	m.t.Helper()
	late := time.After(time.Minute)
	for !done() {
		select {
		case <-late:
			m.t.Fatalf("machine %s: waited a minute for %s\n%s", m.name, what, m.lastWords())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (m *Machine) lastWords() string {
	var b strings.Builder
	entries := m.Journal("")
	for _, e := range entries[max(0, len(entries)-30):] {
		fmt.Fprintf(&b, "%s %s[%d] %s\n", e.At.Format(time.TimeOnly), e.Unit, e.PID, e.Message)
	}
	return b.String()
}

func (m *Machine) show(unit, property string) string {
	m.t.Helper()
	return m.Run("systemctl", "show", "--value", "--property="+property, unit)
}

// mainPID is the process of a service.
func (m *Machine) mainPID(unit string) int {
	m.t.Helper()
	pid, err := strconv.Atoi(m.show(unit, "MainPID"))
	if err != nil {
		m.t.Fatal(err)
	}
	return pid
}

// kill sends a signal to a service's process and waits until another one is ready in its place.
func (m *Machine) kill(unit, signal string) {
	m.t.Helper()
	before := m.mainPID(unit)
	m.Run("systemctl", "kill", "--kill-who=main", "--signal="+signal, unit)
	m.await(unit+" to be back after "+signal, func() bool {
		pid := m.mainPID(unit)
		return pid != 0 && pid != before && m.show(unit, "ActiveState") == "active"
	})
}

// Promise 2: a restart loses nothing.
func TestRestartsLoseNoPacket(t *testing.T) {
	m := withDaemon(t)
	load := startQueries(t, m, echoAddress, bounce)
	for range 20 {
		m.Run("systemctl", "restart", "wingman")
	}
	for range 4 { // the fifth within 30 s is a crash loop
		m.kill("wingman", "KILL")
	}
	m.Run("systemctl", "daemon-reexec")
	m.Run("systemctl", "restart", "wingman")
	m.Run("systemctl", "daemon-reload")
	sent, lost := load.end()
	if sent < 100 {
		t.Fatalf("only %d packets were sent", sent)
	}
	t.Logf("%d packets sent, %d lost", sent, lost)
	if lost > 0 {
		t.Errorf("%d of %d packets were lost, want none\n%s", lost, sent, m.lastWords())
	}
	inherited := 0
	for _, e := range m.Journal("wingman") {
		if strings.Contains(e.Message, "ready inherited=1") {
			inherited++
		}
	}
	if want := 20 + 4 + 1; inherited != want {
		t.Errorf("the socket was inherited %d times, want each time: %d", inherited, want)
	}
	if got := m.show("wingman", "NFileDescriptorStore"); got != "1" {
		t.Errorf("systemd keeps %s descriptors, want the one socket once", got)
	}
}

func TestAStopIsToldFromARestart(t *testing.T) {
	m := withDaemon(t)
	var want []string
	step := func(stop bool, argv ...string) {
		t.Helper()
		m.Run(argv...)
		want = append(want, fmt.Sprintf("stop %v error <nil>", stop))
	}
	for range 5 {
		step(false, "systemctl", "restart", "wingman")
		step(true, "systemctl", "stop", "wingman")
		m.Run("systemctl", "start", "wingman")
	}
	m.kill("wingman", "TERM") // as an operator's kill does; systemd starts it again
	want = append(want, "stop false error <nil>")
	step(false, "systemctl", "try-restart", "wingman")
	step(true, "systemctl", "isolate", "rescue.target")
	// isolate does not wait for what it stops, and a start that comes after a stop makes it none.
	m.await("the stop", func() bool { return m.show("wingman", "ActiveState") == "inactive" })
	m.Run("systemctl", "isolate", "multi-user.target")
	m.waitActive("wingman.service")
	m.Reboot()
	want = append(want, "stop true error <nil>")
	m.waitActive("wingman.service")
	m.PowerOff()
	want = append(want, "stop true error <nil>")
	if got := strings.Split(strings.TrimSpace(m.Read(ends)), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the daemon understood\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWithoutABusItIsARestart(t *testing.T) {
	m := withDaemon(t)
	m.Run("systemctl", "stop", "dbus.socket", "dbus.service")
	m.Run("systemctl", "stop", "wingman")
	if got := m.Read(ends); !strings.HasPrefix(got, "stop false error connect to the system bus: ") {
		t.Errorf("the daemon understood %q, want no stop and the reason", got)
	}
}

func TestNotifications(t *testing.T) {
	m := withDaemon(t)
	if got := m.show("wingman", "StatusText"); got != "echoing" {
		t.Errorf("status %q, want echoing", got)
	}
	pid := m.mainPID("wingman")
	m.Run("systemctl", "reload", "wingman")
	m.await("the reload", func() bool { return m.show("wingman", "StatusText") == "reloaded" })
	if got := m.show("wingman", "ActiveState"); got != "active" || m.mainPID("wingman") != pid {
		t.Errorf("after a reload the unit is %s with process %d, want active with %d", got, m.mainPID("wingman"), pid)
	}
	for _, e := range m.Journal("wingman") {
		if strings.HasPrefix(e.Message, "ready ") && e.Priority != 6 || strings.HasPrefix(e.Message, "<") {
			t.Errorf("the journal holds %q with priority %d, want the prefix taken as the priority 6", e.Message, e.Priority)
		}
	}
}

func TestAHangingDaemonIsReplacedAndLosesNothing(t *testing.T) {
	m := withDaemon(t)
	m.Write("/etc/systemd/system/wingman.service.d/test.conf", "[Service]\nWatchdogSec=1\n", 0o644)
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "restart", "wingman")
	load := startQueries(t, m, echoAddress, bounce)
	m.kill("wingman", "USR1")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d packets were lost, want none", lost, sent)
	}
	goroutines := false
	for _, e := range m.Journal("wingman") {
		goroutines = goroutines || strings.HasPrefix(e.Message, "goroutine ")
	}
	if !goroutines {
		t.Error("the journal does not say where the daemon hung")
	}

	// One that hangs again is a loop, though five ends within 30 s would take longer.
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=USR1", "wingman")
	open := ""
	m.await("the guard", func() bool { open = m.Sh("cat /run/wingman-guard/open 2>/dev/null || :"); return open != "" })
	if want := "the agent hung 2 times within 180 s, last with watchdog"; !strings.Contains(open, want) {
		t.Errorf("the guard says %q, want %q", open, want)
	}
}

func TestTheProxyOutlivesTheAgentButNotItsStop(t *testing.T) {
	m := withDaemon(t)
	m.waitActive("wingman-proxy.service")
	pid := m.mainPID("wingman-proxy")
	for range 10 {
		m.Run("systemctl", "restart", "wingman")
	}
	for range 4 {
		m.kill("wingman", "KILL")
	}
	m.Run("systemctl", "daemon-reexec")
	if got := m.mainPID("wingman-proxy"); got != pid {
		t.Errorf("the proxy is process %d, want %d still", got, pid)
	}
	m.Run("systemctl", "stop", "wingman")
	m.await("the proxy to stop", func() bool { return m.show("wingman-proxy", "ActiveState") == "inactive" })
	m.Run("systemctl", "start", "wingman")
	m.waitActive("wingman-proxy.service")

	// Also while the agent waits for its next start.
	m.Write("/var/lib/wingman/crash", "", 0o644)
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman")
	m.await("the guard", func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })
	m.Run("systemctl", "stop", "wingman")
	m.await("the proxy to stop", func() bool { return m.show("wingman-proxy", "ActiveState") == "inactive" })
}

func TestOnlyThoseWhoAskWaitForTheMesh(t *testing.T) {
	Require(t)
	m := NewSegment(t).Machine(t, "forum", "10.99.0.2/24")
	m.Install(Build(t, "wingman/test/vm/testdata/daemon"))
	m.Write("/var/lib/istio/envoy/cluster.env", "", 0o644) // without it the unit waits
	m.Enable("wingman.service")
	m.Write("/etc/systemd/system/app.service",
		"[Unit]\nWants=istio-mesh-ready.target\nAfter=istio-mesh-ready.target\n[Service]\nType=exec\nExecStart=/bin/sleep infinity\n", 0o644)
	m.Boot()
	if got := m.Run("systemctl", "is-system-running"); got != "running" {
		t.Errorf("without the mesh the machine is %s, want running", got)
	}
	m.waitActive("wingman.service")
	m.Run("systemctl", "start", "--no-block", "app.service")
	m.await("the wait", func() bool { return m.show("wingman-mesh-ready.service", "ActiveState") == "activating" })
	if got := m.show("app.service", "ActiveState"); got != "inactive" {
		t.Errorf("before the mesh is ready the application is %s, want inactive", got)
	}
	m.Run("touch", "/var/lib/wingman/joined")
	m.waitActive("app.service")
}

func TestTheSandboxIsAsTightAsItSays(t *testing.T) {
	m := withDaemon(t)
	status := m.Sh("cat /proc/$(systemctl show --value --property=MainPID wingman)/status")
	for _, want := range []string{"CapEff:\t0000000000003000", "CapBnd:\t0000000000003000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("the daemon's status lacks %q:\n%s", want, status)
		}
	}
	if strings.Contains(status, "Uid:\t0") {
		t.Error("the daemon runs as root")
	}
	out := m.Run("systemd-analyze", "security", "--no-pager", "--threshold=20", "wingman.service")
	t.Log(out[strings.LastIndex(out, "→"):])
	if got := m.Run("stat", "-c", "%a %U", "/var/lib/wingman", "/run/xtables.lock", "/etc/certs", "/run/wingman-guard"); got != "700 istio-proxy\n660 root\n755 istio-proxy\n755 root" {
		t.Errorf("modes and owners are\n%s", got)
	}
}

func TestAnExecProbeHasTheSandboxWithoutTheCapabilities(t *testing.T) {
	m := withDaemon(t)
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=USR2", "wingman")
	said := ""
	m.await("the probe", func() bool {
		for _, e := range m.Journal("wingman") {
			if strings.HasPrefix(e.Message, "probed ") {
				said = e.Message
			}
		}
		return said != ""
	})
	if want := `exit status 3: istio-proxy | CapEff: 0000000000000000 | CapAmb: 0000000000000000 | 500"`; !strings.HasSuffix(said, want) {
		t.Errorf("the daemon says\n%s\nwant it to end with\n%s", said, want)
	}
}

// health's unit probe on a real systemd, as another user than root.
func TestAUnitProbeIsTold(t *testing.T) {
	m := withDaemon(t)
	m.Write("/etc/systemd/system/app.service", "[Service]\nType=exec\nExecStart=/bin/sleep infinity\nExecReload=/bin/true\nKillMode=mixed\n", 0o644)
	m.Run("systemctl", "daemon-reload")
	watch := m.Command("setpriv", "--reuid=istio-proxy", "--regid=istio-proxy", "--init-groups", "/usr/bin/wingman", "watch", "app.service")
	lines := readLines(t, watch)
	expect := func(want string) { // want is the beginning: on its way down a unit is in several states, and the first seen is told
		t.Helper()
		select {
		case got := <-lines:
			if !strings.HasPrefix(got, want) {
				t.Fatalf("the probe says %q, want %q", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the probe says nothing, want %q", want)
		}
	}
	const unit = "systemd unit app.service"
	expect("false " + unit + ": inactive (dead)")
	m.Run("systemctl", "start", "app")
	expect("true " + unit + " succeeded")
	m.Run("systemctl", "reload", "app")
	m.Run("systemctl", "kill", "--signal=KILL", "app")
	expect("false " + unit + ": ")
	m.Run("systemctl", "daemon-reexec")
	m.Run("systemctl", "restart", "app")
	expect("true " + unit + " succeeded")
	m.Run("systemctl", "restart", "dbus")
	m.Run("systemctl", "stop", "app")
	expect("false " + unit + ": ")
}

// readLines starts cmd and passes on what it writes, line by line, until the test ends.
func readLines(t *testing.T, cmd *exec.Cmd) <-chan string {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := make(chan string, 100)
	go scan(out, lines)
	return lines
}
