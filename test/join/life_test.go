package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"wingman/agent"
	"wingman/agent/enrol"
	"wingman/agent/status"
	"wingman/health"
	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/freeport"
)

// reload asks the daemon to read its files again.
func (m *machine) reload() { m.sighup <- syscall.SIGHUP }

// Promise 6: unhealthy is said before a stop begins, not after.
func TestUnhealthyIsSaidBeforeTheStreamEnds(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}), "probe: {tcpSocket: {port: "+fmt.Sprint(listener(t))+"}, periodSeconds: 1}")
	m.start()
	m.until("joined", joined)
	m.entry("healthy", func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == "True" })
	n := len(m.istiod.Events())
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, e := range m.istiod.Events()[n:] {
		switch e.Kind {
		case controlplane.HealthReported, controlplane.StreamClosed:
			order = append(order, fmt.Sprintf("%s healthy=%v", e.Kind, e.Healthy))
		}
	}
	want := "health reported healthy=false, stream closed healthy=false"
	if got := strings.Join(order, ", "); got != want {
		t.Errorf("istiod heard %q, want %q", got, want)
	}
}

// Promise 9: without Envoy nobody may send TLS to this machine, whatever is captured.
func TestWithoutEnvoyNobodySendsTLS(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.write(files.Wingman, strings.Replace(m.read(files.Wingman), "capture: none", "capture: all", 1))
	m.start()
	r := m.until("joined", joined)
	e := m.entry("there", func(controlplane.Entry) bool { return true })
	if got := e.Labels["security.istio.io/tlsMode"]; got != "disabled" {
		t.Errorf("tlsMode %q, want disabled", got)
	}
	if r.Capture.Level == "all" {
		t.Errorf("capture %+v, want none of TCP: there is no Envoy to take it", r.Capture)
	}
}

func TestIstiodIsFoundByTheHostsFile(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{ServerNames: []string{"istiod.nowhere.invalid"}})
	m := newMachine(t, istiod)
	_, port, _ := strings.Cut(istiod.Addr(), ":")
	settings := strings.ReplaceAll(m.read(files.Wingman), `"`+istiod.Addr()+`"`, `"istiod.nowhere.invalid:`+port+`"`)
	m.write(files.Wingman, settings)
	m.write(files.Hosts, "127.0.0.1 istiod.nowhere.invalid\n")
	m.start()
	m.until("joined by the hosts file", joined)
}

func TestChangedAddressMakesAnotherEntry(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{Grace: 100 * time.Millisecond}))
	m.start()
	m.until("joined", joined)
	m.entry("at its address", func(e controlplane.Entry) bool { return e.Address == "10.99.0.2" })
	t.Cleanup(func() {
		if err := setAddress(address); err != nil {
			t.Error(err)
		}
	})
	if err := setAddress("10.99.0.7/24"); err != nil {
		t.Fatal(err)
	}
	m.entry("at its new address", func(e controlplane.Entry) bool { return e.Address == "10.99.0.7" && e.Connected })
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.istiod.WaitEntries(ctx, func(es []controlplane.Entry) bool { return len(es) == 1 }); err != nil {
		t.Errorf("the entry of the old address stays: %+v", m.istiod.Entries())
	}
}

