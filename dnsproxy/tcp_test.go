package dnsproxy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/freeport"
)

// dialTCP is a connection to a server with a deadline for all that the test does with it.
func dialTCP(t *testing.T, s *testServer) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// sendTCP writes questions for A records of names in one segment, with ids from 0.
func sendTCP(t *testing.T, conn net.Conn, names ...string) {
	t.Helper()
	var all []byte
	for i, name := range names {
		req := question(name, dns.TypeA)
		req.Id = uint16(i)
		msg, err := req.Pack()
		if err != nil {
			t.Fatal(err)
		}
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(msg))), msg...)
	}
	if _, err := conn.Write(all); err != nil {
		t.Fatal(err)
	}
}

// receiveTCP reads one answer.
func receiveTCP(t *testing.T, conn net.Conn) *dns.Msg {
	t.Helper()
	msg, err := readFrame(conn)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTCP(t *testing.T) {
	good := zone(t, example)
	t.Run("answers come as they are ready, in any order (RFC 7766 section 6.2.1.1)", func(t *testing.T) {
		release := make(chan struct{})
		up := newUpstream(t, func(q []byte, via transport) [][]byte { <-release; return good(q, via) })
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: patience}, forum(t))
		conn := dialTCP(t, s)
		sendTCP(t, conn, "www.example.com", "forum", "webapp.istioinaction")
		var order []uint16
		for range 2 {
			order = append(order, receiveTCP(t, conn).Id)
		}
		close(release)
		last := receiveTCP(t, conn)
		if order = append(order, last.Id); !slices.Equal(order, []uint16{1, 2, 0}) || len(last.Answer) != 1 {
			t.Errorf("answers came in the order %v, the last was %v", order, last)
		}
	})
	t.Run("a question may come octet by octet, and several in one segment", func(t *testing.T) {
		s := serve(t, Config{}, forum(t))
		conn := dialTCP(t, s)
		msg, err := question("forum", dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...) {
			if _, err := conn.Write([]byte{c}); err != nil {
				t.Fatal(err)
			}
		}
		if got := receiveTCP(t, conn); len(got.Answer) != 1 {
			t.Errorf("octet by octet: got %v", got)
		}
		sendTCP(t, conn, slices.Repeat([]string{"forum"}, 200)...)
		for i := range uint16(200) {
			if got := receiveTCP(t, conn); got.Id != i || len(got.Answer) != 1 {
				t.Fatalf("question %d: got %v", i, got)
			}
		}
	})
	t.Run("a client that has closed its sending side still gets its answers", func(t *testing.T) {
		release := make(chan struct{})
		up := newUpstream(t, func(q []byte, via transport) [][]byte { <-release; return good(q, via) })
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: patience})
		conn := dialTCP(t, s)
		sendTCP(t, conn, "www.example.com")
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return s.Stats().Waiting == 1 })
		close(release)
		if got := receiveTCP(t, conn); len(got.Answer) != 1 {
			t.Errorf("got %v", got)
		}
		if _, err := readFrame(conn); !errors.Is(err, io.EOF) {
			t.Errorf("after the last answer: %v, want the connection closed", err)
		}
	})
	t.Run("a connection is read no further while too many of its questions wait", func(t *testing.T) {
		release := make(chan struct{})
		up := newUpstream(t, func(q []byte, via transport) [][]byte { <-release; return good(q, via) })
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: patience})
		conn := dialTCP(t, s)
		var names []string
		for i := range maxPipelined + 10 {
			names = append(names, fmt.Sprintf("%d.example.com", i))
		}
		sendTCP(t, conn, names...)
		waitFor(t, func() bool { return s.Stats().Waiting == maxPipelined })
		close(release)
		seen := map[uint16]bool{}
		for range names {
			seen[receiveTCP(t, conn).Id] = true
		}
		if len(seen) != len(names) {
			t.Errorf("%d of %d questions were answered", len(seen), len(names))
		}
	})
	t.Run("above the limit the connection that has been idle longest makes room", func(t *testing.T) {
		s := serve(t, Config{}, forum(t))
		var conns []net.Conn
		for range maxConnections {
			conn := dialTCP(t, s)
			sendTCP(t, conn, "forum")
			receiveTCP(t, conn)
			conns = append(conns, conn)
		}
		sendTCP(t, conns[0], "forum") // now the second has been idle longest
		receiveTCP(t, conns[0])
		late := dialTCP(t, s)
		sendTCP(t, late, "forum")
		if got := receiveTCP(t, late); len(got.Answer) != 1 {
			t.Errorf("the late one got %v", got)
		}
		if _, err := readFrame(conns[1]); !errors.Is(err, io.EOF) {
			t.Errorf("the one idle longest: %v, want it closed", err)
		}
		sendTCP(t, conns[0], "forum")
		receiveTCP(t, conns[0])
	})
	t.Run("above the limit, with all busy, the one that has waited longest makes room", func(t *testing.T) {
		up := newUpstream(t, silent)
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: 3 * patience}, forum(t))
		for i := range maxConnections {
			sendTCP(t, dialTCP(t, s), fmt.Sprintf("%d.example.com", i))
		}
		waitFor(t, func() bool { return s.Stats().Waiting == maxConnections })
		query, err := question("forum", dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { // refused while nobody has waited for long
			conn := dialTCP(t, s)
			defer conn.Close()
			if writeFrame(conn, query) != nil {
				return false
			}
			_, err := readFrame(conn)
			return err == nil
		})
	})
	t.Run("a broken frame ends the connection, not the server", func(t *testing.T) {
		s := serve(t, Config{}, forum(t))
		conn := dialTCP(t, s)
		if _, err := conn.Write([]byte{0xff, 0xff, 1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if got := exchange(t, s.addr, overTCP, question("forum", dns.TypeA)); len(got.Answer) != 1 {
			t.Errorf("got %v", got)
		}
	})
}

// TestUpstreamByTCP is resolv.conf's use-vc.
func TestUpstreamByTCP(t *testing.T) {
	good := zone(t, example)
	hung := newUpstream(t, silent)
	up := newUpstream(t, good)
	s := serve(t, Config{Upstreams: []netip.AddrPort{freeport.Addr(), hung.addr, up.addr}, ForwardTimeout: patience})
	s.forward.mu.Lock()
	s.forward.conf.useTCP = true
	s.forward.mu.Unlock()
	if got := brief(exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))); got != "NOERROR ra [www.example.com. 300 IN A 192.0.2.80]" {
		t.Errorf("got %s", got)
	}
	if asked := up.questions(); !slices.Equal(asked, []string{"tcp www.example.com. A"}) {
		t.Errorf("upstream was asked %q, want once by TCP", asked)
	}
}

