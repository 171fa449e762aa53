package dnsproxy

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/freeport"
)

// resolver is a real one, in a process of its own.
type resolver struct {
	addr netip.AddrPort
	argv []string
	cmd  *exec.Cmd
}

func (r *resolver) start(t *testing.T) {
	t.Helper()
	r.cmd = exec.Command(r.argv[0], r.argv[1:]...)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd := r.cmd
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, func() bool {
		conn, err := net.Dial("tcp", r.addr.String())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (r *resolver) stop() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

// unbound and dnsmasq answer for example.com and have a record too large for a datagram.
func unbound(t *testing.T) *resolver {
	t.Helper()
	addr := freeport.Addr()
	dir := t.TempDir()
	conf := fmt.Sprintf("server:\n interface: 127.0.0.1@%d\n do-daemonize: no\n use-syslog: no\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n directory: %q\n local-zone: \"example.com.\" redirect\n local-data: \"example.com. 300 IN A 192.0.2.80\"\n",
		addr.Port(), dir)
	for i := range 10 {
		conf += fmt.Sprintf(" local-data: 'example.com. 300 IN TXT \"%d%0200d\"'\n", i, i)
	}
	conf += "remote-control:\n control-enable: no\n"
	file := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	return &resolver{addr: addr, argv: []string{program(t, "unbound"), "-d", "-c", file}}
}

func dnsmasq(t *testing.T) *resolver {
	t.Helper()
	addr := freeport.Addr()
	argv := []string{program(t, "dnsmasq"), "-k", "-C", "/dev/null", "-p", fmt.Sprint(addr.Port()), "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces",
		"--pid-file", "--log-facility=-", "--user=root", "--address=/example.com/192.0.2.80", "--local-ttl=300"}
	for i := range 10 {
		argv = append(argv, fmt.Sprintf("--txt-record=big.example.com,%d%0200d", i, i))
	}
	return &resolver{addr: addr, argv: argv}
}

// lossy is a way to an address that delays every packet and loses some; streams are delayed, their handshake too, and lose nothing that the ends could see.
// It is made here and not by tc, because not every kernel that runs the tests has netem.
func lossy(t *testing.T, to netip.AddrPort, delay time.Duration, loss float64) netip.AddrPort {
	t.Helper()
	udp, tcp, err := Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	keep := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
	}
	later := func(msg []byte, send func([]byte)) {
		if rand.Float64() >= loss {
			time.AfterFunc(delay/2, func() { send(msg) })
		}
	}
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			out, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				continue
			}
			keep(out)
			later(append([]byte(nil), buf[:n]...), func(msg []byte) {
				_, _ = out.Write(msg)
				go func() {
					defer out.Close()
					back := make([]byte, 65535)
					_ = out.SetReadDeadline(time.Now().Add(patience))
					if n, err := out.Read(back); err == nil {
						later(back[:n], func(msg []byte) { _, _ = udp.WriteToUDPAddrPort(msg, from) })
					}
				}()
			})
		}
	}()
	go func() {
		for {
			in, err := tcp.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to.String())
			if err != nil {
				in.Close()
				continue
			}
			keep(in)
			keep(out)
			go relayLate(out, in, time.Now().Add(delay), delay/2)
			go relayLate(in, out, time.Now().Add(delay), delay/2)
		}
	}()
	return udp.LocalAddr().(*net.UDPAddr).AddrPort()
}

// relayLate passes what it reads on, each piece after delay and none before first, until either end is closed.
func relayLate(to, from net.Conn, first time.Time, delay time.Duration) {
	defer to.Close()
	type piece struct {
		data []byte
		due  time.Time
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		buf := make([]byte, 65535)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			due := time.Now().Add(delay)
			if due.Before(first) {
				due = first
			}
			pieces <- piece{append([]byte(nil), buf[:n]...), due}
		}
	}()
	for p := range pieces {
		<-time.After(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			from.Close() // ends the reader
		}
	}
}

// TestRealResolvers: Unbound and dnsmasq behind a way with 1 % loss and 300 ms delay, one of them dead, both, and back again.
func TestRealResolvers(t *testing.T) {
	t.Parallel()
	first, second := unbound(t), dnsmasq(t)
	first.start(t)
	second.start(t)
	ways := []netip.AddrPort{lossy(t, first.addr, 300*time.Millisecond, 0.01), lossy(t, second.addr, 300*time.Millisecond, 0.01)}
	s := serve(t, Config{Upstreams: ways, CacheBytes: -1, MaxStale: -1})

	// all asks n questions at once and returns how many were answered well, and the longest time
	serial := 0
	var bad *dns.Msg // one that was not
	all := func(n int) (good int, longest time.Duration) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range n {
			serial++
			req := question(fmt.Sprintf("n%d.example.com", serial), dns.TypeA).SetEdns0(1232, false)
			wg.Go(func() {
				began := time.Now()
				reply := exchange(t, s.addr, overUDP, req)
				took := time.Since(began)
				mu.Lock()
				defer mu.Unlock()
				if longest = max(longest, took); len(reply.Answer) == 1 && dns.Field(reply.Answer[0], 1) == "192.0.2.80" {
					good++
				} else {
					bad = reply
				}
			})
		}
		wg.Wait()
		return good, longest
	}
	want := func(state string, n, well int, within time.Duration) {
		t.Helper()
		if good, longest := all(n); good != well || longest > within {
			t.Errorf("%s: %d of %d questions answered, want %d; the longest took %v, want at most %v; one got\n%v", state, good, n, well, longest, within, bad)
		}
	}
	const patient = 5 * time.Second // what clients have
	want("both alive", 300, 300, patient)
	large := func(state string) {
		t.Helper()
		began := time.Now()
		got := exchange(t, s.addr, overTCP, question("big.example.com", dns.TypeTXT))
		if took := time.Since(began); got.Truncated || len(got.Answer) != 10 || took > patient {
			t.Errorf("%s: TXT of big.example.com after %v: %s, want ten records by TCP", state, took, brief(got))
		}
	}
	large("both alive")
	first.stop()
	want("the first dead", 100, 100, patient)
	large("the first dead")
	second.stop()
	want("both dead", 20, 0, patient)
	want("both dead for a while", 20, 0, 4*time.Second) // hopelessPatience and what a busy machine adds, still less than the whole time
	second.start(t)
	waitFor(t, func() bool { good, _ := all(1); return good == 1 })
	want("the second back", 100, 100, patient)
	first.start(t)
	waitFor(t, func() bool { // found out by itself
		all(1)
		return s.Stats().Upstreams[0].Healthy && s.Stats().Upstreams[1].Healthy
	})
	want("both back", 100, 100, patient)
}
