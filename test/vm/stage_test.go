package vm

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// stage is the scene of the table: the real control plane, and two machines of the book's chapter with Wingman and Envoy in one mesh. It lives through
// all events, one after the other.
type stage struct {
	segment        *Segment
	plane          *plane
	forum, catalog *Machine
	// Addresses of their Services.
	forumVIP, catalogVIP string
}

const (
	planeAddress = "10.99.0.1"
	forumEntry   = "forum-10.99.0.2-vm-network" // names of the machines' WorkloadEntries
	catalogEntry = "catalog-10.99.0.3-vm-network"
	catalogName  = "catalog.istioinaction.svc.cluster.local."
	forumHost    = "forum.forum-services.svc.cluster.local"

	// A second endpoint of forum's Service, which is no member of the mesh; also a server elsewhere.
	elsewherePort = "9081"
	elsewhere     = `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: forum-elsewhere, namespace: forum-services}
spec:
  address: ` + planeAddress + `
  ports: {http: ` + elsewherePort + `}
  labels: {app: forum, security.istio.io/tlsMode: disabled}
  network: vm-network
`
)

func newStage(t *testing.T) *stage {
	t.Helper()
	s := emptyStage(t)
	programs := stagePrograms(t)
	s.forum = s.member(t, "forum", "10.99.0.2/24", "forum-services", ":8080", programs)
	s.catalog = s.member(t, "catalog", "10.99.0.3/24", "istioinaction", ":3000", programs)
	s.forumVIP, s.catalogVIP = s.forum.address(forumHost), s.forum.address(catalogName)
	return s
}

// emptyStage is the scene without machines; more goes to the control plane.
func emptyStage(t *testing.T, more ...string) *stage {
	t.Helper()
	Require(t)
	s := &stage{segment: NewSegment(t)}
	s.segment.AddAddress(t, planeAddress+"/24")
	s.plane = startPlane(t, s.segment, planeAddress, more...)
	s.plane.apply(elsewhere)
	s.serve(t)
	return s
}

// stagePrograms are those of a machine: path there to path here.
func stagePrograms(t *testing.T) map[string]string {
	t.Helper()
	return map[string]string{
		"/usr/bin/app":         Build(t, "wingman/test/vm/testdata/daemon"),
		"/usr/bin/client":      Build(t, "wingman/test/vm/testdata/client"),
		"/usr/local/bin/envoy": Envoy(t),
	}
}

// address waits until a name of the mesh is resolved.
func (m *Machine) address(name string) (address string) {
	m.t.Helper()
	m.await("the address of "+name, func() bool {
		out, err := m.Try("dig", "+short", "+timeout=2", "+tries=1", name)
		address = out
		return err == nil && net.ParseIP(out) != nil
	})
	return address
}

// serve answers queries and requests on the segment until the test ends.
func (s *stage) serve(t *testing.T) {
	t.Helper()
	upstream := &dns.Server{Handler: dns.HandlerFunc(resolve)}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "this is elsewhere") })}
	if err := s.segment.Do(func() (err error) {
		if upstream.PacketConn, err = net.ListenPacket("udp", planeAddress+":53"); err != nil {
			return err
		}
		l, err := net.Listen("tcp", planeAddress+":"+elsewherePort)
		if err == nil {
			go server.Serve(l)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	go upstream.ActivateAndServe()
	t.Cleanup(func() { upstream.Shutdown(); server.Close() })
}

// member boots a machine that joins. Its WorkloadGroup has its name; its application listens where the group's probe asks.
func (s *stage) member(t *testing.T, name, prefix, namespace, listen string, programs map[string]string) *Machine {
	t.Helper()
	m := s.segment.Machine(t, name, prefix, planeAddress)
	const network = "/etc/systemd/network/10-host0.network"
	m.Write(network, m.Read(network)+"Gateway="+planeAddress+"\n", 0o644) // Services' addresses need a route, though nobody has them
	m.Install(Wingman(t))
	for to, from := range programs {
		m.CopyIn(from, to, 0o755)
	}
	m.Write("/etc/systemd/system/app.service", "[Service]\nType=exec\nExecStart=/usr/bin/app app "+listen+"\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	m.Enable("app.service")
	m.Enable("wingman.service")
	files := s.plane.files(namespace, name)
	for from, to := range map[string]string{
		"cluster.env": "/var/lib/istio/envoy/cluster.env", "mesh.yaml": "/etc/istio/config/mesh", "hosts": "/var/lib/istio/envoy/hosts",
		"root-cert.pem": "/etc/certs/root-cert.pem",
	} {
		m.Write(to, files[from], 0o644)
	}
	m.Boot()
	m.Write("/run/secrets/tokens/istio-token", files["istio-token"], 0o640) // gone with the first reboot
	m.Run("chgrp", "istio-proxy", "/run/secrets/tokens/istio-token")
	return m
}

// tell makes t the one who hears of what goes wrong.
func (s *stage) tell(t *testing.T) {
	s.plane = &plane{t, s.plane.client}
	s.forum.Tell(t)
	s.catalog.Tell(t)
}

// settle waits until both machines are members that serve, and the last event is forgotten.
func (s *stage) settle(t *testing.T) {
	t.Helper()
	for _, m := range []*Machine{s.forum, s.catalog} {
		m.awaitEnvoy()
	}
	s.forget()
	for entry, m := range map[string]*Machine{forumEntry: s.forum, catalogEntry: s.catalog} {
		s.await(t, m, entry, "healthy", time.Minute, planeState.serving)
	}
}

// serving is an entry that istiod sends traffic to.
func (p planeState) serving() bool { return !p.Gone && p.Connected && p.Healthy == "True" }

// await waits until a machine's WorkloadEntry is as it should be, and returns it.
func (s *stage) await(t testing.TB, m *Machine, entry, what string, limit time.Duration, is func(planeState) bool) (now planeState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		if now = s.plane.now(entry); is(now) {
			return now
		}
		select {
		case <-ctx.Done():
			t.Fatalf("no WorkloadEntry %s that is %s within %s; it is %+v\n%s", entry, what, limit, now, m.lastWords())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// forget has the guard that counts crashes begin anew: a row of single crashes is no crash loop.
func (s *stage) forget() {
	s.forum.Run("rm", "-f", "/run/wingman-guard/ends", "/run/wingman-guard/hangs")
}

// uptime is the clock of systemd's monotonic timestamps, which machines share with this computer.
func uptime(t testing.TB) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// after is how long after an instant of uptime something of a unit happened.
func (s *stage) after(at time.Duration, unit, property string) time.Duration {
	return time.Duration(s.forum.monotonic(unit, property))*time.Microsecond - at
}

// ours are rules of the agent in a dump.
func ours(rules string) bool {
	return strings.Contains(rules, "ISTIO") || strings.Contains(rules, "WINGMAN") || strings.Contains(rules, "wingman")
}
