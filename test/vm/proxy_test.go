package vm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"wingman/test/controlplane"
)

// The units with the real Envoy. Inbound is TLS that ends at Envoy and outbound names Envoy in its answers: a request that went past it fails.

func TestTheAgentRestartsAndEnvoyGoesOn(t *testing.T) {
	m := withEnvoy(t)
	before, events := m.awaitEnvoy(), len(m.istiod.Events())
	stays, err := m.visit()
	if err != nil {
		t.Fatal(err)
	}
	in, out := m.inbound(), m.outbound()
	again := func() {
		t.Helper()
		if after := m.awaitEnvoy(); after.PID != before.PID {
			t.Fatalf("Envoy is process %d, want %d still", after.PID, before.PID)
		}
		if last, err := stays.get("/"); last || err != nil {
			t.Fatalf("a connection of before: closed %v, error %v", last, err)
		}
	}
	for range 3 {
		m.Run("systemctl", "restart", "wingman")
		again()
	}
	for range 2 {
		m.kill("wingman", "KILL")
		again()
	}
	in.mustBeWhole("inbound")
	out.mustBeWhole("outbound")
	for _, e := range m.istiod.Events()[events:] {
		if e.Kind == controlplane.EntryRemoved || e.Kind == controlplane.EntryCreated || e.Kind == controlplane.HealthReported && !e.Healthy ||
			e.Kind == controlplane.Violation || e.Kind == controlplane.Nacked {
			t.Errorf("the control plane saw: %s", e)
		}
	}
}

