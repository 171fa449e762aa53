package dnsproxy

import (
	"bytes"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// lines is a log that tests read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// forwarding makes up a resolver that asks to, as systemd-resolved and dnsmasq do: with an id and options of its own.
func forwarding(t testing.TB, to func() netip.AddrPort) func([]byte, transport) [][]byte {
	return func(query []byte, via transport) [][]byte {
		req := new(dns.Msg)
		if req.Unpack(query) != nil {
			return nil
		}
		onward := question(req.Question[0].Name, req.Question[0].Qtype).SetEdns0(1472, false)
		msg, err := onward.Pack()
		if err != nil {
			t.Error(err)
			return nil
		}
		answer := ask(t, to(), overUDP, msg, 5*time.Second) // resolvers have patience of their own
		reply := new(dns.Msg)
		if reply.Unpack(answer) != nil {
			return nil
		}
		reply.Id = req.Id
		if req.IsEdns0() == nil {
			reply.Extra = nil
		}
		if answer, err = reply.Pack(); err != nil {
			t.Error(err)
			return nil
		}
		return [][]byte{answer}
	}
}

func TestLoops(t *testing.T) {
	t.Parallel()
	t.Run("an upstream that is ourselves is never asked", func(t *testing.T) {
		udp, tcp, err := Listen(loopback)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
		defer tcp.Close()
		self := netip.MustParseAddrPort(udp.LocalAddr().String())
		up := newUpstream(t, zone(t, example))
		var log lines
		s := serve(t, Config{UDP: nil, Upstreams: []netip.AddrPort{self, up.addr}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		s.forward.mu.Lock()
		s.forward.routes[0].setLocked(s.forward, []netip.AddrPort{s.addr, up.addr})
		s.forward.mu.Unlock()
		if got := s.Stats().Upstreams; len(got) != 1 || got[0].Address != up.addr.String() {
			t.Errorf("upstreams in use: %+v, want only %v", got, up.addr)
		}
		if log.count("upstream resolver is this agent itself") != 1 {
			t.Errorf("log does not say once that the upstream is ourselves:\n%s", log.buf.String())
		}
	})

	t.Run("a local resolver that asks us is found out, and nothing multiplies", func(t *testing.T) {
		var log lines
		var self netip.AddrPort
		var mu sync.Mutex
		stub := newUpstream(t, nil)
		stub.set(forwarding(t, func() netip.AddrPort { mu.Lock(); defer mu.Unlock(); return self }))
		s := serve(t, Config{Upstreams: []netip.AddrPort{stub.addr}, Log: slog.New(slog.NewTextHandler(&log, nil)), ForwardTimeout: patience})
		mu.Lock()
		self = s.addr
		mu.Unlock()
		req := question("www.example.com", dns.TypeA).SetEdns0(1232, false)
		began := time.Now()
		if got, want := brief(exchange(t, s.addr, overUDP, req)), "SERVFAIL ra [] OPT EDE22"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if took := time.Since(began); took > patience/2 {
			t.Errorf("the question that found the loop took %v, though nobody was left to ask", took)
		}
		waitFor(t, func() bool { return log.count("leads back to this agent") == 1 })
		if asked := stub.questions(); len(asked) > 12 {
			t.Errorf("the loop multiplied: %q", asked)
		}
		// from now on the answer is quick and says why
		got := exchange(t, s.addr, overUDP, question("www.example.org", dns.TypeA).SetEdns0(1232, false))
		if ede := got.IsEdns0().Option[0].(*dns.EDNS0_EDE); !strings.Contains(ede.ExtraText, stub.addr.String()+": leads back to this agent") {
			t.Errorf("extended error %q does not name the loop", ede.ExtraText)
		}
	})
	t.Run("the servers behind a local resolver stand in for it", func(t *testing.T) {
		var self netip.AddrPort
		var mu sync.Mutex
		stub := newUpstream(t, nil)
		stub.set(forwarding(t, func() netip.AddrPort { mu.Lock(); defer mu.Unlock(); return self }))
		uplinks := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(uplinks, []byte("nameserver 127.0.0.99\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		s := serve(t, Config{Upstreams: []netip.AddrPort{stub.addr}, UplinkConf: uplinks, ForwardTimeout: time.Second})
		mu.Lock()
		self = s.addr
		mu.Unlock()
		exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))
		waitFor(t, func() bool {
			s.forward.mu.Lock()
			defer s.forward.mu.Unlock()
			backup := s.forward.routes[0].backup
			return len(backup) == 1 && backup[0].label == "127.0.0.99:53"
		})
	})
	for _, tt := range []struct {
		name  string
		other func(s *testServer, stub, other netip.AddrPort)
	}{
		{"the question that finds the loop is answered by the next server", func(s *testServer, stub, other netip.AddrPort) {
			s.forward.routes[0].setLocked(s.forward, []netip.AddrPort{stub, other})
		}},
		{"the question that finds the loop is answered by a server that stands in", func(s *testServer, _, other netip.AddrPort) {
			s.forward.routes[0].backup = []*server{newServer(s.forward, other)}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var self netip.AddrPort
			var mu sync.Mutex
			stub, up := newUpstream(t, nil), newUpstream(t, zone(t, example, "www.example.org. 60 IN A 192.0.2.81"))
			stub.set(forwarding(t, func() netip.AddrPort { mu.Lock(); defer mu.Unlock(); return self }))
			s := serve(t, Config{Upstreams: []netip.AddrPort{stub.addr}, ForwardTimeout: 3 * patience})
			mu.Lock()
			self = s.addr
			mu.Unlock()
			s.forward.mu.Lock()
			tt.other(s, stub.addr, up.addr)
			for _, u := range s.forward.routes[0].servers {
				u.srtt = maxPatience // late answers do not move questions on: the loop must
				u.fails = 1
			}
			s.forward.mu.Unlock()
			for _, name := range []string{"www.example.com", "www.example.org"} {
				began := time.Now()
				if got := exchange(t, s.addr, overUDP, question(name, dns.TypeA)); len(got.Answer) != 1 {
					t.Errorf("%s: got %s, want its address", name, brief(got))
				}
				if took := time.Since(began); took > maxPatience*9/10 {
					t.Errorf("%s took %v", name, took)
				}
			}
		})
	}
}
