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
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wingman/test/netns"
)

// patience is for what must happen; nothing waits for it to pass.
const patience = 20 * time.Second

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// testServer is a running Server on sockets of its own.
type testServer struct {
	*Server
	addr netip.AddrPort
	stop func()
}

// serve starts a server with cfg, sockets filled in if there are none, and with the last of tables in place, if any, before it
// answers anything. It is stopped when the test ends.
func serve(t testing.TB, cfg Config, tables ...*Table) *testServer {
	t.Helper()
	if len(cfg.UDP) == 0 {
		udp, tcp, err := Listen(loopback)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { udp.Close(); tcp.Close() })
		cfg.UDP, cfg.TCP = []*net.UDPConn{udp}, []*net.TCPListener{tcp}
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		s.Replace(table)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run returned %v, want nil when asked to stop", err)
			}
		case <-time.After(patience):
			t.Error("Run did not end")
		}
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case <-time.After(patience):
		t.Fatal("server not ready")
	}
	return &testServer{Server: s, addr: cfg.UDP[0].LocalAddr().(*net.UDPAddr).AddrPort(), stop: stop}
}

// unhurried makes no answer late: where a test counts what upstreams are asked, a busy machine must not have the same sent again.
func (s *testServer) unhurried() {
	s.forward.mu.Lock()
	defer s.forward.mu.Unlock()
	for _, r := range s.forward.routes {
		for _, u := range r.servers {
			u.least = patience
		}
	}
}

// upstream is a resolver under the test's control, on UDP and TCP.
type upstream struct {
	addr netip.AddrPort
	udp  *net.UDPConn
	tcp  *net.TCPListener

	mu     sync.Mutex
	answer func(query []byte, via transport) [][]byte // what to send, message by message
	asked  []string                                   // "udp name type", in order
}

// newUpstream starts a resolver that answers with what answer returns; it may be called at the same time from several
// goroutines.
func newUpstream(t testing.TB, answer func(query []byte, via transport) [][]byte) *upstream {
	t.Helper()
	udp, tcp, err := Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: udp.LocalAddr().(*net.UDPAddr).AddrPort(), udp: udp, tcp: tcp, answer: answer}
	var wg sync.WaitGroup
	wg.Go(func() { u.serveUDP(&wg) })
	wg.Go(func() { u.serveTCP(&wg) })
	t.Cleanup(func() { udp.Close(); tcp.Close(); wg.Wait() })
	return u
}

func (u *upstream) serveUDP(wg *sync.WaitGroup) {
	buf := make([]byte, 65535)
	for {
		n, from, err := u.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		query := slices.Clone(buf[:n])
		wg.Go(func() {
			for _, msg := range u.respond(query, overUDP) {
				_, _ = u.udp.WriteToUDPAddrPort(msg, from)
			}
		})
	}
}

func (u *upstream) serveTCP(wg *sync.WaitGroup) {
	for {
		conn, err := u.tcp.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			for {
				msg, err := readFrame(conn)
				if err != nil {
					return
				}
				for _, reply := range u.respond(msg, overTCP) {
					if writeFrame(conn, reply) != nil {
						return
					}
				}
			}
		})
	}
}

func (u *upstream) respond(query []byte, via transport) [][]byte {
	m := new(dns.Msg)
	line := via.String() + " ?"
	if m.Unpack(query) == nil && len(m.Question) == 1 {
		line = fmt.Sprintf("%v %s %v", via, m.Question[0].Name, dns.Type(m.Question[0].Qtype))
	}
	u.mu.Lock()
	u.asked = append(u.asked, line)
	answer := u.answer
	u.mu.Unlock()
	return answer(query, via)
}

// set changes what the resolver does.
func (u *upstream) set(answer func(query []byte, via transport) [][]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.answer = answer
}

// questions are what the resolver was asked so far.
func (u *upstream) questions() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.asked)
}

// zone answers from records in zone file format; other names do not exist. It is a resolver that behaves.
func zone(t testing.TB, records ...string) func([]byte, transport) [][]byte {
	t.Helper()
	var rrs []dns.RR
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return func(query []byte, via transport) [][]byte {
		req := new(dns.Msg)
		if req.Unpack(query) != nil || len(req.Question) != 1 {
			return [][]byte{errorReply(query, dns.RcodeFormatError)}
		}
		reply := new(dns.Msg).SetReply(req)
		reply.RecursionAvailable = true
		reply.CheckingDisabled = req.CheckingDisabled
		known := false
		for _, rr := range rrs {
			if strings.EqualFold(rr.Header().Name, req.Question[0].Name) {
				known = true
				if rr.Header().Rrtype == req.Question[0].Qtype {
					reply.Answer = append(reply.Answer, rr)
				}
			}
		}
		if !known {
			reply.Rcode = dns.RcodeNameError
		}
		if opt := req.IsEdns0(); opt != nil {
			reply.SetEdns0(4096, opt.Do())
		}
		if via == overUDP {
			size := dns.MinMsgSize
			if opt := req.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
			reply.Truncate(size)
		}
		msg, err := reply.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{msg}
	}
}

// silent is a resolver that never answers.
func silent([]byte, transport) [][]byte { return nil }

func readFrame(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	msg := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFrame(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	return err
}

// ask sends one question in wire form and returns the answer; nil after wait without one.
func ask(t testing.TB, server netip.AddrPort, via transport, query []byte, wait time.Duration) []byte {
	t.Helper()
	conn, err := net.Dial(via.String(), server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		t.Fatal(err)
	}
	if via == overTCP {
		if err := writeFrame(conn, query); err != nil {
			t.Fatal(err)
		}
		msg, err := readFrame(conn)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return msg
	}
	if _, err := conn.Write(query); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65535)
	n, err := conn.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// exchange asks with a message of miekg/dns and wants an answer.
func exchange(t testing.TB, server netip.AddrPort, via transport, req *dns.Msg) *dns.Msg {
	t.Helper()
	query, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	msg := ask(t, server, via, query, patience)
	if msg == nil {
		t.Fatalf("no answer to %v", req.Question)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(msg); err != nil {
		t.Fatalf("answer %x: %v", msg, err)
	}
	return reply
}

// question is a query as clients make it.
func question(name string, qtype uint16) *dns.Msg {
	return new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
}

// brief is a reply in one line: code, flags, answers sorted by their text, and what the other sections hold.
func brief(m *dns.Msg) string {
	var flags, records []string
	for _, f := range []struct {
		on   bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionAvailable, "ra"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	for _, rr := range m.Answer {
		records = append(records, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(records)
	line := dns.RcodeToString[m.Rcode] + " " + strings.Join(flags, ",") + " [" + strings.Join(records, "; ") + "]"
	for _, rr := range m.Ns {
		line += " " + dns.TypeToString[rr.Header().Rrtype]
	}
	if opt := m.IsEdns0(); opt != nil {
		line += " OPT"
		for _, o := range opt.Option {
			if ede, ok := o.(*dns.EDNS0_EDE); ok {
				line += fmt.Sprintf(" EDE%d", ede.InfoCode)
			}
		}
	}
	return line
}

// waitFor polls for what another goroutine is about to bring about.
func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-end:
			t.Fatal("did not happen in time")
		case <-tick.C:
		}
	}
}

// program finds a peer to test with, or skips the test; where CI=true or REQUIRE_NETNS=1 says that all is there, it fails it.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	netns.Skip(t, name+" is not installed (test/setup/setup.sh dns)")
	return ""
}
