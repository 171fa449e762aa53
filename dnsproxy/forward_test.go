package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const example = "www.example.com. 300 IN A 192.0.2.80"

// TestForwardingIsFaithful compares octets: what a client sends is what the upstream sees, and back, but for what belongs to
// the hop.
func TestForwardingIsFaithful(t *testing.T) {
	opt := func(size byte, flags byte, options string) string {
		return "\x00\x00\x29" + string([]byte{size, 0xd0}) + "\x00\x00" + string([]byte{flags}) + "\x00" + string([]byte{0, byte(len(options))}) + options
	}
	name := "\x03wWw\x07eXample\x03com\x00\x00\x01\x00\x01"
	tests := []struct {
		name            string
		sent, seen      string // without the id
		answered, heard string
	}{
		{
			"no EDNS, name in odd case, CD and AD set",
			"\x01\x30\x00\x01\x00\x00\x00\x00\x00\x00" + name,
			"\x01\x30\x00\x01\x00\x00\x00\x00\x00\x00" + name,
			"\x81\xb0\x00\x01\x00\x01\x00\x00\x00\x00\x03www\x07example\x03com\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\xc0\x00\x02\x50",
			"\x81\xb0\x00\x01\x00\x01\x00\x00\x00\x00" + name + "\xc0\x0c\x00\x01\x00\x01\x00\x00\x01\x2c\x00\x04\xc0\x00\x02\x50",
		},
		{
			"an unknown option passes, a cookie does not, the size is ours, DO stays",
			"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x0f, '\x80', "\xfd\xe9\x00\x03abc\x00\x0a\x00\x0812345678"),
			"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x04, '\x80', "\xfd\xe9\x00\x03abc"),
			"\x81\x80\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x0f, '\x80', "\xfd\xea\x00\x01x"),
			"\x81\x80\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x04, '\x80', "\xfd\xea\x00\x01x"),
		},
		{
			"an upstream without EDNS gets its answer an OPT of this hop, and without RA it gets that",
			"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x04, '\x00', ""),
			"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x04, '\x00', ""),
			"\x81\x03\x00\x01\x00\x00\x00\x00\x00\x00" + name,
			"\x81\x83\x00\x01\x00\x00\x00\x00\x00\x01" + name + opt(0x04, '\x00', ""),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var seen []byte
			var mu sync.Mutex
			up := newUpstream(t, func(query []byte, _ transport) [][]byte {
				mu.Lock()
				defer mu.Unlock()
				seen = query[2:]
				return [][]byte{append(slices.Clone(query[:2]), tt.answered...)}
			})
			s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
			reply := ask(t, s.addr, overUDP, append([]byte("\xab\xcd"), tt.sent...), patience)
			mu.Lock()
			defer mu.Unlock()
			if string(seen) != tt.seen {
				t.Errorf("upstream saw\n%q, want\n%q", seen, tt.seen)
			}
			if want := "\xab\xcd" + tt.heard; string(reply) != want {
				t.Errorf("client heard\n%q, want\n%q", reply, want)
			}
		})
	}
}

func TestClientsAreAnsweredBeforeTheirPatienceEnds(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, silent)
	const limit = time.Second
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: limit})
	answered := make(chan string)
	go func() {
		defer close(answered)
		answered <- brief(exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA)))
	}()
	waitFor(t, func() bool {
		s.forward.mu.Lock()
		defer s.forward.mu.Unlock()
		for _, fl := range s.forward.flights {
			// not by a clock beside it: a busy machine may be late with the answer
			if took := fl.deadline.Sub(fl.since); took > limit*9/10 {
				t.Errorf("the client hears after %v, want nine tenths of its time-out %v", took, limit)
			}
			return true
		}
		return false
	})
	if got := <-answered; got != "SERVFAIL ra []" {
		t.Errorf("got %s, want SERVFAIL", got)
	}
}

