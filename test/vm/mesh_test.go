package vm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/controlplane"
	"wingman/test/files"
)

const (
	istiodAddress   = "10.99.0.1:15012"
	upstreamAddress = "10.99.0.1:53"
	settingsFile    = "/etc/wingman/wingman.yaml"
)

// mesh is a control plane and a resolver on a segment, and a machine that can join.
type mesh struct {
	*Machine
	istiod *controlplane.Server
}

// newMesh boots a machine with Wingman and istioctl's files; the daemon has not been started yet. prepare is called before the boot.
func newMesh(t *testing.T, prepare ...func(*mesh)) *mesh {
	t.Helper()
	m := newMeshWithout(t)
	m.Install(Wingman(t))
	m.Enable("wingman.service")
	m.settings()
	for _, do := range prepare {
		do(m)
	}
	m.Boot()
	m.token()
	return m
}

// settings writes what the agent has to be told here beside istioctl's files.
func (m *mesh) settings() {
	m.t.Helper()
	m.Write(settingsFile, "istiod: {address: \""+istiodAddress+"\", san: "+m.istiod.ServerName()+"}\n", 0o644)
}

// newMeshWithout makes a machine with istioctl's files, switched off and without Wingman.
func newMeshWithout(t *testing.T) *mesh {
	t.Helper()
	return newMeshOf(t, Bookworm, "forum")
}

// newMeshOf is newMeshWithout for a release, and for a name that no other machine at the same time has.
func newMeshOf(t *testing.T, release Release, name string) *mesh {
	t.Helper()
	segment := NewSegment(t)
	segment.AddAddress(t, "10.99.0.1/24")
	istiod, err := controlplane.New(controlplane.Config{Addr: istiodAddress})
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{Handler: dns.HandlerFunc(resolve)}
	if err := segment.Do(func() error {
		if upstream.PacketConn, err = net.ListenPacket("udp", upstreamAddress); err != nil {
			return err
		}
		return istiod.Start()
	}); err != nil {
		t.Fatal(err)
	}
	go upstream.ActivateAndServe()
	t.Cleanup(func() { upstream.Shutdown(); istiod.Close() })
	files.AddGroup(istiod)
	istiod.AddService("istioinaction", "webapp", "10.96.97.98")

	m := &mesh{segment.MachineOf(t, release, name, "10.99.0.2/24", "10.99.0.1"), istiod}
	m.CopyIn(Build(t, "wingman/test/vm/testdata/daemon"), "/usr/bin/app", 0o755)
	m.Write("/etc/systemd/system/app.service", "[Service]\nType=exec\nExecStart=/usr/bin/app app\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	m.Enable("app.service")
	staged := t.TempDir()
	if err := files.Write(staged, istiod); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{files.ClusterEnv, files.MeshConfig, files.Hosts, files.RootCert} {
		content, err := os.ReadFile(filepath.Join(staged, name))
		if err != nil {
			t.Fatal(err)
		}
		m.Write("/"+name, string(content), 0o644)
	}
	return m
}

// resolve answers for www.example.com and nothing else.
func resolve(w dns.ResponseWriter, q *dns.Msg) {
	a := new(dns.Msg)
	a.SetReply(q)
	if q.Question[0].Name == "www.example.com." {
		a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 80)}}
	} else {
		a.Rcode = dns.RcodeNameError
	}
	w.WriteMsg(a)
}

// token gives the machine a fresh one, which lasts until its next boot.
func (m *mesh) token() {
	m.t.Helper()
	token, err := m.istiod.MintToken(controlplane.TokenOptions{Namespace: files.Namespace, ServiceAccount: files.ServiceAccount})
	if err != nil {
		m.t.Fatal(err)
	}
	m.Write("/run/secrets/tokens/istio-token", token, 0o640)
	m.Run("chgrp", "istio-proxy", "/run/secrets/tokens/istio-token")
}

// entry waits until the machine's WorkloadEntry is as it should be.
func (m *mesh) entry(what string, is func(controlplane.Entry) bool) controlplane.Entry {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	e, err := m.istiod.WaitEntry(ctx, is)
	if err != nil {
		m.t.Fatalf("no WorkloadEntry that is %s: %v; there are %+v\n%s", what, err, m.istiod.Entries(), m.lastWords())
	}
	return e
}

func serving(e controlplane.Entry) bool { return e.Connected && e.Serving() }

// join starts the daemon and waits until mesh names are resolved through the kernel's redirect.
func (m *mesh) join() {
	m.t.Helper()
	m.Run("systemctl", "start", "wingman")
	m.entry("joined", serving)
	m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
}

