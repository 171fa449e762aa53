package dnsproxy

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// askAll asks n different questions at once and wants an address for each.
func askAll(t *testing.T, s *testServer, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			name := fmt.Sprintf("n%d.example.com", i)
			got := exchange(t, s.addr, overUDP, question(name, dns.TypeA).SetEdns0(1232, false))
			if len(got.Answer) != 1 || !strings.EqualFold(got.Answer[0].Header().Name, name+".") {
				t.Errorf("%s: got %s, want its address", name, brief(got))
			}
		})
	}
	wg.Wait()
}

// failures is how often an upstream was found wanting.
func failures(s *testServer) (n int) {
	s.forward.mu.Lock()
	defer s.forward.mu.Unlock()
	for _, u := range s.forward.routes[0].servers {
		n += u.fails
	}
	return n
}

func TestStreamsAreKeptForMoreQuestions(t *testing.T) {
	t.Parallel()
	up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
		for q := s.next(conn); q != nil; q = s.next(conn) {
			if writeFrame(conn, anyName(q)) != nil {
				return
			}
		}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1})
	for i := range 50 {
		exchange(t, s.addr, overUDP, question(fmt.Sprintf("%d.example.com", i), dns.TypeA))
	}
	if conns, asked := up.counts(); conns != 1 || asked != 50 {
		t.Errorf("50 questions one after the other: %d on %d connections, want one", asked, conns)
	}
	askAll(t, s, 300)
	if conns, asked := up.counts(); conns > 30 || asked < 350 { // more than maxStreams where the machine is so busy that they seem to hang
		t.Errorf("300 questions at once: %d on %d connections, want few", asked-50, conns)
	}
	s.stop()
	if n := len(s.forward.streams); n != 0 {
		t.Errorf("%d streams are open after the end", n)
	}
}

func TestStreamsTakeAnswersInAnyOrder(t *testing.T) {
	t.Parallel()
	const batch = 20
	ids := make(chan map[uint16]bool, 10)
	up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
		for {
			var all [][]byte
			seen := map[uint16]bool{}
			for range batch {
				q := s.next(conn)
				if q == nil {
					return
				}
				all = append(all, q)
				seen[uint16(q[0])<<8|uint16(q[1])] = true
			}
			ids <- seen
			slices.Reverse(all)
			var out []byte
			for _, q := range all {
				a := anyName(q)
				out = append(append(out, byte(len(a)>>8), byte(len(a))), a...)
			}
			for len(out) > 0 { // in pieces that end anywhere
				n := min(len(out), 37)
				if _, err := conn.Write(out[:n]); err != nil {
					return
				}
				out = out[n:]
			}
		}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: patience})
	s.forward.mu.Lock()
	s.forward.routes[0].servers[0].srtt = time.Hour // no answer is late: one stream does
	s.forward.routes[0].servers[0].streams.mixes = true
	s.forward.mu.Unlock()
	askAll(t, s, batch)
	if seen := <-ids; len(seen) != batch {
		t.Errorf("%d questions had %d ids", batch, len(seen))
	}
	if conns, _ := up.counts(); conns != 1 {
		t.Errorf("%d connections, want one", conns)
	}
}

// TestNoQuestionIsLostWithItsStream: whenever servers close, each question is answered, and no server is blamed for it.
func TestNoQuestionIsLostWithItsStream(t *testing.T) {
	t.Parallel()
	after := func(questions int) func(*streams, int, *net.TCPConn) {
		return func(s *streams, _ int, conn *net.TCPConn) {
			for range questions {
				q := s.next(conn)
				if q == nil || writeFrame(conn, anyName(q)) != nil {
					return
				}
			}
		}
	}
	for _, tt := range []struct {
		name  string
		serve func(*streams, int, *net.TCPConn)
	}{
		{"one that closes after each answer", after(1)},
		{"one that closes after three", after(3)},
		{"one that closes after ten", after(10)},
		{"one that closes the first when a question comes after a pause", func(s *streams, n int, conn *net.TCPConn) {
			if n == 1 {
				if q := s.next(conn); q != nil && writeFrame(conn, anyName(q)) == nil {
					s.next(conn)
				}
				return
			}
			after(1000)(s, n, conn)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			up := newStreams(t, tt.serve)
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: patience})
			exchange(t, s.addr, overUDP, question("first.example.com", dns.TypeA))
			askAll(t, s, 100)
			if n := failures(s); n > 0 {
				t.Errorf("the server is blamed %d times", n)
			}
		})
	}
}