// The folder where applications read moves, once while the agent runs and once while it does not: the one from before is as it was before the agent.
func TestTheFolderOfCertificatesMoves(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	root, good := m.read(files.RootCert), m.read(files.Wingman)
	in := func(dir string) func(status.Report) bool {
		return func(r status.Report) bool {
			_, noKey := os.Stat(m.path(dir + "/key.pem"))
			_, noRoot := os.Stat(m.path(dir + "/root-cert.pem"))
			return noKey == nil && noRoot == nil && joined(r)
		}
	}
	bare := func(dir string) {
		t.Helper()
		entries, err := os.ReadDir(m.path(dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "root-cert.pem" || m.read(files.RootCert) != root {
				t.Errorf("%s is left in %s", e.Name(), dir)
			}
		}
	}
	m.start()
	m.until("joined", in("/etc/certs"))
	m.write(files.Wingman, good+"identity: {outputDir: /srv/certs}\n")
	m.reload()
	m.until("elsewhere", in("/srv/certs"))
	bare("/etc/certs")
	if list := m.read("/var/lib/wingman/elsewhere"); list != "output /srv/certs\n" { // what a purge goes by, whatever becomes of the settings
		t.Errorf("noted as put elsewhere: %q, want /srv/certs", list)
	}
	if r, err := os.ReadFile(m.path("/srv/certs/root-cert.pem")); err != nil || !strings.Contains(string(r), root) {
		t.Errorf("roots there: %v, %s", err, r)
	}
	m.write(files.Wingman, good)
	m.reload()
	m.until("back", in("/etc/certs"))
	bare("/srv/certs")
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.write(files.Wingman, good+"identity: {outputDir: /srv/certs}\n")
	if err := enrol.Leave(t.Context(), enrol.Options{Root: m.root, Timeout: patience, Say: func(string) {}}); err != nil {
		t.Fatal(err)
	}
	bare("/etc/certs")
	bare("/srv/certs")
}

func TestReload(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.start()
	first := m.until("joined", joined)
	good := m.read(files.Wingman)

	// A bad file changes nothing, and is said.
	m.write(files.Wingman, good+"nonsense: true\n")
	m.reload()
	r := m.until("degraded by the bad file", func(r status.Report) bool { return strings.Contains(strings.Join(r.Degraded, " "), "cannot be used") })
	if !joined(r) || !strings.Contains(strings.Join(r.Config.Problems, " "), "nonsense") {
		t.Errorf("after a bad reload %+v, want joined and the problem named", r)
	}
	m.mustResolve("webapp.istioinaction", "10.96.97.98")

	// What is open stays open: DNS is where the sockets are, and what waits for a restart is said.
	elsewhere := freeport.Addr()
	m.write(files.Wingman, strings.Replace(good, m.dns.String(), elsewhere.String(), 1))
	m.reload()
	m.until("waiting for a restart", func(r status.Report) bool { return strings.Contains(strings.Join(r.Degraded, " "), "dns.listen") })
	m.mustResolve("webapp.istioinaction", "10.96.97.98")

	// Another name takes another node: a new stream with it.
	m.write(files.Wingman, good+"workload: {instance: renamed}\n")
	m.reload()
	r = m.until("registered under its new name", func(r status.Report) bool {
		return joined(r) && strings.Contains(r.Instance.NodeID, "renamed.") && r.XDS != nil && r.XDS.Answered
	})
	if len(r.Degraded) > 0 && strings.Contains(strings.Join(r.Degraded, " "), "restart") {
		t.Errorf("degraded %v although the file is as the daemon is", r.Degraded)
	}
	if r.PID != first.PID || r.Identity.Serial != first.Identity.Serial {
		t.Errorf("after reloads serial %s, want %s: the certificate is used on", r.Identity.Serial, first.Identity.Serial)
	}
}

// istiod reads labels only when it makes the entry: a changed one needs the old entry to be gone. DNS does not notice.
func TestAChangedLabelMakesAnotherEntry(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{Grace: 3 * time.Second})) // a reload takes less, on a loaded machine too
	good := m.read(files.Wingman) + "workload: {entryGrace: 6s, labels: {tier: %s}}\n"
	m.write(files.Wingman, fmt.Sprintf(good, "front"))
	m.start()
	m.until("joined", joined)
	m.entry("labelled, and its health is known", func(e controlplane.Entry) bool {
		return e.Labels["tier"] == "front" && e.Connected && e.Condition != nil
	})

	n := len(m.istiod.Events())
	m.write(files.Wingman, fmt.Sprintf(good, "back"))
	m.reload()
	m.entry("labelled anew", func(e controlplane.Entry) bool { return e.Labels["tier"] == "back" && e.Connected })
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
	var order []string
	for _, e := range m.istiod.Events()[n:] {
		switch e.Kind {
		case controlplane.HealthReported, controlplane.StreamClosed, controlplane.EntryRemoved, controlplane.EntryCreated:
			order = append(order, string(e.Kind))
		}
	}
	want := "health reported, stream closed, entry removed, entry created"
	if got := strings.Join(order, ", "); !strings.HasPrefix(got, want) {
		t.Errorf("istiod saw %q, want %q first", got, want)
	}

	// The same settings again are no reason to leave.
	m.until("istiod has answered", func(r status.Report) bool { return joined(r) && r.XDS != nil && r.XDS.Answered })
	n = len(m.istiod.Events())
	m.reload()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := m.istiod.WaitEventAfter(ctx, n, func(e controlplane.Event) bool { return e.Kind == controlplane.StreamOpened }); err != nil {
		t.Fatalf("no new stream after a reload: %v", err)
	}
	m.until("joined again", func(r status.Report) bool { return joined(r) && r.XDS != nil && r.XDS.Answered })
	for _, e := range m.istiod.Events()[n:] {
		if e.Kind == controlplane.EntryRemoved {
			t.Errorf("the entry was removed: %s", e)
		}
	}
}