// mustResolve asks as a program on the machine does: by resolv.conf.
func (m *Machine) mustResolve(name, want string) {
	m.t.Helper()
	m.await("an answer for "+name, func() bool {
		out, err := m.Try("dig", "+short", "+timeout=2", "+tries=1", name)
		return err == nil && out == want
	})
}

func (m *Machine) rules() string { return m.Sh("iptables-save; ip6tables-save; nft list ruleset") }

func TestRestartsAndCrashesAreNotSeenByTheMesh(t *testing.T) {
	m := newMesh(t)
	m.join()
	before := m.istiod.Entries()
	events := len(m.istiod.Events())
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("webapp.istioinaction.svc.cluster.local."))
	for range 5 {
		m.Run("systemctl", "restart", "wingman")
		m.entry("joined again", serving)
		if !strings.Contains(m.rules(), "--to-ports 15053") {
			t.Error("the rules were gone after a restart")
		}
	}
	for range 4 { // the fifth within 30 s is a crash loop
		m.kill("wingman", "KILL")
	}
	sent, lost := load.end()
	t.Logf("%d queries sent, %d lost", sent, lost)
	if lost > 0 {
		t.Errorf("%d of %d queries were lost, want none\n%s", lost, sent, m.lastWords())
	}
	for _, e := range m.istiod.Events()[events:] {
		if e.Kind == controlplane.EntryRemoved || e.Kind == controlplane.EntryCreated || e.Kind == controlplane.HealthReported && !e.Healthy || e.Kind == controlplane.Violation {
			t.Errorf("the control plane saw: %s", e)
		}
	}
	if after := m.istiod.Entries(); len(after) != 1 || after[0].Name != before[0].Name {
		t.Errorf("there are entries %+v, want the one from before", after)
	}
}

func TestAStopLeavesNothingBehind(t *testing.T) {
	m := newMesh(t)
	bare := m.rules()
	m.join()
	if m.rules() == bare {
		t.Fatal("a machine that joined has no rules")
	}
	e := m.istiod.Entries()[0]
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
	m.Run("systemctl", "stop", "wingman")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d queries for a public name were lost, want none", lost, sent)
	}
	reported := false
	for _, event := range m.istiod.Events() {
		reported = reported || event.Kind == controlplane.HealthReported && !event.Healthy
	}
	if !reported {
		t.Error("the machine did not say that it is unhealthy before it left")
	}
	if out := m.rules(); strings.Contains(out, "ISTIO") || strings.Contains(out, "WINGMAN") || strings.Contains(out, "wingman") {
		t.Errorf("rules are left:\n%s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.istiod.WaitNoEntry(ctx, e.Namespace, e.Name); err != nil {
		t.Errorf("the entry is still there: %v", err)
	}
}

func TestReboots(t *testing.T) {
	m := newMesh(t)
	m.join()
	for range 2 {
		events := len(m.istiod.Events())
		m.Reboot() // /run is empty then: the token is gone
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := m.istiod.WaitEventAfter(ctx, events, func(e controlplane.Event) bool { return e.Kind == controlplane.HealthReported && e.Healthy })
		cancel()
		if err != nil {
			t.Fatalf("not joined after a reboot without a token: %v\n%s", err, m.lastWords())
		}
		m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	}

	// Without power, and nobody to join when it is back.
	m.istiod.Stop()
	m.PowerCut()
	m.Boot()
	if got := m.Run("systemctl", "is-system-running"); got != "running" {
		t.Errorf("without a control plane the machine is %s, want running\n%s", got, m.lastWords())
	}
	m.waitActive("wingman.service")
	m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	m.mustResolve("www.example.com", "192.0.2.80")
	if err := m.segment.Do(m.istiod.Start); err != nil {
		t.Fatal(err)
	}
	m.entry("joined when the control plane came back", serving)
}

func TestACrashLoopLeavesDNSAndEndsByItself(t *testing.T) {
	m := newMesh(t)
	m.join()
	open := func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" }
	for range 5 {
		pid := m.mainPID("wingman")
		m.Run("systemctl", "kill", "--kill-who=main", "--signal=KILL", "wingman")
		m.await("the next start, or the guard", func() bool {
			next := m.mainPID("wingman")
			return next != 0 && next != pid || open()
		})
	}
	m.await("the guard", open)
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
	if out := m.rules(); strings.Contains(out, "15053") {
		t.Errorf("after five crashes DNS still goes to the agent:\n%s", out)
	}
	m.waitActive("wingman.service")
	m.mustResolve("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d queries for a public name were lost, want none", lost, sent)
	}
}