// TestAnswersBeforeAResetCount: a server answers and closes while more questions are on their way, and we learn of the end before we have read the answer.
func TestAnswersBeforeAResetCount(t *testing.T) {
	t.Parallel()
	answer, closed := make(chan struct{}), make(chan struct{})
	up := newStreams(t, func(s *streams, n int, conn *net.TCPConn) {
		if q := s.next(conn); q != nil && n == 1 {
			select {
			case <-answer:
			case <-t.Context().Done():
			}
			_ = writeFrame(conn, anyName(q))
			_ = conn.SetLinger(0) // a reset
			conn.Close()
			close(closed)
		}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: patience})
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA)); len(got.Answer) != 1 {
			t.Errorf("got %s, want the answer from before the end", brief(got))
		}
	})
	waitFor(t, func() bool { _, asked := up.counts(); return asked == 1 })
	s.forward.mu.Lock() // the reader waits
	close(answer)
	<-closed
	for _, stream := range s.forward.streams {
		waitFor(t, func() bool { // until a question meets the reset
			stream.out = []byte("\x00\x01x")
			if len(stream.flushLocked()) > 0 {
				t.Error("the question is lost")
			}
			return stream.closed || stream.retired
		})
	}
	s.forward.mu.Unlock()
	wg.Wait()
}

// TestAStreamForgottenOnTheWay: a firewall has dropped its state of an idle stream, and no packet comes back.
func TestAStreamForgottenOnTheWay(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"all over TCP", "truncated answers alone"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			up := newUpstream(t, nil)
			good := zone(t, "a.example.com. 60 IN TXT "+strings.Repeat("x", 200), "b.example.com. 60 IN TXT "+strings.Repeat("x", 200))
			var forgotten atomic.Bool
			up.set(func(query []byte, via transport) [][]byte {
				if via == overUDP {
					return [][]byte{headOnly(good(query, via)[0])}
				}
				if bytes.Contains(query, []byte("\x01b")) {
					if !forgotten.Swap(true) {
						return nil
					}
				}
				return good(query, via)
			})
			cfg := Config{Upstreams: []netip.AddrPort{up.addr}, CacheBytes: -1, ForwardTimeout: 3 * patience}
			if mode == "all over TCP" {
				cfg.ResolvConf = overStreams(t)
			}
			s := serve(t, cfg)
			for _, name := range []string{"a.example.com", "b.example.com"} {
				if got := exchange(t, s.addr, overUDP, question(name, dns.TypeTXT)); len(got.Answer) != 1 {
					t.Errorf("%s: got %s, want its text", name, brief(got))
				}
			}
			if !forgotten.Load() {
				t.Error("nothing was forgotten")
			}
		})
	}
}

func TestBadStreams(t *testing.T) {
	t.Parallel()
	liar := func(s *streams, _ int, conn *net.TCPConn) {
		for q := s.next(conn); q != nil; q = s.next(conn) {
			lie := anyName(q)
			lie[1] ^= 0xff
			if writeFrame(conn, lie) != nil {
				return
			}
		}
	}
	another := func(s *streams, _ int, conn *net.TCPConn) {
		for q := s.next(conn); q != nil; q = s.next(conn) {
			lie := anyName(q)
			lie[headerSize+1] ^= 1
			if writeFrame(conn, lie) != nil {
				return
			}
		}
	}
	shut := func(*streams, int, *net.TCPConn) {}
	hangs := func(_ *streams, _ int, conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1))
		_, _ = conn.Read(make([]byte, 1<<20))
		readFrame(conn)
	}
	garbage := func(_ *streams, _ int, conn *net.TCPConn) { _, _ = conn.Write([]byte("\x00\x03abc")); readFrame(conn) }
	good := func(s *streams, _ int, conn *net.TCPConn) {
		for q := s.next(conn); q != nil; q = s.next(conn) {
			if writeFrame(conn, anyName(q)) != nil {
				return
			}
		}
	}
	for _, tt := range []struct {
		name string
		bad  func(*streams, int, *net.TCPConn)
		soon bool // it is known at once that there will be no answer
	}{
		{"lies about ids", liar, true},
		{"answers another question", another, true},
		{"closes what it has accepted", shut, true},
		{"sends no message", garbage, true},
		{"hangs", hangs, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bad, next := newStreams(t, tt.bad), newStreams(t, good)
			both := serve(t, Config{Upstreams: []netip.AddrPort{bad.addr, next.addr}, ResolvConf: overStreams(t), CacheBytes: -1})
			askAll(t, both, 30)
			limit := 3 * patience
			if !tt.soon {
				limit = 500 * time.Millisecond
			}
			alone := serve(t, Config{Upstreams: []netip.AddrPort{bad.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: limit})
			if got, want := brief(exchange(t, alone.addr, overUDP, question("alone.example.com", dns.TypeA).SetEdns0(1232, false))), "SERVFAIL ra [] OPT EDE22"; got != want {
				t.Errorf("alone: got %s, want %s", got, want)
			}
		})
	}
}

