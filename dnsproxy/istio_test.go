package dnsproxy

import (
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// TestAnswersOfTheMesh is the table of the real pilot-agent's answers and what is right instead: over both transports, with
// an upstream that knows none of these names.
func TestAnswersOfTheMesh(t *testing.T) {
	up := newUpstream(t, zone(t))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	s.Replace(forum(t))
	tests := []struct {
		name  string
		query string
		qtype uint16
		want  string
	}{
		{"a service by its whole name", "webapp.istioinaction.svc.cluster.local", dns.TypeA, "NOERROR aa,ra [webapp.istioinaction.svc.cluster.local. 30 IN A 10.96.97.98]"},
		{"a service by name and namespace", "webapp.istioinaction", dns.TypeA, "NOERROR aa,ra [webapp.istioinaction. 30 IN A 10.96.97.98]"},
		{"a service by .svc", "webapp.istioinaction.svc", dns.TypeA, "NOERROR aa,ra [webapp.istioinaction.svc. 30 IN A 10.96.97.98]"},
		{"a service by .svc.cluster", "webapp.istioinaction.svc.cluster", dns.TypeA, "NOERROR aa,ra [webapp.istioinaction.svc.cluster. 30 IN A 10.96.97.98]"},
		{"a service of the own namespace by its short name", "forum", dns.TypeA, "NOERROR aa,ra [forum. 30 IN A 10.96.72.87]"},
		{"a service of another namespace by its short name is not the mesh's", "webapp", dns.TypeA, "NXDOMAIN ra []"},
		{"a name without IPv6 has an empty, cacheable AAAA answer", "webapp.istioinaction", dns.TypeAAAA, "NOERROR aa,ra [] SOA"},
		{"HTTPS of a mesh name is answered here", "webapp.istioinaction", dns.TypeHTTPS, "NOERROR aa,ra [] SOA"},
		{"TXT of a mesh name is answered here", "webapp.istioinaction", dns.TypeTXT, "NOERROR aa,ra [] SOA"},
		{"MX of a mesh name is answered here", "webapp.istioinaction", dns.TypeMX, "NOERROR aa,ra [] SOA"},
		{"ANY of a mesh name is answered here", "webapp.istioinaction", dns.TypeANY, "NOERROR aa,ra [webapp.istioinaction. 30 IN A 10.96.97.98]"},
		{"SRV of a mesh name is answered here", "webapp.istioinaction", dns.TypeSRV, "NOERROR aa,ra [] SOA"},
		{"PTR of a mesh address is the service's name", "98.97.96.10.in-addr.arpa", dns.TypePTR, "NOERROR aa,ra [98.97.96.10.in-addr.arpa. 30 IN PTR webapp.istioinaction.svc.cluster.local.]"},
		{"PTR of any other address is not the mesh's", "1.2.0.192.in-addr.arpa", dns.TypePTR, "NXDOMAIN ra []"},
		{"upper case in the table", "mixed.case.internal", dns.TypeA, "NOERROR aa,ra [mixed.case.internal. 30 IN A 240.240.0.30]"},
		{"upper case in the question comes back as asked", "WebApp.IstioInAction", dns.TypeA, "NOERROR aa,ra [WebApp.IstioInAction. 30 IN A 10.96.97.98]"},
		{"a wildcard", "a.wild.corp.internal", dns.TypeA, "NOERROR aa,ra [a.wild.corp.internal. 30 IN A 240.240.0.20]"},
		{"a wildcard over several labels", "a.b.c.wild.corp.internal", dns.TypeA, "NOERROR aa,ra [a.b.c.wild.corp.internal. 30 IN A 240.240.0.20]"},
		{"a wildcard never matches its apex", "wild.corp.internal", dns.TypeA, "NOERROR ra [] SOA"},
		{"two families, IPv4", "db.corp.internal", dns.TypeA, "NOERROR aa,ra [db.corp.internal. 30 IN A 240.240.0.10]"},
		{"two families, IPv6", "db.corp.internal", dns.TypeAAAA, "NOERROR aa,ra [db.corp.internal. 30 IN AAAA 2001:db8:240::10]"},
		{"a name with IPv6 only has an empty A answer", "v6.corp.internal", dns.TypeA, "NOERROR aa,ra [] SOA"},
		{"PTR of an IPv6 address", reverse(t, "2001:db8:240::20"), dns.TypePTR, "NOERROR aa,ra [" + reverse(t, "2001:db8:240::20") + " 30 IN PTR v6.corp.internal.]"},
		{"a headless service has all its addresses", "mysql.istioinaction", dns.TypeA, "NOERROR aa,ra [mysql.istioinaction. 30 IN A 172.16.0.21; mysql.istioinaction. 30 IN A 172.16.0.22]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for via := range transports {
				for _, edns := range []bool{false, true} {
					req, want := question(tt.query, tt.qtype), tt.want
					if edns {
						req.SetEdns0(4096, false)
						want += " OPT"
					}
					if got := brief(exchange(t, s.addr, via, req)); got != want {
						t.Errorf("%s %s over %v, edns %v\n got %s\nwant %s", tt.query, dns.Type(tt.qtype), via, edns, got, want)
					}
				}
			}
		})
	}
}

// reverse is the name whose PTR record tells the address's name.
func reverse(t *testing.T, addr string) string {
	t.Helper()
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestMeshNamesNeverReachUpstream(t *testing.T) {
	up := newUpstream(t, zone(t))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	s.Replace(forum(t))
	for qtype := range uint16(300) {
		if qtype == dns.TypeOPT || qtype == dns.TypeNone {
			continue
		}
		exchange(t, s.addr, overUDP, question("webapp.istioinaction", qtype))
		exchange(t, s.addr, overUDP, question("98.97.96.10.in-addr.arpa", qtype))
	}
	if asked := up.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked about mesh names: %q", asked)
	}
}

// TestEveryNameBeforeTheFirstTable is promise 1: the state of the mesh never fails a name that upstream can answer.
func TestEveryNameBeforeTheFirstTable(t *testing.T) {
	up := newUpstream(t, zone(t, "www.example.com. 300 IN A 192.0.2.80"))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}})
	tests := []struct{ name, want string }{
		{"www.example.com", "NOERROR ra [www.example.com. 300 IN A 192.0.2.80]"},
		{"webapp.istioinaction", "NXDOMAIN ra []"},
	}
	for _, tt := range tests {
		if got := brief(exchange(t, s.addr, overUDP, question(tt.name, dns.TypeA))); got != tt.want {
			t.Errorf("%s before any table: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestMeshNamesWithoutUpstream is the other half of promise 1.
func TestMeshNamesWithoutUpstream(t *testing.T) {
	s := serve(t, Config{}) // resolv.conf is missing
	s.Replace(forum(t))
	const want = "NOERROR aa,ra [forum. 30 IN A 10.96.72.87]"
	if got := brief(exchange(t, s.addr, overUDP, question("forum", dns.TypeA))); got != want {
		t.Errorf("forum without any upstream: got %s, want %s", got, want)
	}
	req := question("www.example.com", dns.TypeA).SetEdns0(1232, false)
	if got, want := brief(exchange(t, s.addr, overUDP, req)), "SERVFAIL ra [] OPT EDE22"; got != want {
		t.Errorf("an external name without any upstream: got %s, want %s", got, want)
	}
}