// TestStoppingAnswersWhatIsInFlight: a stop waits for answers that come soon, and no longer than it says.
func TestStoppingAnswersWhatIsInFlight(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		answers bool // while the server stops
		grace   time.Duration
		want    string
	}{
		{"what is answered meanwhile is passed on", true, patience, "NOERROR ra [www.example.com. 300 IN A 192.0.2.80]"},
		{"what is not is SERVFAIL when the grace is over", false, 100 * time.Millisecond, "SERVFAIL ra []"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			release := make(chan struct{})
			good := zone(t, example)
			up := newUpstream(t, func(q []byte, via transport) [][]byte {
				<-release
				if !tt.answers {
					return nil
				}
				return good(q, via)
			})
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: 2 * patience})
			s.grace = tt.grace
			var wg sync.WaitGroup
			for via := range transports {
				wg.Go(func() {
					if got := brief(exchange(t, s.addr, via, question("www.example.com", dns.TypeA))); got != tt.want {
						t.Errorf("over %v: got %s, want %s", via, got, tt.want)
					}
				})
			}
			waitFor(t, func() bool { return s.Stats().Waiting == 2 })
			stopped := make(chan struct{})
			go func() { s.stop(); close(stopped) }()
			waitFor(t, func() bool { // it has begun to stop
				s.forward.mu.Lock()
				defer s.forward.mu.Unlock()
				return s.forward.closing
			})
			close(release)
			wg.Wait()
			<-stopped
		})
	}
}

// TestSocketsAreGivenBack: what Run took is closed when it ends, what was handed in for TCP is not.
func TestSocketsAreGivenBack(t *testing.T) {
	udp, tcp, err := Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	addr := udp.LocalAddr().String()
	s := serve(t, Config{UDP: []*net.UDPConn{udp}, TCP: []*net.TCPListener{tcp}})
	s.stop()
	again, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Errorf("the UDP port is still taken: %v", err)
	} else {
		again.Close()
	}
	if err := tcp.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Errorf("the TCP listener was closed: %v", err)
	}
	if _, err := tcp.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("accept after Run: %v", err)
	}
}

func TestRunEndsWhenASocketBreaks(t *testing.T) {
	udp, tcp, err := Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{UDP: []*net.UDPConn{udp}, TCP: []*net.TCPListener{tcp}, ResolvConf: t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.Background()) }()
	<-s.Ready()
	tcp.Close()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), " 127.0.0.1:") {
			t.Errorf("Run returned %v, want which socket broke", err)
		}
	case <-time.After(patience):
		t.Error("Run goes on without its listener")
	}
}

func TestBadConfig(t *testing.T) {
	_, err := New(Config{
		ForwardTimeout: -1, Upstreams: []netip.AddrPort{{}},
		Forward: map[string][]netip.AddrPort{"corp..example": {loopback}, "empty.example": nil},
	})
	for _, want := range []string{"no socket", "-1ns is negative", "upstream invalid AddrPort", `forward "corp..example": empty label`, `server 127.0.0.1:0: want an address and a port`, `forward "empty.example": no server`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}