// TestServersSayHowLongAStreamMayBeIdle is RFC 7828.
func TestServersSayHowLongAStreamMayBeIdle(t *testing.T) {
	t.Parallel()
	keep := func(units uint16) dns.EDNS0 { // miekg/dns leaves a time-out of 0 out
		return &dns.EDNS0_LOCAL{Code: dns.EDNS0TCPKEEPALIVE, Data: []byte{byte(units >> 8), byte(units)}}
	}
	asksKeep := func(query []byte) bool {
		m := new(dns.Msg)
		return m.Unpack(query) == nil && m.IsEdns0() != nil && slices.ContainsFunc(m.IsEdns0().Option, func(o dns.EDNS0) bool { return o.Option() == dns.EDNS0TCPKEEPALIVE })
	}
	kept := func(s *testServer) time.Duration {
		s.forward.mu.Lock()
		defer s.forward.mu.Unlock()
		for _, stream := range s.forward.streams {
			return stream.keep
		}
		return -1
	}
	for _, tt := range []struct {
		name string
		say  []dns.EDNS0
		edns bool
		want time.Duration // of the stream that is left; -1: none
	}{
		{"nothing said", nil, true, streamIdle},
		{"without EDNS nobody is asked", []dns.EDNS0{keep(100)}, false, streamIdle},
		{"ten seconds", []dns.EDNS0{keep(100)}, true, 7500 * time.Millisecond},
		{"an hour", []dns.EDNS0{keep(36000)}, true, maxStreamIdle},
		{"to be closed", []dns.EDNS0{keep(0)}, true, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan bool, 10)
			up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
				for q := s.next(conn); q != nil; q = s.next(conn) {
					asked <- asksKeep(q)
					if writeFrame(conn, anyName(q, tt.say...)) != nil {
						return
					}
				}
			})
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1})
			req := question("www.example.com", dns.TypeA)
			if tt.edns {
				req.SetEdns0(1232, false)
			}
			got := exchange(t, s.addr, overTCP, req)
			if opt := got.IsEdns0(); (opt != nil) != tt.edns || opt != nil && len(opt.Option) > 0 {
				t.Errorf("the client hears of a stream that is not its own: %v", got)
			}
			if was := <-asked; was != tt.edns {
				t.Errorf("the server was asked: %t, want %t", was, tt.edns)
			}
			if got := kept(s); got != tt.want {
				t.Errorf("the stream is kept for %v, want %v", got, tt.want)
			}
		})
	}
	t.Run("a server that takes the question for a mistake is asked without", func(t *testing.T) {
		t.Parallel()
		up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
			for q := s.next(conn); q != nil; q = s.next(conn) {
				answer := anyName(q)
				if asksKeep(q) {
					answer = errorReply(q, dns.RcodeFormatError)
				}
				if writeFrame(conn, answer) != nil {
					return
				}
			}
		})
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1})
		askAll(t, s, 10)
		s.forward.mu.Lock()
		defer s.forward.mu.Unlock()
		if !s.forward.routes[0].servers[0].streams.plain {
			t.Error("each stream would ask again")
		}
	})
	t.Run("an idle stream is closed", func(t *testing.T) {
		t.Parallel()
		ended := make(chan struct{})
		up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
			for q := s.next(conn); q != nil; q = s.next(conn) {
				_ = writeFrame(conn, anyName(q, keep(1)))
			}
			close(ended)
		})
		s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1})
		exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA).SetEdns0(1232, false))
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the stream is still open")
		}
	})
}

// TestServersThatAnswerInTurnGetMoreStreams: else a slow answer would hold up all others.
func TestServersThatAnswerInTurnGetMoreStreams(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	up := newStreams(t, func(s *streams, _ int, conn *net.TCPConn) {
		for q := s.next(conn); q != nil; q = s.next(conn) {
			if bytes.Contains(q, []byte("\x04slow")) {
				select {
				case <-release:
				case <-t.Context().Done():
				}
			}
			if writeFrame(conn, anyName(q)) != nil {
				return
			}
		}
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ResolvConf: overStreams(t), CacheBytes: -1, ForwardTimeout: 3 * patience})
	exchange(t, s.addr, overUDP, question("first.example.com", dns.TypeA))
	var slow sync.WaitGroup
	slow.Go(func() { exchange(t, s.addr, overTCP, question("slow.example.com", dns.TypeA)) })
	waitFor(t, func() bool { _, asked := up.counts(); return asked >= 2 })
	for i := range 20 { // each is answered though the other is not
		exchange(t, s.addr, overUDP, question(fmt.Sprintf("%d.example.com", i), dns.TypeA))
	}
	close(release)
	slow.Wait()
}
