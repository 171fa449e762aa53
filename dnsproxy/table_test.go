package dnsproxy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// nameTable reads a NameTable in protojson, as `wingman dns serve` does.
func nameTable(t testing.TB, file string) []Name {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var pushed struct {
		Table map[string]struct {
			IPs       []netip.Addr
			Registry  string
			ShortName string
			Namespace string
			AltHosts  []string
		}
	}
	if err := json.Unmarshal(text, &pushed); err != nil {
		t.Fatal(err)
	}
	var names []Name
	for host, n := range pushed.Table {
		names = append(names, Name{Host: host, Addrs: n.IPs, Registry: n.Registry, ShortName: n.ShortName, Namespace: n.Namespace, AltHosts: n.AltHosts})
	}
	return names
}

// forum is the table of a VM in namespace forum-services, with further names.
func forum(t testing.TB, more ...Name) *Table {
	t.Helper()
	table, err := NewTable(TableConfig{Namespace: "forum-services", Domain: "svc.cluster.local", Version: "v1"}, append(nameTable(t, "testdata/nametable.json"), more...))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// answered is what a table says about the addresses of a name: "-" if it does not know it.
func answered(table *Table, name string) string {
	var all []string
	known := false
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		rrs, found := table.Lookup(name, qtype)
		known = known || found
		for _, rr := range rrs {
			all = append(all, dns.Field(rr, 1))
		}
	}
	if !known {
		return "-"
	}
	return strings.Join(all, " ")
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func kube(short, namespace string, list ...string) Name {
	return Name{Host: short + "." + namespace + ".svc.cluster.local", Addrs: addrs(list...), Registry: "Kubernetes", ShortName: short, Namespace: namespace}
}

func external(host string, list ...string) Name {
	return Name{Host: host, Addrs: addrs(list...), Registry: "External"}
}

func TestNames(t *testing.T) {
	own := TableConfig{Namespace: "ns1", Domain: "svc.cluster.local"}
	with := func(n Name, change func(*Name)) Name { change(&n); return n }
	tests := []struct {
		name  string
		cfg   TableConfig
		names []Name
		want  map[string]string // name → addresses
	}{
		{
			"a service has every form, in its own namespace the short one too", own,
			[]Name{kube("productpage", "ns1", "9.9.9.9")},
			map[string]string{"productpage": "9.9.9.9", "productpage.ns1": "9.9.9.9", "productpage.ns1.svc": "9.9.9.9", "productpage.ns1.svc.cluster": "9.9.9.9",
				"productpage.ns1.svc.cluster.local": "9.9.9.9", "PRODUCTPAGE.ns1.Svc.": "9.9.9.9", "productpage.svc": "-", "ns1": "-", "svc.cluster.local": "-", ".": "-"},
		},
		{
			"a stateful pod has them as well", own,
			[]Name{kube("mysql-0.mysql", "ns1", "1.1.1.1"), kube("mysql", "ns1", "1.1.1.1", "1.1.1.2")},
			map[string]string{"mysql-0.mysql": "1.1.1.1", "mysql-0.mysql.ns1.svc": "1.1.1.1", "mysql": "1.1.1.1 1.1.1.2", "mysql-1.mysql": "-"},
		},
		{
			"a service of another domain has its host alone", own,
			[]Name{{Host: "details.ns2.svc.cluster.remote", Addrs: addrs("1.1.1.1"), Registry: "Kubernetes", ShortName: "details", Namespace: "ns2"}},
			map[string]string{"details.ns2.svc.cluster.remote": "1.1.1.1", "details.ns2": "-", "details.ns2.svc": "-"},
		},
		{
			"another registry has no forms", own,
			[]Name{with(external("db.ns1.svc.cluster.local", "1.1.1.1"), func(n *Name) { n.ShortName, n.Namespace = "db", "ns1" })},
			map[string]string{"db.ns1.svc.cluster.local": "1.1.1.1", "db.ns1": "-", "db": "-"},
		},
		{
			"the domain may come with the namespace in front", TableConfig{Namespace: "ns1", Domain: "ns1.svc.cluster.local."},
			[]Name{kube("productpage", "ns1", "9.9.9.9")},
			map[string]string{"productpage.ns1": "9.9.9.9", "productpage": "9.9.9.9"},
		},
		{
			"without a domain there are no forms", TableConfig{Namespace: "ns1"},
			[]Name{kube("productpage", "ns1", "9.9.9.9")},
			map[string]string{"productpage.ns1.svc.cluster.local": "9.9.9.9", "productpage.ns1": "-"},
		},
		{
			"alternative hosts have the same answers", own,
			[]Name{with(kube("alt", "ns1", "15.15.15.15"), func(n *Name) { n.AltHosts = []string{"alt.ns1.svc.clusterset.local", "Other.Example."} })},
			map[string]string{"alt.ns1.svc.clusterset.local": "15.15.15.15", "other.example": "15.15.15.15", "alt": "15.15.15.15"},
		},
		{
			"a host wins over another's alternative host", own,
			[]Name{with(kube("a", "ns1", "1.1.1.1"), func(n *Name) { n.AltHosts = []string{"b.example"} }), external("b.example", "2.2.2.2")},
			map[string]string{"b.example": "2.2.2.2", "a": "1.1.1.1"},
		},
		{
			"an exact name wins over a short form", own,
			[]Name{kube("web", "ns1", "1.1.1.1"), external("web.ns1", "2.2.2.2")},
			map[string]string{"web.ns1": "2.2.2.2", "web.ns1.svc": "1.1.1.1"},
		},
		{
			"a form with the namespace wins over one of the own namespace", own,
			[]Name{kube("mysql-0.mysql", "ns1", "1.1.1.1"), kube("mysql-0", "mysql", "2.2.2.2")},
			map[string]string{"mysql-0.mysql": "2.2.2.2"},
		},
		{
			"a host given in two spellings: Kubernetes, then the lesser spelling, wins", own,
			[]Name{external("WWW.example", "1.1.1.1"), external("www.example", "2.2.2.2"), with(external("X.example", "1.1.1.1"), func(n *Name) {}), with(external("x.example", "2.2.2.2"), func(n *Name) { n.Registry = "Kubernetes" })},
			map[string]string{"www.EXAMPLE": "1.1.1.1", "x.example": "2.2.2.2"},
		},
		{
			"the longest wildcard matches, an exact name before it, its apex never", own,
			[]Name{external("*.wildcard", "10.10.10.10"), external("*.b.wildcard", "11.11.11.11"), external("c.wildcard", "12.12.12.12")},
			map[string]string{"foo.wildcard": "10.10.10.10", "a.b.wildcard": "11.11.11.11", "x.a.b.wildcard": "11.11.11.11", "b.wildcard": "10.10.10.10",
				"c.wildcard": "12.12.12.12", "d.c.wildcard": "10.10.10.10", "wildcard": "-", "*.wildcard": "10.10.10.10", "xwildcard": "-"},
		},
		{
			"a short form wins over a wildcard", own,
			[]Name{kube("web", "ns1", "1.1.1.1"), external("*.ns1", "2.2.2.2")},
			map[string]string{"web.ns1": "1.1.1.1", "other.ns1": "2.2.2.2"},
		},
		{
			"what Istio's agent ignores is not ours: no address, a bare star", own,
			[]Name{external("none.example"), external("*", "1.1.1.1"), external("a.example", "1.1.1.1")},
			map[string]string{"none.example": "-", "com": "-", "a.example": "1.1.1.1"},
		},
		{
			"IPv4 in IPv6 clothing is IPv4", own,
			[]Name{external("a.example", "::ffff:1.2.3.4", "2001:db8::1")},
			map[string]string{"a.example": "1.2.3.4 2001:db8::1"},
		},
		{
			"no IPv6 on this machine: names stay, their IPv6 addresses do not", TableConfig{NoIPv6: true},
			[]Name{external("v6.example", "2001:db8::1"), external("db.example", "1.1.1.1", "2001:db8::1")},
			map[string]string{"v6.example": "", "db.example": "1.1.1.1"},
		},
		{
			"a short name that is not the start of its host still works", own,
			[]Name{{Host: "odd.svc.cluster.local", Addrs: addrs("1.1.1.1"), Registry: "Kubernetes", ShortName: "web", Namespace: "ns1"}},
			map[string]string{"odd.svc.cluster.local": "1.1.1.1", "web.ns1.svc": "1.1.1.1", "web": "1.1.1.1", "odd": "-"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table, err := NewTable(tt.cfg, tt.names)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range tt.want {
				if got := answered(table, name); got != want {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestPTRNamesTheNearest(t *testing.T) {
	table, err := NewTable(TableConfig{Domain: "svc.cluster.local"}, []Name{
		kube("mysql", "ns1", "1.1.1.1", "1.1.1.2"), kube("mysql-0.mysql", "ns1", "1.1.1.1"), external("*.example", "1.1.1.3"), external("b.example", "1.1.1.4"), external("a.example", "1.1.1.4"),
	})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]string{
		"1.1.1.1": "mysql-0.mysql.ns1.svc.cluster.local.", // the pod, not its service
		"1.1.1.2": "mysql.ns1.svc.cluster.local.",
		"1.1.1.3": "-", // of a wildcard, which is no name
		"1.1.1.4": "a.example.",
	} {
		got := "-"
		if rrs, found := table.Lookup(reverse(t, addr), dns.TypePTR); found {
			got = rrs[0].(*dns.PTR).Ptr
		}
		if got != want {
			t.Errorf("PTR of %s: got %s, want %s", addr, got, want)
		}
	}
}

func TestNonTerminals(t *testing.T) {
	table := forum(t)
	for name, want := range map[string]bool{
		"istioinaction.svc.cluster.local": true, "svc.cluster.local": true, "local": true, "istioinaction": true, "istioinaction.svc": true,
		"svc": true, "svc.cluster": true, "wild.corp.internal": true, "corp.internal": true, "nothere.svc.cluster.local": false, "com": false, "x.webapp.istioinaction": false,
		"in-addr.arpa": true, "10.in-addr.arpa": true, "96.10.in-addr.arpa": true, "97.96.10.in-addr.arpa": true, "96.97.10.in-addr.arpa": false, "2.0.192.in-addr.arpa": false,
		"ip6.arpa": true, "8.b.d.0.1.0.0.2.ip6.arpa": true, "9.b.d.0.1.0.0.2.ip6.arpa": false, "x.10.in-addr.arpa": false, "1.98.97.96.10.in-addr.arpa": false, "arpa": false,
	} {
		key, err := keyOf(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := table.exists(key); got != want {
			t.Errorf("exists(%s) = %v, want %v", name, got, want)
		}
	}
}

// TestUpdatesEqualBuilds makes tables from one another, at random, and compares each with one made from nothing.
func TestUpdatesEqualBuilds(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	cfg := TableConfig{Namespace: "ns1", Domain: "svc.cluster.local"}
	var table *Table
	for round := range 300 {
		names := map[string]Name{}
		for range random.IntN(30) {
			var n Name
			a := fmt.Sprintf("10.0.0.%d", random.IntN(20))
			switch random.IntN(6) {
			case 0:
				n = kube(fmt.Sprintf("s%d", random.IntN(6)), fmt.Sprintf("ns%d", random.IntN(3)), a)
			case 1:
				n = external(fmt.Sprintf("*.%c.example", 'a'+random.IntN(4)), a)
			case 2:
				n = external(fmt.Sprintf("%c.%c.example", "xX"[random.IntN(2)], 'a'+random.IntN(4)), a, "10.0.1.1")
			case 3:
				n = external(fmt.Sprintf("h%d.example", random.IntN(9)), a)
				n.AltHosts = []string{fmt.Sprintf("h%d.example", random.IntN(9))}
			case 4: // unusable as a whole
				n = external(fmt.Sprintf("h%d..example", random.IntN(9)), a)
			case 5: // or in part
				n = kube(fmt.Sprintf("s%d", random.IntN(6)), "ns1", a)
				switch random.IntN(3) {
				case 0:
					n.BadAddrs = []string{"x"}
				case 1:
					n.AltHosts = []string{"a..b"}
				case 2:
					n.ShortName = "a..b"
				}
			}
			names[n.Host] = n
		}
		if random.IntN(20) == 0 {
			cfg.Namespace = fmt.Sprintf("ns%d", random.IntN(3))
		}
		list := slices.Collect(maps.Values(names))
		before := describe(table)
		next, err := table.Update(cfg, list)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := NewTable(cfg, list)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(describe(fresh), describe(next)); diff != "" {
			t.Fatalf("round %d: an update differs from a build (-build +update)\n%s", round, diff)
		}
		if table != nil && table.cfg.Namespace == cfg.Namespace {
			gone, names := difference(table, list)
			changed, err := table.Change(cfg, gone, names)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(describe(fresh), describe(changed)); diff != "" {
				t.Fatalf("round %d: a change differs from a build (-build +change)\n%s", round, diff)
			}
		}
		if diff := cmp.Diff(before, describe(table)); diff != "" {
			t.Fatalf("round %d: an update changed the table it started from\n%s", round, diff)
		}
		table = next
	}
}

// difference is what a list has changed of a table: hosts that are not there any more, and names that are new or not the same.
func difference(table *Table, list []Name) (gone []string, names []Name) {
	for i := range list {
		same := func(s *service) bool {
			return s.Host == list[i].Host && table.leftOut[s.Host] == "" && sameName(&s.Name, &list[i])
		}
		if !slices.ContainsFunc(table.services, same) {
			names = append(names, list[i])
		}
	}
	for _, s := range table.services {
		if !slices.ContainsFunc(list, func(n Name) bool { return n.Host == s.Host }) {
			gone = append(gone, s.Host)
		}
	}
	for _, l := range table.LeftOut("") {
		if !slices.ContainsFunc(list, func(n Name) bool { return n.Host == l.Host }) {
			gone = append(gone, l.Host)
		}
	}
	return gone, names
}

// describe is a table's whole content as text.
func describe(table *Table) map[string]string {
	all := map[string]string{}
	if table == nil {
		return all
	}
	all["wildcards"] = fmt.Sprint(table.wildcards)
	all["services"] = fmt.Sprint(len(table.services))
	all["left out"] = fmt.Sprint(table.LeftOut(""))
	for _, shard := range table.names {
		for key, n := range shard {
			var owners []string
			for _, c := range n.owners {
				owners = append(owners, fmt.Sprint(c.service.Host, c.service.Addrs, c.alias))
			}
			all[nameOf([]byte(key))] = fmt.Sprint(n.children, owners)
		}
	}
	for _, shard := range table.addrs {
		for addr, services := range shard {
			var hosts []string
			for _, s := range services {
				hosts = append(hosts, s.Host)
			}
			all[addr.String()] = fmt.Sprint(hosts)
		}
	}
	return all
}

func TestHostsAreAllNamesThatAnswer(t *testing.T) {
	table, err := NewTable(TableConfig{Domain: "svc.cluster.local"}, []Name{
		{Host: "a.example", Addrs: addrs("10.0.0.1"), AltHosts: []string{"b.example", "*.c.example"}},
		{Host: "web.prod.svc.cluster.local", Addrs: addrs("10.0.0.2"), Registry: kubernetesRegistry},
		{Host: "nobody.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(table.Hosts()), []string{"*.c.example", "a.example", "b.example", "web.prod.svc.cluster.local"}; !slices.Equal(got, want) {
		t.Errorf("hosts %q, want %q", got, want)
	}
	for range table.Hosts() {
		break // and no panic
	}
	for host := range (*Table)(nil).Hosts() {
		t.Errorf("no table has host %q", host)
	}
}

func TestNamesByGlob(t *testing.T) {
	table := forum(t)
	for glob, want := range map[string]string{
		"*.ISTIOINACTION.*": "catalog.istioinaction.svc.cluster.local mysql.istioinaction.svc.cluster.local webapp.istioinaction.svc.cluster.local",
		"mixed*":            "Mixed.Case.Internal",
		"nothing":           "",
	} {
		names, err := table.Names(glob)
		if err != nil {
			t.Fatal(err)
		}
		var hosts []string
		for _, n := range names {
			hosts = append(hosts, n.Host)
		}
		if got := strings.Join(hosts, " "); got != want {
			t.Errorf("%s: got %s, want %s", glob, got, want)
		}
	}
	if names, err := table.Names(""); err != nil || len(names) != 11 {
		t.Errorf("all: %d names, %v, want 11", len(names), err)
	}
	if _, err := table.Names("["); err == nil {
		t.Error("a malformed pattern was taken")
	}
}