// TestASilentServerIsAskedLast: nobody waits for it again and again, and it is found out when it is back.
func TestASilentServerIsAskedLast(t *testing.T) {
	t.Parallel()
	first, second := newUpstream(t, silent), newUpstream(t, zone(t))
	s := serve(t, Config{Upstreams: []netip.AddrPort{first.addr, second.addr}})
	s.forward.mu.Lock()
	s.forward.routes[0].servers[1].least = patience // the second is not late, however busy the machine is
	s.forward.mu.Unlock()
	serial := 0
	ask := func() (asked []string) {
		serial++
		exchange(t, s.addr, overUDP, question(fmt.Sprintf("%d.example.com", serial), dns.TypeA))
		return slices.Compact(first.questions()) // a query may be sent again
	}
	for range downAfter {
		ask()
	}
	if asked := ask(); len(asked) != downAfter {
		t.Errorf("the silent server was asked %q, want the first %d questions alone", asked, downAfter)
	}
	if st := s.Stats().Upstreams; st[0].Healthy || !st[1].Healthy {
		t.Errorf("health: %+v, want the first alone sick", st)
	}
	first.set(zone(t))
	s.forward.mu.Lock()
	s.forward.routes[0].servers[0].nextTry = time.Time{} // the time for a try has come
	s.forward.mu.Unlock()
	ask()
	waitFor(t, func() bool { return s.Stats().Upstreams[0].Healthy })
	if asked := ask(); len(asked) != downAfter+2 {
		t.Errorf("once it is back the first server was asked %q, want a try and the last question", asked)
	}
}

func TestEqualQuestionsInFlightAreAskedOnce(t *testing.T) {
	release := make(chan struct{})
	good := zone(t, example)
	up := newUpstream(t, func(query []byte, via transport) [][]byte {
		<-release
		return good(query, via)
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: patience})
	const clients = 20
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			name := "www.example.com"
			if i%2 == 1 {
				name = "WWW.Example.COM"
			}
			reply := exchange(t, s.addr, transport(i%2), question(name, dns.TypeA))
			if got := reply.Question[0].Name; got != name+"." || len(reply.Answer) != 1 {
				t.Errorf("asked for %s, got %v", name, reply)
			}
		})
	}
	waitFor(t, func() bool { return s.Stats().Waiting == clients })
	close(release)
	wg.Wait()
	s.stop()
	// the one that was asked first may have been sent again while nobody answered
	asked := slices.DeleteFunc(up.questions(), func(q string) bool { return strings.Contains(q, "wingman-loop") })
	if len(slices.Compact(slices.Clone(asked))) != 1 || len(asked) > 3 {
		t.Errorf("upstream was asked %q, want one question", asked)
	}
}

func TestQuestionsAboveTheLimitAreRefusedAtOnce(t *testing.T) {
	up := newUpstream(t, silent)
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: patience, MaxForwards: 2})
	conn, err := net.Dial("udp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 3 {
		req, err := question(fmt.Sprintf("%d.example.com", i), dns.TypeA).SetEdns0(1232, false).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(req); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 2000)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(buf[:n]); err != nil {
		t.Fatal(err)
	}
	if got, want := reply.Question[0].Name+" "+brief(reply), "2.example.com. SERVFAIL ra [] OPT EDE14"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestADeadZoneLeavesRoomForOthers: questions that nobody answers fill all places, and one that is answered gets through.
func TestADeadZoneLeavesRoomForOthers(t *testing.T) {
	t.Parallel()
	good := zone(t, example)
	up := newUpstream(t, func(query []byte, via transport) [][]byte {
		if bytes.Contains(query, []byte("\x04dead")) {
			return nil
		}
		return good(query, via)
	})
	const places = 50
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, ForwardTimeout: 3 * patience, MaxForwards: places, CacheBytes: -1})
	conn, err := net.Dial("udp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range places {
		req, err := question(fmt.Sprintf("%d.dead", i), dns.TypeA).SetEdns0(1232, false).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(req); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, func() bool { return s.Stats().Waiting == places })
	waitFor(t, func() bool { // refused while nobody has waited for long
		return brief(exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))) == "NOERROR ra ["+example+"]"
	})
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2000)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(buf[:n]); err != nil {
		t.Fatal(err)
	}
	if got, want := reply.Question[0].Name+" "+brief(reply), "0.dead. SERVFAIL ra [] OPT EDE14"; got != want {
		t.Errorf("who waited longest got %s, want %s", got, want)
	}
}

