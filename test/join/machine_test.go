package join

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/agent"
	"wingman/agent/status"
	"wingman/test/controlplane"
	"wingman/test/files"
	"wingman/test/freeport"
)

// patience bounds every wait; nothing here takes a tenth of it on a machine that is not overloaded.
const patience = 30 * time.Second

// machine is a VM: a root folder with istioctl's files, an upstream resolver, and a daemon that comes and goes.
type machine struct {
	t        *testing.T
	root     string
	istiod   *controlplane.Server
	dns      netip.AddrPort // where the daemon answers
	upstream netip.AddrPort
	statusAt string
	env      map[string]string

	sighup chan os.Signal
	cancel context.CancelFunc
	done   chan error
}

func newIstiod(t *testing.T, cfg controlplane.Config) *controlplane.Server {
	t.Helper()
	s := controlplane.Run(t, cfg)
	files.AddGroup(s)
	s.AddService("istioinaction", "webapp", "10.96.97.98")
	return s
}

// newMachine makes a machine whose files are complete; its daemon does not run yet. extra are further lines of wingman.yaml.
func newMachine(t *testing.T, istiod *controlplane.Server, extra ...string) *machine {
	t.Helper()
	m := &machine{t: t, root: t.TempDir(), istiod: istiod, env: map[string]string{}, sighup: make(chan os.Signal)}
	m.dns = freeport.Addr()
	m.statusAt = fmt.Sprintf("127.0.0.1:%d", freeport.Port())
	m.upstream = newUpstream(t, map[string]string{"www.example.com.": "192.0.2.80"})
	_, statusPort, _ := net.SplitHostPort(m.statusAt)
	if err := files.Write(m.root, istiod, m.upstream.Addr().String()); err != nil {
		t.Fatal(err)
	}
	m.write(files.Wingman, strings.Join(append([]string{
		"istiod: {address: \"" + istiod.Addr() + "\", caAddress: \"" + istiod.Addr() + "\", san: " + istiod.ServerName() + "}",
		"dns: {listen: \"" + m.dns.String() + "\"}",
		"status: {port: " + statusPort + "}",
		"capture: none",
		"envoy: {path: " + filepath.Join(m.root, "no-envoy") + "}", // whatever is installed where the test runs
	}, extra...), "\n")+"\n")
	return m
}

// token puts a fresh token for the machine's account.
func (m *machine) token(o controlplane.TokenOptions) {
	m.t.Helper()
	if err := files.WriteToken(m.root, m.istiod, o); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

func (m *machine) write(name, content string) {
	m.t.Helper()
	if err := files.Put(m.root, name, content); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) remove(name string) {
	m.t.Helper()
	if err := os.RemoveAll(m.path(name)); err != nil {
		m.t.Fatal(err)
	}
}

// start runs the daemon until stop; it returns at once.
func (m *machine) start() {
	m.t.Helper()
	logFile, err := os.Create(filepath.Join(m.t.TempDir(), "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel, m.done = cancel, make(chan error, 1)
	go func() {
		defer logFile.Close()
		m.done <- agent.Run(ctx, agent.Options{
			Root: m.root, Version: "test", Stderr: logFile, Reload: m.sighup,
			Getenv:   func(k string) string { return m.env[k] },
			Unsetenv: func(k string) error { delete(m.env, k); return nil },
		})
	}()
	m.t.Cleanup(func() {
		m.stop()
		if m.t.Failed() {
			log, _ := os.ReadFile(logFile.Name())
			m.t.Logf("log of the daemon:\n%s", log)
		}
	})
}

// stop asks the daemon to stop and returns what Run returned; again it does nothing.
func (m *machine) stop() error {
	m.t.Helper()
	if m.done == nil {
		return nil
	}
	m.cancel()
	select {
	case err := <-m.done:
		m.done = nil
		return err
	case <-time.After(patience):
		m.t.Fatal("the daemon does not stop")
		return nil
	}
}

// ended waits for a daemon that ends by itself.
func (m *machine) ended() error {
	m.t.Helper()
	select {
	case err := <-m.done:
		m.done = nil
		return err
	case <-time.After(patience):
		m.t.Fatal("the daemon goes on, expected it to end")
		return nil
	}
}

// status asks the daemon; ok is false while it does not answer.
func (m *machine) status() (r status.Report, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := agent.Client(m.root).Status(ctx)
	return r, err == nil
}

// until polls the daemon's status until what is true of it.
func (m *machine) until(what string, is func(status.Report) bool) status.Report {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		r, ok := m.status()
		if ok && is(r) {
			return r
		}
		m.mustRun(what)
		if time.Now().After(deadline) {
			b, _ := json.MarshalIndent(r, "", " ")
			m.t.Fatalf("not %s within %s; status (%v):\n%s", what, patience, ok, b)
		}
		tick()
	}
}

// mustRun fails the test when the daemon has ended by itself.
func (m *machine) mustRun(what string) {
	m.t.Helper()
	select {
	case err := <-m.done:
		m.done = nil
		m.t.Fatalf("not %s: the daemon ended with %v", what, err)
	default:
	}
}

// tick is the pause between two looks.
func tick() { <-time.After(10 * time.Millisecond) }

func joined(r status.Report) bool { return r.Phase == "joined" && r.Ready }

// ask puts one question to the daemon over UDP; err is a time-out or a refusal.
func (m *machine) ask(name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), qtype)
	c := dns.Client{Timeout: 3 * time.Second}
	in, _, err := c.Exchange(q, m.dns.String())
	return in, err
}

// mustResolve asks until there is an answer (the daemon may still be starting) and checks it.
func (m *machine) mustResolve(name, want string) {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		in, err := m.ask(name, dns.TypeA)
		if err == nil {
			if len(in.Answer) == 1 && strings.HasSuffix(in.Answer[0].String(), "\t"+want) {
				return
			}
			m.t.Fatalf("%s A = %s, want %s", name, in, want)
		}
		m.mustRun("resolved: " + name)
		if time.Now().After(deadline) {
			m.t.Fatalf("%s A: %v", name, err)
		}
		tick()
	}
}

// entry waits for the machine's WorkloadEntry as it should be.
func (m *machine) entry(what string, is func(controlplane.Entry) bool) controlplane.Entry {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := m.istiod.WaitEntry(ctx, is)
	if err != nil {
		m.t.Fatalf("no WorkloadEntry that is %s: %v; there are %+v", what, err, m.istiod.Entries())
	}
	return e
}

// newUpstream is a resolver on port 53 of a loopback address of its own, as resolv.conf knows no ports.
func newUpstream(t *testing.T, names map[string]string) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg)
		a.SetReply(q)
		if ip, ok := names[strings.ToLower(q.Question[0].Name)]; ok {
			a.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(ip)}}
		} else {
			a.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(a)
	})
	for i := range 200 {
		addr := fmt.Sprintf("127.77.%d.%d:53", os.Getpid()%250, i+1)
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			if strings.Contains(err.Error(), "permission denied") {
				const why = "the test's upstream resolver needs port 53: run as root, or allow it with net.ipv4.ip_unprivileged_port_start"
				if os.Getenv("CI") == "true" {
					t.Fatal(why)
				}
				t.Skip(why)
			}
			continue
		}
		s := &dns.Server{PacketConn: c, Handler: handler}
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
		return c.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	t.Fatal("no free loopback address for an upstream resolver")
	return netip.AddrPort{}
}
