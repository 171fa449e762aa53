package vm

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/agent/status"
	"wingman/test/controlplane"
)

// uplinkAddress is the resolver of the machines in these tests: one that remembers what it was asked.
const uplinkAddress = "10.99.0.5"

// uplink is a machine's resolver elsewhere.
type uplink struct {
	mu    sync.Mutex // guards everything below
	asked map[string]int
}

// ServeDNS knows a few names, and denies the others for an hour.
func (u *uplink) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name := strings.ToLower(q.Question[0].Name)
	u.mu.Lock()
	u.asked[name]++
	u.mu.Unlock()
	a := new(dns.Msg).SetReply(q)
	addr := map[string]string{"www.example.com.": "192.0.2.80", "old.db.corp.internal.": "192.0.2.81"}[name]
	head := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: 3600}
	switch {
	case addr != "" && q.Question[0].Qtype == dns.TypeA:
		head.Rrtype = dns.TypeA
		a.Answer = []dns.RR{&dns.A{Hdr: head, A: net.ParseIP(addr)}}
	case addr != "":
	default:
		a.Rcode = dns.RcodeNameError
		head.Name, head.Rrtype = "internal.", dns.TypeSOA
		a.Ns = []dns.RR{&dns.SOA{Hdr: head, Ns: "ns.internal.", Mbox: "x.internal.", Minttl: 3600}}
	}
	w.WriteMsg(a)
}

func (u *uplink) times(name string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked[name]
}

// meshNames are services, and what ServiceEntries bring.
func meshNames(more ...string) map[string][]string {
	names := map[string][]string{
		"webapp.istioinaction.svc.cluster.local":   {"10.96.97.98"},
		"catalog.forum-services.svc.cluster.local": {"10.96.97.99", "fd00::99"},
		"db.corp.internal":                         {"240.240.0.1"},
		"*.wild.corp.internal":                     {"240.240.0.2"},
	}
	for _, host := range more {
		names[host] = []string{"240.240.0.3"}
	}
	return names
}

// withResolved boots a machine in dns.mode resolved. It has a .network file that matches every interface, and joins.
func withResolved(t *testing.T) (*mesh, *uplink) {
	u := &uplink{asked: map[string]int{}}
	m := newMesh(t, func(m *mesh) {
		m.segment.AddAddress(t, uplinkAddress+"/24")
		server := &dns.Server{Handler: u}
		if err := m.segment.Do(func() (err error) {
			server.PacketConn, err = net.ListenPacket("udp", uplinkAddress+":53")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		go server.ActivateAndServe()
		t.Cleanup(func() { server.Shutdown() })
		network := m.Read("/etc/systemd/network/10-host0.network")
		m.Write("/etc/systemd/network/10-host0.network", strings.Replace(network, "DNS=10.99.0.1", "LLMNR=no\nDNS="+uplinkAddress, 1), 0o644)
		m.Write("/etc/systemd/network/20-all.network", "[Match]\nType=ether\n[Network]\nAddress=10.98.0.1/24\n", 0o644)
		m.Write(settingsFile, m.Read(settingsFile)+"dns: {mode: resolved}\n", 0o644)
		m.istiod.SetNames(controlplane.Names(meshNames()))
	})
	m.Run("systemctl", "start", "wingman")
	m.entry("joined", serving)
	m.awaitResolved("the registration", func(r status.DNSReport) bool { return r.Resolved.Registered && r.Names == 4 })
	return m, u
}

// awaitResolved waits until the agent says of systemd-resolved what it should.
func (m *mesh) awaitResolved(what string, is func(status.DNSReport) bool) (r status.Report) {
	m.t.Helper()
	m.await(what, func() (ok bool) {
		var err error
		r, err = m.status()
		return err == nil && r.DNS.Resolved != nil && is(r.DNS)
	})
	return r
}

// mustFind asks as a C program does, and mustNotFind, by getaddrinfo(3).
func (m *mesh) mustFind(name string, want ...string) {
	m.t.Helper()
	out, err := m.Try("getent", "ahosts", name)
	var got []string
	for line := range strings.Lines(out) {
		if addr := strings.Fields(line)[0]; !slices.Contains(got, addr) {
			got = append(got, addr)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		m.t.Errorf("getent ahosts %s: %v (%v), want %v\n%s", name, got, err, want, m.Run("resolvectl", "status"))
	}
}

func (m *mesh) mustNotFind(name string) {
	m.t.Helper()
	if out, err := m.Try("getent", "ahosts", name); err == nil {
		m.t.Errorf("getent ahosts %s: %s, want nothing", name, out)
	}
}

// passedOn counts the questions that the agent took upstream.
func (m *mesh) passedOn() (n int) {
	m.t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: func(_ context.Context, network, addr string) (conn net.Conn, err error) {
		return conn, m.Do(func() (err error) { conn, err = net.Dial(network, addr); return err })
	}, DisableKeepAlives: true}}
	resp, err := client.Get("http://127.0.0.1:15020/metrics")
	if err != nil {
		m.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "wingman_dnsproxy_queries_total") && (strings.Contains(line, `source="upstream"`) || strings.Contains(line, `source="cache"`)) {
			value, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
			if err != nil {
				m.t.Fatal(err)
			}
			n += value
		}
	}
	return n
}

