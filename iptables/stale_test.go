package iptables

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tuple is the addresses and ports of connections that follow each other.
type tuple struct {
	t        *testing.T
	w        *world
	from, to string
	l        net.Listener // of the peer, nil as long as it is dead
}

// oldConn is a connection that will end: both its sockets.
type oldConn struct {
	t              *testing.T
	client, server *net.TCPConn
}

const stalePort = 40000 // of every client here

// newTuple is that of connections from the VM to a peer. Sockets do not wait out the end of a connection, so that the next
// one can follow at once.
func newTuple(t *testing.T, w *world, vm, peer string) *tuple {
	t.Helper()
	noTimeWait := func() error { sysctl(t, "net/ipv4/tcp_max_tw_buckets", "0"); return nil }
	_ = noTimeWait()
	w.in(t, w.net, noTimeWait)
	return &tuple{t: t, w: w, from: vm, to: net.JoinHostPort(peer, "7000")}
}

// listen brings the peer to life.
func (u *tuple) listen() {
	u.t.Helper()
	u.w.in(u.t, u.w.net, func() (err error) { u.l, err = net.Listen("tcp", u.to); return err })
	u.t.Cleanup(func() { u.l.Close() })
}

// dial connects as somebody, as soon as the port is free. It must be called in the namespace of the client.
func (u *tuple) dial(who int, wait time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{IP: net.ParseIP(u.from), Port: stalePort}, Control: reuse}
	for deadline := time.Now().Add(patience); ; {
		err := as(who, who, func() (err error) { c, err = d.Dial("tcp", u.to); return err })
		if free := !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.EADDRINUSE); free || time.Now().After(deadline) {
			return c, err
		}
	}
}

func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, cerr)
}

// connect makes the old connection, of Envoy, through which bytes have passed both ways.
func (u *tuple) connect(who int) *oldConn {
	u.t.Helper()
	client, err := u.dial(who, patience)
	if err != nil {
		u.t.Fatal(err)
	}
	server, err := u.l.Accept()
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { client.Close(); server.Close() })
	o := &oldConn{u.t, client.(*net.TCPConn), server.(*net.TCPConn)}
	o.bytes()
	return o
}

// end is where a new connection ends: as with flow, "direct", "15001", "dropped" and others.
func (u *tuple) end(who int, wait time.Duration) string {
	u.t.Helper()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if c, err := u.l.Accept(); err == nil {
			fmt.Fprint(c, "direct")
			c.Close()
		}
	}()
	c, err := u.dial(who, wait)
	answer := ""
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 256)
		var n int
		if n, err = c.Read(buf); err == nil {
			answer, _, _ = strings.Cut(strings.TrimPrefix(string(buf[:n]), "vm:"), " ")
		}
		c.Close()
	}
	if answer != "direct" { // the peer waits for nobody
		_ = u.l.(*net.TCPListener).SetDeadline(time.Unix(1, 0))
	}
	<-accepted
	_ = u.l.(*net.TCPListener).SetDeadline(time.Time{})
	if err != nil {
		return failure(err)
	}
	return answer
}

func (o *oldConn) bytes() {
	o.t.Helper()
	for _, way := range [][2]*net.TCPConn{{o.client, o.server}, {o.server, o.client}} {
		if _, err := way[0].Write([]byte("!")); err != nil {
			o.t.Fatal(err)
		}
		_ = way[1].SetDeadline(time.Now().Add(patience))
		if _, err := way[1].Read(make([]byte, 1)); err != nil {
			o.t.Fatal(err)
		}
	}
}

// heard waits until the end of the connection has arrived.
func (o *oldConn) heard(c *net.TCPConn) {
	o.t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		o.t.Fatalf("the connection goes on: %d bytes, %v", n, err)
	}
}

func (o *oldConn) reset(c, other *net.TCPConn) {
	o.t.Helper()
	_ = c.SetLinger(0)
	c.Close()
	o.heard(other)
	other.Close()
}

func (o *oldConn) finish(c, other *net.TCPConn) {
	o.t.Helper()
	c.Close()
	o.heard(other)
	other.Close()
}

func (o *oldConn) half(c, other *net.TCPConn) {
	o.t.Helper()
	_ = c.CloseWrite()
	o.heard(other)
}