// Those in flight may fail; new connections wait for the next Envoy, but one that the kernel had already given to the dead one. How long requests
// fail is a matter of the computer too: it is the median that must be within a second, on one that does other things as well.
func TestAKilledEnvoyIsBackWithinASecond(t *testing.T) {
	m := withEnvoy(t)
	agent, events := m.mainPID("wingman"), len(m.istiod.Events())
	var away []time.Duration
	for _, c := range []struct {
		name string
		kill func(pid int)
	}{
		{"Envoy alone", func(pid int) { m.Run("kill", "-KILL", fmt.Sprint(pid)) }},
		{"its supervisor alone", func(int) { m.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman-proxy") }},
		{"the unit", func(int) { m.Run("systemctl", "kill", "--signal=KILL", "wingman-proxy") }},
	} {
		for range 2 {
			before := m.awaitEnvoy()
			in, out := m.inbound(), m.outbound()
			m.await("traffic", func() bool { return in.answered() > 10 && out.answered() > 10 })
			at := time.Now()
			c.kill(before.PID)
			m.await("another Envoy", func() bool { r, err := m.status(); return err == nil && r.Envoy.Live && r.Envoy.PID != before.PID })
			for way, load := range map[string]*requests{"inbound": in, "outbound": out} {
				had := load.answered()
				m.await("traffic "+way+" by the new Envoy", func() bool { return load.answered() > had+10 })
				_, failed := load.end()
				var took time.Duration // zero when none failed that began after the kill
				for _, f := range failed {
					took = max(took, f.began.Sub(at))
				}
				away = append(away, took)
				t.Logf("%s killed, %s: %d requests failed, the last of them %s after the kill", c.name, way, len(failed), took.Round(time.Millisecond))
			}
		}
	}
	slices.Sort(away)
	if median := away[len(away)/2]; median > time.Second && !busy(t) {
		t.Errorf("half of the time requests failed for more than %s, want at most a second", median)
	}
	if now := m.mainPID("wingman"); now != agent {
		t.Errorf("the agent is process %d, want %d: it has nothing to do with Envoy's end", now, agent)
	}
	const patience = 2 * time.Second // the agent bears with three of an Envoy that crashed
	for _, e := range m.istiod.Events()[events:] {
		if e.Kind == controlplane.HealthReported && !e.Healthy && away[len(away)-1] < patience || e.Kind == controlplane.EntryRemoved || e.Kind == controlplane.Violation {
			t.Errorf("a crash of Envoy reached the mesh: %s", e)
		}
	}
}

func TestTheProxyAloneIsRestarted(t *testing.T) {
	m := withEnvoy(t)
	before, agent := m.awaitEnvoy(), m.mainPID("wingman")
	m.Run("systemctl", "restart", "wingman-proxy")
	m.await("another Envoy", func() bool { // the agent looks once a second
		r, err := m.status()
		return err == nil && r.Envoy.Live && r.Envoy.PID != before.PID
	})
	if now := m.mainPID("wingman"); now != agent {
		t.Errorf("the agent is process %d, want %d still", now, agent)
	}
	if v, err := m.visit(); err != nil {
		t.Errorf("the new Envoy does not serve: %v", err)
	} else if _, err := v.get("/"); err != nil {
		t.Errorf("the new Envoy does not serve: %v", err)
	}
}

// Order of a stop: unhealthy, drain, rules out, Envoy ended. Everything is told by one clock, this computer's; but what is in the journal may be
// some time older than it says.
func TestAStopTakesEnvoyDownLast(t *testing.T) {
	m := withEnvoy(t, "envoy: {terminationDrain: 60s}") // nothing here is to be cut short
	v, err := m.visit()
	if err != nil {
		t.Fatal(err)
	}
	if last, err := v.get("/"); last || err != nil {
		t.Fatalf("before the stop: closed %v, error %v", last, err)
	}
	held := make(chan error, 1) // a request that is under way when the stop comes
	go func() { last, err := v.get("/held"); held <- expectLast(last, err) }()
	m.await("the request", func() bool { return m.Sh("cat /run/app-holds 2>/dev/null || :") != "" })
	events := len(m.istiod.Events())
	m.Run("systemctl", "stop", "--no-block", "wingman")
	m.await("the drain", func() bool { return strings.Contains(m.Sh("cat /run/wingman-proxy/state.json"), "DRAINING") })
	m.Run("touch", "/run/app-release")
	if err := <-held; err != nil {
		t.Errorf("the request that was under way: %v", err)
	}
	m.await("the stop", func() bool { return m.show("wingman", "ActiveState") == "inactive" })
	m.await("the proxy to stop", func() bool { return m.show("wingman-proxy", "ActiveState") == "inactive" })

	var steps steps
	for _, e := range m.istiod.Events()[events:] {
		switch {
		case e.Kind == controlplane.HealthReported && !e.Healthy:
			steps.add(e.At, "unhealthy")
		case e.Kind == controlplane.EntryLeft:
			steps.add(e.At, "left")
		}
	}
	for _, e := range m.Journal("") {
		for _, known := range []struct{ unit, says, step string }{
			{"wingman.service", "no connection is left", "drained"},
			{"wingman.service", "capture rules are out", "rules out"},
			{"wingman-proxy.service", "Envoy is told to end", "told to end"},
			{"wingman-proxy.service", "Envoy has ended", "ended"},
		} {
			if e.Unit == known.unit && strings.HasPrefix(e.Message, known.says) {
				steps.add(e.At, known.step)
			}
		}
	}
	if got, want := steps.without("left"), "unhealthy, drained, rules out, told to end, ended"; got != want {
		t.Errorf("order is %s, want %s\n%s", got, want, m.lastWords())
	}
	if got, want := steps.without("drained", "rules out"), "unhealthy, left, told to end, ended"; got != want {
		t.Errorf("order is %s, want %s\n%s", got, want, m.lastWords())
	}
	if out := m.rules(); strings.Contains(out, "ISTIO") || strings.Contains(out, "WINGMAN") || strings.Contains(out, "wingman") {
		t.Errorf("rules are left:\n%s", out)
	}
	if out, err := m.Try("pgrep", "-a", "-u", "istio-proxy"); err == nil {
		t.Errorf("processes are left:\n%s", out)
	}
	for _, unit := range []string{"wingman", "wingman-proxy"} {
		if got := m.show(unit, "ActiveState") + " " + m.show(unit, "Result"); got != "inactive success" {
			t.Errorf("%s is %s, want inactive success", unit, got)
		}
	}
}

// expectLast is the error of a request that should have been answered, with the advice to come back on another connection.
func expectLast(last bool, err error) error {
	if err == nil && !last {
		return fmt.Errorf("answered, and the connection stays")
	}
	return err
}

// steps are things that happened, which are put in order.
type steps []step

type step struct {
	at   time.Time
	what string
}

func (s *steps) add(at time.Time, what string) { *s = append(*s, step{at, what}) }

// without lists the steps but for some, oldest first.
func (s *steps) without(some ...string) string {
	slices.SortStableFunc(*s, func(a, b step) int { return a.at.Compare(b.at) })
	var names []string
	for _, one := range *s {
		if !slices.Contains(some, one.what) {
			names = append(names, one.what)
		}
	}
	return strings.Join(names, ", ")
}

func TestAMachineWithEnvoyReboots(t *testing.T) {
	m := withEnvoy(t)
	events := len(m.istiod.Events())
	m.Reboot()
	m.awaitEnvoy()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	_, err := m.istiod.WaitEventAfter(ctx, events, func(e controlplane.Event) bool { return e.Kind == controlplane.HealthReported && e.Healthy })
	cancel()
	if err != nil {
		t.Fatalf("not healthy after a reboot: %v\n%s", err, m.lastWords())
	}
	m.rulesFirst()
	var first string // what is captured when systemd hears that the agent is ready
	for _, e := range m.Journal("wingman") {
		if strings.HasPrefix(e.Message, "ready ") {
			break
		}
		if strings.HasPrefix(e.Message, "capture rules applied ") {
			first += e.Message
		}
	}
	if !strings.Contains(first, "capture=all") {
		t.Errorf("before the agent was ready it said of rules %q, want that all is captured\n%s", first, m.lastWords())
	}
	in, out := m.inbound(), m.outbound()
	m.await("traffic", func() bool { return in.answered() > 100 && out.answered() > 100 })
	in.mustBeWhole("inbound")
	out.mustBeWhole("outbound")

	m.Run("systemctl", "mask", "wingman")
	m.Reboot()
	if out := m.rules(); ours(out) || m.show("wingman-rules", "ConditionResult") != "no" {
		t.Errorf("the agent is masked, and traffic is captured with nobody behind it:\n%s", out)
	}
}

// rulesFirst fails the test unless the rules of the last run were in before anything configured this boot's network.
func (m *Machine) rulesFirst() {
	m.t.Helper()
	rules, network := m.monotonic("wingman-rules.service", "ExecMainExitTimestampMonotonic"), m.monotonic("systemd-networkd.service", "ExecMainStartTimestampMonotonic")
	if said := fmt.Sprint(m.Journal("wingman-rules")); rules == 0 || rules > network || !strings.Contains(said, "the traffic rules of the last run are in") {
		m.t.Errorf("rules were in at %d µs, the network was begun at %d µs; the unit said %v", rules, network, said)
	}
}

// monotonic reads a time of a unit, in microseconds after the boot; 0: it has not come.
func (m *Machine) monotonic(unit, property string) int64 {
	m.t.Helper()
	n, err := strconv.ParseInt(m.Run("systemctl", "show", "--value", "--property="+property, unit), 10, 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// Envoy cannot open the socket that systemd gives a unit as its stdout; its own is a pipe of the supervisor's.
func TestEnvoysAccessLogIsInTheJournal(t *testing.T) {
	m := withEnvoy(t)
	v, err := m.visit()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.get("/logged/here"); err != nil {
		t.Fatal(err)
	}
	var found Entry
	m.await("the line", func() bool { // it is flushed once a second
		for _, e := range m.Journal("wingman-proxy") {
			if e.Message == "access /logged/here 200" {
				found = e
				return true
			}
		}
		return false
	})
	if found.Priority != 6 || found.PID != m.mainPID("wingman-proxy") {
		t.Errorf("the line is %+v, want priority 6 from the supervisor", found)
	}
}

func TestEnvoyWorksInItsSandbox(t *testing.T) {
	m := withEnvoy(t)
	pid := m.awaitEnvoy().PID
	status := m.Sh(fmt.Sprintf("cat /proc/%d/status", pid))
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("Envoy's status lacks %q:\n%s", want, status)
		}
	}
	// As many files as the unit gives, where this computer lets the machine have so many.
	limits := strings.Fields(m.Sh(fmt.Sprintf("sed -n 's/^Max open files *//p' /proc/%d/limits /proc/1/limits", pid)))
	if envoy, machine := limits[0], limits[4]; envoy != "1048576" && envoy != machine {
		t.Errorf("Envoy may open %s files, want 1048576 or what the machine has, %s", envoy, machine)
	}
	for unit, limit := range map[string]string{"wingman.service": "16", "wingman-proxy.service": "11"} {
		if out, err := m.Try("systemd-analyze", "security", "--no-pager", "--threshold="+limit, unit); err != nil {
			t.Errorf("%s is less tight than it was: %v\n%s", unit, err, out)
		}
	}
}

// A machine without Envoy has a supervisor that waits for one, quietly. When Envoy comes the mesh is told, which takes a new entry.
func TestEnvoyComesToAMachineThatHadNone(t *testing.T) {
	m := newMesh(t, func(m *mesh) {
		setResources(t, m.istiod)
		serveOther(t, m.segment)
	})
	m.join()
	supervisor := m.mainPID("wingman-proxy")
	m.await("the capture of DNS", func() bool { r, err := m.status(); return err == nil && r.Ready && r.Capture.Level == "dns" })
	if r, err := m.status(); err != nil || r.Envoy.Announced || r.Envoy.Phase != "waiting" || len(r.Degraded) > 0 {
		t.Errorf("without Envoy the agent says %+v, degraded by %q (%v); want a supervisor that waits and nothing amiss", r.Envoy, r.Degraded, err)
	}
	if label := m.istiod.Entries()[0].Labels["security.istio.io/tlsMode"]; label != "disabled" {
		t.Errorf("the entry's tlsMode is %q, want disabled", label)
	}
	t.Logf("the supervisor that waits costs\n%s", m.Sh(fmt.Sprintf("grep -E 'VmRSS|RssAnon' /proc/%d/status", supervisor)))

	m.CopyIn(Envoy(t), "/usr/local/bin/envoy", 0o755)
	m.awaitEnvoy()
	// This takes what istiod takes to remove the old entry: ten seconds.
	m.entry("healthy, and takes mutual TLS", func(e controlplane.Entry) bool {
		_, labelled := e.Labels["security.istio.io/tlsMode"]
		return serving(e) && !labelled
	})
	if now := m.mainPID("wingman-proxy"); now != supervisor {
		t.Errorf("the supervisor is process %d, want %d: it waited", now, supervisor)
	}
	said := 0
	for _, e := range m.Journal("wingman-proxy") {
		if strings.HasPrefix(e.Message, "Envoy is not started ") {
			said++
		}
	}
	if said > 2 { // no program, and perhaps that the agent has not written its file yet
		t.Errorf("the supervisor said %d times why it waits", said)
	}
}

// Without our units `wingman run --with-proxy` is agent and supervisor in one process, and SIGTERM ends it with Envoy.
func TestWithoutUnitsOneProcessIsBoth(t *testing.T) {
	m := newMesh(t, func(m *mesh) {
		m.CopyIn(Envoy(t), "/usr/local/bin/envoy", 0o755)
		setResources(t, m.istiod)
		serveOther(t, m.segment)
	})
	m.Run("systemctl", "disable", "--now", "wingman")
	m.await("the proxy to stop", func() bool { return m.show("wingman-proxy", "ActiveState") == "inactive" })
	m.Run("install", "-d", "-o", "istio-proxy", "/run/wingman", "/run/wingman-proxy")
	// As somebody might who writes an init script: no NOTIFY_SOCKET, and nobody who would end what is left of it.
	m.Run("systemd-run", "--quiet", "--unit=byhand", "--property=User=istio-proxy", "--property=AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
		"--property=KillMode=process", "--remain-after-exit", "/usr/bin/wingman", "run", "--with-proxy")
	m.awaitEnvoy()
	v, err := m.visit()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.get("/logged/byhand"); err != nil {
		t.Fatal(err)
	}
	m.await("the access log", func() bool { return strings.Contains(m.Sh("journalctl --unit=byhand"), "access /logged/byhand 200") })
	m.Run("systemctl", "kill", "--kill-who=main", "--signal=TERM", "byhand")
	m.await("its end", func() bool { return m.show("byhand", "SubState") == "exited" })
	if got := m.show("byhand", "Result") + " " + m.show("byhand", "ExecMainStatus"); got != "success 0" {
		t.Errorf("it ended with %s, want success and 0\n%s", got, m.lastWords())
	}
	if out, err := m.Try("pgrep", "-a", "-u", "istio-proxy"); err == nil {
		t.Errorf("processes are left:\n%s", out)
	}
	if out := m.rules(); strings.Contains(out, "ISTIO") || strings.Contains(out, "WINGMAN") {
		t.Errorf("rules are left:\n%s", out)
	}
}
