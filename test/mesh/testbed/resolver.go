package testbed

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Resolver is the DNS server that machines are configured with. It knows the names of World and says NXDOMAIN to others.
type Resolver struct {
	servers []*dns.Server
}

// World are the names outside the mesh.
var World = map[string]netip.Addr{
	"www.example.com.": netip.MustParseAddr("192.0.2.80"),
	"api.example.org.": netip.MustParseAddr("192.0.2.81"),
}

func startResolver(t testing.TB) *Resolver {
	t.Helper()
	r := &Resolver{}
	for _, network := range []string{"udp", "tcp"} {
		up := make(chan struct{})
		failed := make(chan error, 1)
		s := &dns.Server{Addr: ":53", Net: network, Handler: dns.HandlerFunc(answer), NotifyStartedFunc: func() { close(up) }}
		go func() { failed <- s.ListenAndServe() }()
		select {
		case <-up:
			r.servers = append(r.servers, s)
		case err := <-failed:
			t.Fatalf("start the resolver: %v", err)
		}
	}
	t.Cleanup(r.Stop)
	return r
}

// Stop makes the resolver silent for good. It may be called more than once.
func (r *Resolver) Stop() {
	for _, s := range r.servers {
		_ = s.Shutdown() // an error says that it was stopped before
	}
	r.servers = nil
}

func answer(w dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name := strings.ToLower(q.Question[0].Name)
	addr, known := World[name]
	switch {
	case !known:
		m.Rcode = dns.RcodeNameError
	case q.Question[0].Qtype == dns.TypeA:
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: addr.AsSlice()}}
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{&dns.SOA{
			Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns.", Mbox: "hostmaster.", Serial: 1, Refresh: 60, Retry: 60, Expire: 60, Minttl: 1,
		}}
	}
	_ = w.WriteMsg(m) // the one who asked may be gone
}