// vanish ends a socket without a word on the wire, as a loss of packets, or of the machine, does.
func vanish(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) })
	return errors.Join(err, cerr, c.Close())
}

func (o *oldConn) vanish() {
	o.t.Helper()
	if err := errors.Join(vanish(o.client), vanish(o.server)); err != nil {
		o.t.Fatal(err)
	}
}

// endings are the ways in which a connection of Envoy's ends. Those that stay are still known to conntrack when the next SYN
// comes, and take it: by table nat alone that one ends "direct".
var endings = []struct {
	name  string
	end   func(o *oldConn)
	stays bool
}{
	{"FIN by Envoy, then by the peer", func(o *oldConn) { o.finish(o.client, o.server) }, false},
	{"FIN by the peer, then by Envoy", func(o *oldConn) { o.finish(o.server, o.client) }, false},
	{"RST by Envoy", func(o *oldConn) { o.reset(o.client, o.server) }, false},
	{"RST by the peer", func(o *oldConn) { o.reset(o.server, o.client) }, true},
	{"FIN by Envoy, RST by the peer", func(o *oldConn) { o.half(o.client, o.server); o.reset(o.server, o.client) }, false},
	{"FIN by the peer, RST by Envoy", func(o *oldConn) { o.half(o.server, o.client); o.reset(o.client, o.server) }, false},
	{"nothing", func(o *oldConn) { o.vanish() }, true},
	{"FIN by Envoy, then nothing", func(o *oldConn) { o.half(o.client, o.server); o.vanish() }, true},
	{"FIN by the peer, then nothing", func(o *oldConn) { o.half(o.server, o.client); o.vanish() }, true},
	{"picked up in its middle, then nothing", func(o *oldConn) {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			o.t.Fatal(err)
		}
		o.bytes()
		o.vanish()
	}, true},
	{"no answer to Envoy's SYN", nil, true},
}

func TestAnApplicationIsNotTakenForAnOldConnectionOfEnvoys(t *testing.T) {
	for _, backend := range allBackends {
		for _, e := range endings {
			t.Run(backend+"/"+e.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				cfg, facts := vmDefault(backend)
				mustApply(t, cfg, facts)
				sysctl(t, "net/netfilter/nf_conntrack_tcp_timeout_close", "60") // also on a busy machine
				u := newTuple(t, w, vmAddr, "203.0.113.9")
				if e.end != nil {
					u.listen()
					e.end(u.connect(proxyID))
				} else {
					u.to = "203.0.113.77:7000" // nobody has it yet
					if c, err := u.dial(proxyID, impatience); !isTimeout(err) {
						t.Fatalf("a dead peer answers: %v, %v", c, err)
					}
					w.in(t, w.net, func() error { ip(t, "addr add 203.0.113.77/32 dev lo"); return nil })
					u.listen()
				}
				want, wait := "15001", patience
				if e.stays {
					want, wait = "dropped", impatience
				}
				if got := u.end(1000, wait); got != want {
					t.Errorf("the application ends at %s, want %s", got, want)
				}
				if e.stays { // else conntrack knows the application's
					if got := u.end(proxyID, patience); got != "direct" {
						t.Errorf("Envoy ends at %s, want direct", got)
					}
				}
			})
		}
	}
}

func TestAnApplicationsRepeatedSYNIsCapturedOnceTheOldConnectionIsForgotten(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			for _, way := range [][2]string{{vmAddr, "203.0.113.9"}, {vmAddr6, "2001:db8:1::9"}} {
				w := newWorld(t)
				cfg, facts := vmDefault(backend)
				cfg.DualStack = true
				mustApply(t, cfg, facts)
				sysctl(t, "net/netfilter/nf_conntrack_tcp_timeout_close", "2")
				u := newTuple(t, w, way[0], way[1])
				u.listen()
				o := u.connect(proxyID)
				began := time.Now()
				o.reset(o.server, o.client)
				if got := u.end(1000, patience); got != "15001" {
					t.Errorf("to %s: the application ends at %s, want 15001", way[1], got)
				}
				if took := time.Since(began); took < time.Second {
					t.Errorf("to %s: captured after %v: no SYN was dropped, so this shows nothing", way[1], took)
				}
			}
		})
	}
}