// An operator takes a machine out of load balancing: over a restart too, until it is brought back.
func TestDrain(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}), "probe: {tcpSocket: {port: "+fmt.Sprint(listener(t))+"}, periodSeconds: 1}", "drain: {propagation: 100ms}")
	m.start()
	m.until("joined", joined)
	healthy := func(status string) func(controlplane.Entry) bool {
		return func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == status }
	}
	m.entry("healthy", healthy("True"))

	r, err := agent.Client(m.root).Drain(t.Context(), "new kernel")
	if err != nil || r.Drained != "drained by hand: new kernel" || !r.Ready {
		t.Fatalf("Drain = %+v, %v; want it drained, and ready as before", r, err)
	}
	e := m.entry("drained", healthy("False"))
	if !strings.Contains(e.Condition.Message, "new kernel") {
		t.Errorf("the condition says %q, want the reason", e.Condition.Message)
	}
	m.mustResolve("webapp.istioinaction", "10.96.97.98")
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	n := len(m.istiod.Events())
	m.start()
	m.until("joined and drained", func(r status.Report) bool {
		return joined(r) && r.Drained != "" && r.Health.Healthy != nil && *r.Health.Healthy
	})
	m.entry("still drained", healthy("False"))

	if r, err = agent.Client(m.root).Undrain(t.Context()); err != nil || r.Drained != "" {
		t.Fatalf("Undrain = %+v, %v", r, err)
	}
	m.entry("healthy again", healthy("True"))
	for _, e := range m.istiod.Events()[n:] {
		if e.Kind == controlplane.HealthReported && e.Healthy {
			break
		}
		if e.Kind == controlplane.HealthReported && !strings.Contains(e.Detail, "drained") {
			t.Errorf("istiod heard %q of a drained machine", e.Detail)
		}
	}
	if _, err := agent.Client(m.root).Undrain(t.Context()); err != nil {
		t.Errorf("Undrain of a machine that is not drained = %v, want nil", err)
	}
}

// Who drains during an outage is told at once that the mesh does not know yet, and not kept until there is a stream again.
func TestADrainDuringAnOutageDoesNotWaitForIt(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	m := newMachine(t, istiod)
	m.start()
	m.until("joined", joined)
	istiod.Stop()
	m.until("away", func(r status.Report) bool { return r.XDS != nil && r.XDS.LastError != "" })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	const said = "istiod cannot be told now"
	if _, err := agent.Client(m.root).Drain(ctx, "new kernel"); err == nil || !strings.Contains(err.Error(), said) {
		t.Errorf("Drain: %v, want %s", err, said)
	}
	if _, err := agent.Client(m.root).Undrain(ctx); err == nil || !strings.Contains(err.Error(), said) {
		t.Errorf("Undrain: %v, want %s", err, said)
	}
}

// A control plane that is away, and one that says no, both show.
func TestAnOutageShows(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	istiod.RemoveGroup(files.Namespace, files.Group)
	m := newMachine(t, istiod)
	m.start()
	m.until("degraded, naming the group", func(r status.Report) bool {
		return strings.Contains(strings.Join(r.Degraded, " "), files.Namespace+"/"+files.Group)
	})
	files.AddGroup(istiod)
	m.until("joined once the group is there", func(r status.Report) bool {
		return joined(r) && !strings.Contains(strings.Join(r.Degraded, " "), "WorkloadGroup")
	})
	istiod.Stop()
	r := m.until("away", func(r status.Report) bool { return r.XDS != nil && r.XDS.LastError != "" })
	if r.XDS.DownSince.IsZero() || time.Since(r.XDS.DownSince) > patience {
		t.Errorf("down since %v, want the moment it went", r.XDS.DownSince)
	}
}