// lookUpFresh is the exchange with names that nobody has asked for before.
func lookUpFresh(suffix string) exchange {
	x := lookUp("")
	x.ask = func(id uint16) []byte {
		return lookUp(fmt.Sprintf("q%d-%d.%s", id, time.Now().UnixNano(), suffix)).ask(id)
	}
	return x
}

func TestSystemdResolvedSendsMeshNamesAlone(t *testing.T) {
	m, u := withResolved(t)
	if out := m.rules(); strings.Contains(out, "15053") {
		t.Errorf("rules redirect DNS beside systemd-resolved:\n%s", out)
	}
	_, list, _ := strings.Cut(m.Run("resolvectl", "domain", "wingman-dns"), ": ")
	if got, want := strings.Join(strings.Fields(list), " "), "forum-services.svc.cluster.local svc.cluster.local ~svc ~svc.cluster ~wild.corp.internal ~db.corp.internal ~catalog.forum-services ~webapp.istioinaction"; got != want {
		t.Errorf("resolvectl domain:\n%s\nwant\n%s", got, want)
	}
	if out := m.Run("networkctl", "--no-legend", "list", "wingman-dns", "wingman-dns-far"); strings.Count(out, "unmanaged") != 2 {
		t.Errorf("networkd took the link:\n%s", out)
	}
	// polkit lets the agent's user do what the agent does, and nothing else, nor anybody else.
	index := m.Run("cat", "/sys/class/net/wingman-dns/ifindex")
	for _, tc := range []struct {
		user, call string
		ok         bool
	}{
		{"istio-proxy", "SetLinkLLMNR is " + index + " no", true},
		{"istio-proxy", "RevertLink i " + index, false},
		{"istio-proxy", "SetLinkDNSSECNegativeTrustAnchors ias " + index + " 0", false},
		{"nobody", "SetLinkLLMNR is " + index + " no", false},
	} {
		as := []string{"setpriv", "--reuid=" + tc.user, "--clear-groups", "busctl", "call", "org.freedesktop.resolve1", "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager"}
		if out, err := m.Try(append(as, strings.Fields(tc.call)...)...); (err == nil) != tc.ok {
			t.Errorf("%s as %s: %s, %v; want it allowed: %t", tc.call, tc.user, out, err, tc.ok)
		}
	}

	for _, nss := range []string{"dns", "resolve [!UNAVAIL=return] dns"} {
		m.Sh("sed -i 's/^hosts:.*/hosts: files " + nss + "/' /etc/nsswitch.conf")
		m.mustFind("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
		m.mustFind("catalog.forum-services.svc.cluster.local", "10.96.97.99", "fd00::99")
		m.mustFind("catalog", "10.96.97.99", "fd00::99")
		m.mustFind("webapp.istioinaction", "10.96.97.98")
		m.mustFind("webapp.istioinaction.svc", "10.96.97.98")
		m.mustFind("DB.Corp.Internal", "240.240.0.1")
		m.mustFind("any.thing.wild.corp.internal", "240.240.0.2")
		m.mustFind("old.db.corp.internal", "192.0.2.81") // below a mesh name and not the mesh's
		m.mustNotFind("webapp")
		m.mustNotFind("nobody.istioinaction.svc.cluster.local")
	}
	if out := m.Run("resolvectl", "query", "webapp.istioinaction.svc.cluster.local"); !strings.Contains(out, "10.96.97.98") {
		t.Errorf("resolvectl query: %s", out)
	}
	for _, mine := range []string{"webapp.istioinaction.svc.cluster.local.", "webapp.istioinaction.", "webapp.istioinaction.svc.", "db.corp.internal.", "any.thing.wild.corp.internal."} {
		if n := u.times(mine); n > 0 {
			t.Errorf("the machine's resolver was asked for %s %d times, want never", mine, n)
		}
	}
	before := m.passedOn()
	m.mustFind("www.example.com", "192.0.2.80")
	if n := u.times("www.example.com."); n == 0 || m.passedOn() != before {
		t.Errorf("www.example.com was asked of the machine's resolver %d times, and the agent passed on %d questions; want it past the agent", n, m.passedOn()-before)
	}
	if out := m.Run("wingman", "dns", "query", "www.example.com", "--explain"); !strings.Contains(out, "does not send it here") {
		t.Errorf("wingman dns query --explain of a name outside:\n%s", out)
	}
	if out := m.Run("wingman", "dns", "query", "db.corp.internal", "--explain"); !strings.Contains(out, "by domain ~db.corp.internal") {
		t.Errorf("wingman dns query --explain of a mesh name:\n%s", out)
	}

	// Another table. A name that was denied for an hour upstream is found at once or soon, once the mesh has it.
	m.mustNotFind("new.istioinaction.svc.cluster.local")
	if out := m.Run("dig", "+noall", "+authority", "new.istioinaction.svc.cluster.local"); !strings.Contains(out, "SOA") || ttlOf(t, out) > 30 {
		t.Errorf("a name that may become the mesh's is denied with %q, want a TTL of 30 s at most", out)
	}
	m.istiod.SetNames(controlplane.Names(meshNames("queue.other.example")))
	m.awaitResolved("the new domain", func(r status.DNSReport) bool { return r.Resolved.Domains == 9 })
	m.mustFind("queue.other.example", "240.240.0.3")
}

// ttlOf is that of the one record that dig printed.
func ttlOf(t *testing.T, line string) int {
	t.Helper()
	fields := strings.Fields(line)
	if len(fields) < 2 {
		t.Fatalf("dig said %q, want a record", line)
	}
	ttl, err := strconv.Atoi(fields[1])
	if err != nil {
		t.Fatal(err)
	}
	return ttl
}

func TestSystemdResolvedKeepsMeshNames(t *testing.T) {
	m, _ := withResolved(t)
	const fresh = "wild.corp.internal."
	index := m.Run("cat", "/sys/class/net/wingman-dns/ifindex")
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUpFresh(fresh))
	for range 3 {
		m.Run("systemctl", "restart", "wingman")
		m.kill("wingman", "KILL")
	}
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d queries were lost over restarts and crashes, want none\n%s", lost, sent, m.lastWords())
	}
	if now := m.Run("cat", "/sys/class/net/wingman-dns/ifindex"); now != index {
		t.Errorf("the link was made anew: index %s, was %s", now, index)
	}
	if out := m.Sh("ls /sys/class/net"); strings.Count(out, "wingman") != 2 {
		t.Errorf("interfaces: %s", out)
	}

	// Others at work.
	m.Run("ip", "link", "delete", "wingman-dns")
	m.awaitResolved("the link again", func(r status.DNSReport) bool { return r.Resolved.Registered && r.Resolved.Repairs == 1 })
	m.mustFind("db.corp.internal", "240.240.0.1")
	m.Run("resolvectl", "revert", "wingman-dns")
	m.awaitResolved("the domains again", func(r status.DNSReport) bool { return r.Resolved.Registered && r.Resolved.Repairs == 2 })
	m.mustFind("db.corp.internal", "240.240.0.1")
	m.Run("systemctl", "restart", "systemd-resolved")
	m.mustFind("db.corp.internal", "240.240.0.1")
	m.Run("systemctl", "restart", "dbus")
	m.Run("systemctl", "stop", "systemd-resolved")
	r := m.awaitResolved("word of a systemd-resolved that does not run", func(r status.DNSReport) bool { return !r.Resolved.Registered })
	if all := strings.Join(r.Degraded, "\n"); !strings.Contains(all, "systemd-resolved does not run: systemctl enable --now systemd-resolved") {
		t.Errorf("degraded:\n%s", all)
	}
	if out, err := m.Try("systemctl", "is-active", "systemd-resolved"); err == nil {
		t.Errorf("systemd-resolved is %s after somebody stopped it", out)
	}
	m.Run("systemctl", "start", "systemd-resolved")
	m.awaitResolved("the registration after that", func(r status.DNSReport) bool { return r.Resolved.Registered })
	m.mustFind("db.corp.internal", "240.240.0.1")

	// Programs that do not ask it.
	m.Sh("cp /run/systemd/resolve/resolv.conf /etc/resolv.new && mv /etc/resolv.new /etc/resolv.conf")
	m.await("word of a resolv.conf that leads elsewhere", func() bool {
		r, err := m.status()
		return err == nil && strings.Contains(strings.Join(r.Degraded, "\n"), "resolv.conf names "+uplinkAddress)
	})
	if out, _ := m.Try("wingman", "config", "check"); !strings.Contains(out, "resolv.conf names "+uplinkAddress) {
		t.Errorf("wingman config check:\n%s", out)
	}
	m.Sh("ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf")

	// Another mode waits for a restart; a stop takes everything back.
	settings := m.Read(settingsFile)
	m.Write(settingsFile, strings.Replace(settings, "mode: resolved", "mode: redirect", 1), 0o644)
	m.Run("systemctl", "reload", "wingman")
	m.await("a setting that waits", func() bool {
		r, err := m.status()
		return err == nil && strings.Contains(strings.Join(r.Degraded, "\n"), "wait for systemctl restart wingman: dns.mode")
	})
	m.mustFind("db.corp.internal", "240.240.0.1")
	m.Run("systemctl", "restart", "wingman")
	m.await("the rules", func() bool { return strings.Contains(m.rules(), "--to-ports 15053") })
	if out := m.Sh("ls /sys/class/net"); strings.Contains(out, "wingman") {
		t.Errorf("in mode redirect there are interfaces %s", out)
	}
	m.mustFind("db.corp.internal", "240.240.0.1")
	m.Write(settingsFile, settings, 0o644)
	m.Run("systemctl", "restart", "wingman")
	m.awaitResolved("the registration in the mode from before", func(r status.DNSReport) bool { return r.Resolved.Registered })
	m.await("no rules", func() bool { return !strings.Contains(m.rules(), "--to-ports 15053") })
	m.mustFind("db.corp.internal", "240.240.0.1")

	outside := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
	m.Run("systemctl", "stop", "wingman")
	if sent, lost := outside.end(); lost > 0 {
		t.Errorf("%d of %d queries for a public name were lost in a stop, want none", lost, sent)
	}
	if out := m.Sh("ls /sys/class/net"); strings.Contains(out, "wingman") {
		t.Errorf("after a stop there are interfaces %s", out)
	}
	m.mustNotFind("db.corp.internal")
	if out := m.Run("cat", "/etc/resolv.conf"); strings.Contains(out, "cluster.local") {
		t.Errorf("search domains are left:\n%s", out)
	}
}

func TestACrashLoopGivesNamesBackToSystemdResolved(t *testing.T) {
	m, _ := withResolved(t)
	load := startQueries(t, m.Machine, "127.0.0.53:53", lookUp("www.example.com."))
	m.Sh("mv /usr/bin/wingman /usr/bin/wingman.away && systemctl kill --kill-who=main --signal=KILL wingman")
	m.await("the guard", func() bool { return m.Sh("cat /run/wingman-guard/open 2>/dev/null || :") != "" })
	if out := m.Sh("ls /sys/class/net"); strings.Contains(out, "wingman") {
		t.Errorf("the guard left interfaces %s", out)
	}
	m.mustNotFind("webapp.istioinaction.svc.cluster.local") // said at once, not after a time-out
	m.Run("mv", "/usr/bin/wingman.away", "/usr/bin/wingman")
	m.waitActive("wingman.service")
	m.awaitResolved("the registration", func(r status.DNSReport) bool { return r.Resolved.Registered })
	m.mustFind("webapp.istioinaction.svc.cluster.local", "10.96.97.98")
	if sent, lost := load.end(); lost > 0 {
		t.Errorf("%d of %d queries for a public name were lost, want none", lost, sent)
	}
}