func TestWhatIsNotCapturedMayFollowItsOwnOldConnection(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			cfg.OutboundExcludePorts = []PortRange{{7000, 7000}}
			mustApply(t, cfg, facts)
			u := newTuple(t, w, vmAddr, "203.0.113.9")
			u.listen()
			sysctl(t, "net/netfilter/nf_conntrack_tcp_timeout_close", "60")
			o := u.connect(1000)
			o.reset(o.server, o.client)
			if got := u.end(1000, 5*time.Second); got != "direct" { // the old one is known for longer
				t.Errorf("to an excluded port: ends at %s, want direct", got)
			}
		})
	}
}

func TestARepeatedSYNOfACapturedConnectionGoesOn(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			mustApply(t, cfg, facts)
			loadNFT(t, "table inet lossy {\n chain input {\n type filter hook input priority 0; tcp dport 15001 counter drop\n }\n}\n")
			u := newTuple(t, w, vmAddr, "203.0.113.9")
			u.listen()
			ended := make(chan string, 1)
			go func() {
				_ = w.vm.Do(func() error { ended <- u.end(1000, patience); return nil })
			}()
			for deadline := time.Now().Add(patience); !strings.Contains(sh(t, "nft", "list", "table", "inet", "lossy"), "counter packets 1 "); {
				if time.Now().After(deadline) {
					t.Fatal("the first SYN does not come to Envoy's port")
				}
			}
			sh(t, "nft", "delete", "table", "inet", "lossy")
			if got := <-ended; got != "15001" {
				t.Errorf("ends at %s, want 15001", got)
			}
		})
	}
}

func TestInboundAPeerThatReusesItsPortStaysCaptured(t *testing.T) {
	for _, backend := range allBackends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cfg, facts := vmDefault(backend)
			mustApply(t, cfg, facts)
			u := newTuple(t, w, hostAddr, "203.0.113.9")
			u.to = vmAddr + ":8080"
			for _, end := range []string{"FIN", "RST", "nothing", "FIN", "RST"} {
				var answer string
				w.in(t, w.net, func() error {
					c, err := u.dial(0, patience)
					if err != nil {
						return err
					}
					_ = c.SetDeadline(time.Now().Add(patience))
					buf := make([]byte, 256)
					n, err := c.Read(buf)
					answer = string(buf[:n])
					switch tcp := c.(*net.TCPConn); end {
					case "RST":
						_ = tcp.SetLinger(0)
					case "nothing":
						return errors.Join(err, vanish(tcp))
					}
					return errors.Join(err, c.Close())
				})
				if !strings.HasPrefix(answer, "vm:15006 ") {
					t.Errorf("before an end by %s: %q, want Envoy's inbound port", end, answer)
				}
			}
		})
	}
}

// The agent asks the machine's resolvers itself: its queries have the destination of the applications'.
func TestAnApplicationsQueryIsNotTakenForOneOfTheAgents(t *testing.T) {
	for _, backend := range allBackends {
		for _, level := range []Level{LevelDNS, LevelAll} {
			t.Run(backend+"/"+level.String(), func(t *testing.T) {
				t.Parallel()
				newWorld(t)
				cfg, facts := vmDefault(backend)
				cfg.Level = level
				mustApply(t, cfg, facts)
				for i, ask := range []struct {
					who  int
					want string
				}{{proxyID, "net:53 "}, {1000, "vm:15053 "}, {proxyID, "net:53 "}, {1000, "vm:15053 "}} {
					var answer string
					if err := as(ask.who, ask.who, func() error {
						d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(vmAddr), Port: stalePort}, Control: reuse}
						c, err := d.Dial("udp", "10.0.0.2:53")
						if err != nil {
							return err
						}
						defer c.Close()
						_ = c.SetDeadline(time.Now().Add(patience))
						if _, err := c.Write([]byte("?")); err != nil {
							return err
						}
						buf := make([]byte, 256)
						n, err := c.Read(buf)
						answer = string(buf[:n])
						return err
					}); err != nil || !strings.HasPrefix(answer, ask.want) {
						t.Errorf("query %d, of user %d: %q, %v; want an answer of %s", i, ask.who, answer, err, ask.want)
					}
				}
			})
		}
	}
}
