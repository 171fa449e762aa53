package automation

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/vm"
)

const istiodAddress = "10.99.0.1:15012"

// A fleet is machines that sshd lets root into by a key of the test, on one segment with a control plane and a resolver, and this computer among them: what
// an automation tool finds.
type fleet struct {
	t        *testing.T
	segment  *vm.Segment
	istiod   *controlplane.Server
	machines map[string]*vm.Machine
	key      string // ssh's private key
	hosts    string // known_hosts
}

// newFleet boots machines of these names, at 10.99.0.2 and so on.
func newFleet(t *testing.T, names ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, segment: vm.NewSegment(t), machines: map[string]*vm.Machine{}}
	f.segment.AddAddress(t, "10.99.0.1/24")
	var err error
	if f.istiod, err = controlplane.New(controlplane.Config{Addr: istiodAddress}); err != nil {
		t.Fatal(err)
	}
	resolver := &dns.Server{Handler: dns.HandlerFunc(resolve)}
	if err := f.segment.Do(func() error {
		if resolver.PacketConn, err = net.ListenPacket("udp", "10.99.0.1:53"); err != nil {
			return err
		}
		return f.istiod.Start()
	}); err != nil {
		t.Fatal(err)
	}
	go resolver.ActivateAndServe()
	t.Cleanup(func() { resolver.Shutdown(); f.istiod.Close() })
	files.AddGroup(f.istiod)
	f.istiod.AddService("istioinaction", "webapp", "10.96.97.98")

	dir := t.TempDir()
	f.key, f.hosts = filepath.Join(dir, "key"), filepath.Join(dir, "known_hosts")
	run(t, exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", f.key))
	public, err := os.ReadFile(f.key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	var known strings.Builder
	var wait sync.WaitGroup
	for i, name := range names {
		address := "10.99.0." + string(rune('2'+i))
		m := f.segment.MachineWith(t, vm.ManagedByAnsible, name, address+"/24", "10.99.0.1")
		m.Write("/root/.ssh/authorized_keys", string(public), 0o600)
		// The readiness probe of files.MeshConfig.
		m.Write("/srv/app/api/healthz", "well\n", 0o644)
		m.Write("/etc/systemd/system/app.service", "[Service]\nType=exec\nExecStart=python3 -m http.server --directory /srv/app 8080\n[Install]\nWantedBy=multi-user.target\n", 0o644)
		m.Enable("app.service")
		known.WriteString(address + " " + m.Read("/etc/ssh/ssh_host_ed25519_key.pub"))
		f.machines[name] = m
		wait.Go(m.Boot)
	}
	wait.Wait()
	write(t, f.hosts, known.String())
	return f
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

// bundle writes istioctl's files for one machine into a folder of the controller, with a fresh token.
func (f *fleet) bundle(dir string) {
	f.t.Helper()
	staged := f.t.TempDir()
	if err := files.Write(staged, f.istiod); err != nil {
		f.t.Fatal(err)
	}
	for from, to := range map[string]string{files.ClusterEnv: "cluster.env", files.MeshConfig: "mesh.yaml", files.Hosts: "hosts", files.RootCert: "root-cert.pem", files.Token: "istio-token"} {
		content, err := os.ReadFile(filepath.Join(staged, from))
		if err != nil {
			f.t.Fatal(err)
		}
		write(f.t, filepath.Join(dir, to), string(content))
	}
}

// serving waits until the control plane has so many entries that are connected and healthy.
func (f *fleet) serving(n int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	if err := f.istiod.WaitEntries(ctx, func(es []controlplane.Entry) bool {
		serving := 0
		for _, e := range es {
			if e.Connected && e.Serving() {
				serving++
			}
		}
		return serving == n && len(es) == n
	}); err != nil {
		f.t.Fatalf("there are not %d healthy entries: %v; but %+v", n, err, f.istiod.Entries())
	}
}

// output runs a command of this computer that finds itself on the segment, and returns all that it says.
func (f *fleet) output(cmd *exec.Cmd) (string, error) {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := f.segment.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// questions are put to a machine's resolver 100 times a second until end.
type questions struct {
	conn    net.Conn
	stop    chan struct{}
	sent    chan int    // how many, once all are sent
	answers chan uint16 // their numbers
}

func ask(t *testing.T, m *vm.Machine) *questions {
	t.Helper()
	q := &questions{stop: make(chan struct{}), sent: make(chan int, 1), answers: make(chan uint16, 1<<16)}
	if err := m.Do(func() (err error) { q.conn, err = net.Dial("udp", "127.0.0.53:53"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.conn.Close() })
	go func() {
		for buf := make([]byte, 512); ; {
			n, err := q.conn.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			a := new(dns.Msg)
			if err == nil && a.Unpack(buf[:n]) == nil && a.Rcode == dns.RcodeSuccess && len(a.Answer) > 0 {
				q.answers <- a.Id
			}
		}
	}()
	go func() {
		ticks := time.NewTicker(10 * time.Millisecond)
		defer ticks.Stop()
		for n := 0; ; n++ {
			select {
			case <-q.stop:
				q.sent <- n
				return
			case <-ticks.C:
			}
			m := new(dns.Msg)
			m.SetQuestion("www.example.com.", dns.TypeA)
			m.Id = uint16(n)
			packet, err := m.Pack()
			if err != nil {
				panic(err) // of a name in this test
			}
			q.conn.Write(packet) // what is not sent is not answered
		}
	}()
	return q
}

// end stops asking, gives the last answers time, and returns how many questions were asked, and how many had no answer.
func (q *questions) end() (sent, lost int) {
	close(q.stop)
	sent = <-q.sent
	seen, late := map[uint16]bool{}, time.After(5*time.Second)
	for len(seen) < sent {
		select {
		case id := <-q.answers:
			seen[id] = true
		case <-late:
			return sent, sent - len(seen)
		}
	}
	return sent, 0
}