func TestSplitForwarding(t *testing.T) {
	other := newUpstream(t, zone(t, example))
	corp := newUpstream(t, zone(t, "db.corp.example. 60 IN A 10.0.0.1"))
	lab := newUpstream(t, zone(t, "db.lab.corp.example. 60 IN A 10.0.0.2"))
	s := serve(t, Config{
		Upstreams: []netip.AddrPort{other.addr},
		Forward:   map[string][]netip.AddrPort{"corp.example": {corp.addr}, "Lab.Corp.Example.": {lab.addr}},
	})
	for _, tt := range []struct{ name, want string }{
		{"db.corp.example", "NOERROR ra [db.corp.example. 60 IN A 10.0.0.1]"},
		{"DB.lab.corp.example", "NOERROR ra [db.lab.corp.example. 60 IN A 10.0.0.2]"},
		{"notcorp.example", "NXDOMAIN ra []"},
		{"www.example.com", "NOERROR ra [" + example + "]"},
	} {
		if got := brief(exchange(t, s.addr, overUDP, question(tt.name, dns.TypeA))); !strings.EqualFold(got, tt.want) {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
	if asked := other.questions(); slices.ContainsFunc(asked, func(q string) bool { return strings.Contains(q, "corp.example") && !strings.Contains(q, "notcorp") }) {
		t.Errorf("the default resolver was asked %q", asked)
	}
}

// TestSourcePortsAndIDsVary is RFC 5452: no forger may know both.
func TestSourcePortsAndIDsVary(t *testing.T) {
	var mu sync.Mutex
	ids := map[uint16]bool{}
	good := zone(t)
	up := newUpstream(t, func(query []byte, via transport) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		ids[binary.BigEndian.Uint16(query)] = true
		return good(query, via)
	})
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	const questions = 3 * socketQuestions
	ports := map[uint16]bool{}
	for i := range questions {
		exchange(t, s.addr, overUDP, question(fmt.Sprintf("%d.example.com", i), dns.TypeA))
		s.forward.mu.Lock()
		for sock := range s.forward.routes[0].servers[0].sockets {
			ports[sock.port] = true
		}
		s.forward.mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ports) < 3 || len(ids) < questions*9/10 {
		t.Errorf("%d questions went out by %d ports with %d ids, want 3 ports and nearly as many ids as questions", questions, len(ports), len(ids))
	}
}

// TestAllQueriesFitIntoTheTime: whatever is known of the servers, each is asked often enough that some loss does not cost an answer, and never sooner
// than its answer is late or a client would find reasonable.
func TestAllQueriesFitIntoTheTime(t *testing.T) {
	const budget = 4500 * time.Millisecond
	tests := []struct {
		name    string
		late    time.Duration
		servers int
		want    []string // of each query, when it goes out
	}{
		{"near servers: doubling intervals", 50 * time.Millisecond, 2, []string{"0s", "50ms", "100ms", "200ms", "300ms", "500ms", "700ms", "1.1s", "1.5s", "2.3s"}},
		{"300 ms away", 320 * time.Millisecond, 2, []string{"0s", "320ms", "640ms", "1.122s", "1.605s", "2.087s", "2.57s", "3.052s", "3.535s", "4.017s"}},
		{"slow ones", time.Second, 2, []string{"0s", "450ms", "900ms", "1.35s", "1.8s", "2.25s", "2.7s", "3.15s", "3.6s", "4.05s"}},
		{"one alone", 400 * time.Millisecond, 1, []string{"0s", "400ms", "1.2s", "2.3s", "3.4s"}},
		{"one alone, slow", time.Second, 1, []string{"0s", "900ms", "1.8s", "2.7s", "3.6s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			limit := 5 * tt.servers
			at := time.Duration(0)
			for sends := 1; sends <= limit; sends++ {
				got = append(got, at.Truncate(time.Millisecond).String())
				at += nextQuery(tt.late, sends, tt.servers, limit, budget-at)
			}
			if at > budget || !slices.Equal(got, tt.want) {
				t.Errorf("queries at %v and an end at %v, want %v and at most %v", got, at, tt.want, budget)
			}
		})
	}
}
