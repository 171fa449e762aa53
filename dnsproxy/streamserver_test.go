package dnsproxy

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// overStreams is a resolv.conf by which all questions go upstream over TCP.
func overStreams(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.53\noptions use-vc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// streams is a resolver on TCP alone, each connection of which the test serves.
type streams struct {
	addr netip.AddrPort

	mu    sync.Mutex // guards everything below
	conns int
	asked int
}

// newStreams serves connection number n, from 1, by serve. It is closed when serve returns.
func newStreams(t testing.TB, serve func(s *streams, n int, conn *net.TCPConn)) *streams {
	t.Helper()
	l, err := listenTCP(loopback)
	if err != nil {
		t.Fatal(err)
	}
	s := &streams{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			n := s.conns
			s.mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				unblock := make(chan struct{})
				defer close(unblock)
				go func() {
					select {
					case <-ended:
						conn.Close()
					case <-unblock:
					}
				}()
				serve(s, n, conn)
			})
		}
	})
	t.Cleanup(func() { l.Close(); close(ended); wg.Wait() })
	return s
}

// next reads a question; nil at the end.
func (s *streams) next(conn *net.TCPConn) []byte {
	msg, err := readFrame(conn)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	return msg
}

func (s *streams) counts() (conns, asked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns, s.asked
}

// anyName answers every question for an address with one, and keeps the EDNS options that extra has.
func anyName(query []byte, extra ...dns.EDNS0) []byte {
	req := new(dns.Msg)
	if req.Unpack(query) != nil {
		return errorReply(query, dns.RcodeFormatError)
	}
	reply := new(dns.Msg).SetReply(req)
	reply.RecursionAvailable = true
	reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: req.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IPv4(192, 0, 2, 80)}}
	if req.IsEdns0() != nil {
		reply.SetEdns0(4096, false)
		reply.IsEdns0().Option = extra
	}
	msg, err := reply.Pack()
	if err != nil {
		return errorReply(query, dns.RcodeServerFailure)
	}
	return msg
}