// The mesh's CA was replaced: a new root and a fresh token are enough, nobody restarts or renews anything.
func TestReplacedCAIsFollowed(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	m := newMachine(t, istiod)
	m.start()
	old := m.until("joined", joined).Identity.Serial
	if err := istiod.Faults().RotateRoot(false); err != nil {
		t.Fatal(err)
	}
	istiod.Faults().DropConnections()
	m.until("cut off", func(r status.Report) bool { return r.XDS.LastError != "" })
	m.write(files.RootCert, string(istiod.RootPEM()))
	m.token(controlplane.TokenOptions{})
	m.until("a member of the new CA's mesh", func(r status.Report) bool {
		return joined(r) && r.Identity.Serial != old && r.XDS.Answered
	})
}

// listener opens a port that accepts connections.
func listener(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0") // the probe comes from 127.0.0.6 to the machine's own address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func (m *machine) read(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(m.path(name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(b)
}

// After a crash loop the agent that comes up says what was, and why; a machine that was well says nothing.
func TestTheEndOfACrashLoopIsSaid(t *testing.T) {
	m := newMachine(t, newIstiod(t, controlplane.Config{}))
	m.write("run/wingman-guard/open", "2026-11-23T12:00:00Z the agent ended badly 5 times within 30 s, last with signal (killed KILL)\n")
	m.start()
	r := m.until("joined", joined)
	said := strings.Join(r.Degraded, " ")
	for _, want := range []string{"ended badly 5 times", "killed KILL", "2026-11-23T12:00:00Z", "DNS was not redirected until", "journalctl"} {
		if !strings.Contains(said, want) {
			t.Errorf("the status says %q, want %q in it", said, want)
		}
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.remove("run/wingman-guard") // as the guard does after a good end
	m.start()
	// It is a member by what is on disk before it knows its address, and says that for a moment.
	m.until("joined again, with nothing to say", func(r status.Report) bool { return joined(r) && len(r.Degraded) == 0 })
}

// Peers refuse a certificate that has ended: from that moment the machine is unhealthy, over a stream that still stands, and healthy again with the next one.
// The history tells of it, after a restart too.
func TestACertificateThatEndsIsUnhealthy(t *testing.T) {
	istiod := newIstiod(t, controlplane.Config{})
	istiod.Faults().SetCA(controlplane.CAFault{Validity: 3 * time.Second})
	m := newMachine(t, istiod, "probe: {tcpSocket: {port: "+fmt.Sprint(listener(t))+"}, periodSeconds: 1}")
	condition := func(status string) func(controlplane.Entry) bool {
		return func(e controlplane.Entry) bool { return e.Condition != nil && e.Condition.Status == status }
	}
	m.start()
	m.until("joined", joined)
	m.entry("healthy", condition("True"))
	istiod.Faults().SetCA(controlplane.CAFault{Reply: controlplane.CAError, Code: codes.Unavailable})
	e := m.entry("unhealthy", condition("False"))
	if !strings.Contains(e.Condition.Message, "the certificate ended at") {
		t.Errorf("the condition says %q, want that the certificate ended", e.Condition.Message)
	}
	r, _ := m.status()
	if late := time.Since(r.Identity.NotAfter); late > patience/2 {
		t.Errorf("unhealthy %s after the certificate's end, want it at once", late)
	}
	istiod.Faults().SetCA(controlplane.CAFault{})
	if _, err := agent.Client(m.root).Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.entry("healthy again", condition("True"))

	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.until("joined again", joined)
	m.entry("healthy after a restart", condition("True"))
	var history []health.Report
	if err := agent.Client(m.root).HealthHistory(t.Context(), &history); err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, h := range history {
		words = append(words, fmt.Sprintf("%t %.21s", h.Healthy, h.Reason))
	}
	if got := strings.Join(words, ", "); !strings.Contains(got, "false the certificate ended, true ") || !strings.Contains(got, ", false wingman on this mach") {
		t.Errorf("the history is %q, want health, the certificate's end, health, and the stop", got)
	}
}
