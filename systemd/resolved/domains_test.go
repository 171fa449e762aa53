package resolved

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// shown is a list as resolvectl prints it.
func shown(d Domains) string {
	var out []string
	for _, x := range d.List {
		out = append(out, x.String())
	}
	return strings.Join(out, " ")
}

func numbered(n int, format string) (hosts []string) {
	for i := range n {
		hosts = append(hosts, fmt.Sprintf(format, i))
	}
	return hosts
}

func TestDomainsOf(t *testing.T) {
	const cluster = "forum.svc.cluster.local svc.cluster.local ~svc ~svc.cluster"
	for _, tc := range []struct {
		name  string
		hosts []string
		want  string
		out   int
	}{
		{"an empty table has none", nil, "", 0},
		{"services are the cluster's domain and their short forms", []string{"webapp.prod.svc.cluster.local", "catalog.forum.svc.cluster.local."}, cluster + " ~catalog.forum ~webapp.prod", 0},
		{"a stateful pod is below its service", []string{"mysql-0.mysql.prod.svc.cluster.local", "mysql.prod.svc.cluster.local"}, cluster + " ~mysql.prod", 0},
		{"a wildcard inside the cluster has no short form", []string{"*.mysql.prod.svc.cluster.local"}, cluster, 0},
		{"a host is a domain by itself, not its parent", []string{"db.corp.example"}, "~db.corp.example", 0},
		{"hosts are never drawn together", []string{"a.corp.example", "b.corp.example", "c.corp.example"}, "~a.corp.example ~b.corp.example ~c.corp.example", 0},
		{"a wildcard is its parent", []string{"*.wild.example"}, "~wild.example", 0},
		{"what is below a wildcard or a host needs no place", []string{"x.wild.example", "*.wild.example", "y.x.wild.example", "h.example", "a.h.example"}, "~wild.example ~h.example", 0},
		{"a label is a label, not a part of one", []string{"*.wild.example", "b.notwild.example"}, "~wild.example ~b.notwild.example", 0},
		{"letters are lower", []string{"DB.Corp.Example"}, "~db.corp.example", 0},
		{"without services there are no search domains", []string{"db.corp.example"}, "~db.corp.example", 0},
		{"one label is asked of no server", []string{"db"}, "", 0},
		{"the root is not ours, whoever claims it", []string{"*", "*.", "."}, "", 3},
		{"a name that would come back in another spelling is left out", []string{"a b.example", "x.*.example", "é.example", `a\b.example`}, "", 4},
		{"wildcards come before hosts", []string{"a.example", "*.z.example"}, "~z.example ~a.example", 0},
		{"a short form that a host has is there once", []string{"db.prod.svc.cluster.local", "db.prod"}, cluster + " ~db.prod", 0},
		{"the cluster's domain may be below a host of the table", []string{"*.local", "web.prod.svc.cluster.local"}, cluster + " ~local ~web.prod", 0},
	} {
		got := DomainsOf(Names{Hosts: tc.hosts, Domain: "svc.cluster.local", Namespace: "forum"})
		if shown(got) != tc.want || got.LeftOut != tc.out || len(got.Missing) != min(tc.out, mostNamed) {
			t.Errorf("%s: DomainsOf(%q) = %s, %d left out %q; want %s, %d", tc.name, tc.hosts, shown(got), got.LeftOut, got.Missing, tc.want, tc.out)
		}
	}
}

func TestAnotherClusterDomain(t *testing.T) {
	for _, tc := range []struct{ domain, namespace, want string }{
		{"svc.k8s.corp.example", "prod", "prod.svc.k8s.corp.example svc.k8s.corp.example ~svc ~svc.k8s ~svc.k8s.corp ~web.prod"},
		{"corp.example", "prod", "prod.corp.example corp.example ~web.prod"}, // ~corp would be somebody's
		{"svc.cluster.local", "", "svc.cluster.local ~svc ~svc.cluster ~web.prod"},
	} {
		if got := shown(DomainsOf(Names{Hosts: []string{"web.prod." + tc.domain}, Domain: tc.domain, Namespace: tc.namespace})); got != tc.want {
			t.Errorf("domain %s: %s, want %s", tc.domain, got, tc.want)
		}
	}
}

// systemd-resolved takes so many and forgets all at one more.
func TestDomainsHaveABound(t *testing.T) {
	names := func(services, external int) Names {
		return Names{Domain: "svc.cluster.local", Namespace: "forum", Hosts: append(numbered(services, "s%04d.prod.svc.cluster.local"), numbered(external, "e%04d.corp.example")...)}
	}
	for _, tc := range []struct{ services, external, list, out int }{
		{10000, 0, 4, 0}, // no place for all the short forms: for none
		{252, 0, 256, 0},
		{253, 0, 4, 0},
		{1, 251, 256, 0},
		{1, 252, 256, 0}, // the short form makes room
		{1, 253, 256, 1},
		{10000, 5000, 256, 4748},
	} {
		got := DomainsOf(names(tc.services, tc.external))
		if len(got.List) != tc.list || got.LeftOut != tc.out {
			t.Errorf("%d services, %d others: %d domains, %d left out; want %d, %d", tc.services, tc.external, len(got.List), got.LeftOut, tc.list, tc.out)
		}
	}
	got := DomainsOf(names(1, 300))
	if want := []string{"e0252.corp.example", "e0253.corp.example", "e0254.corp.example"}; !slices.Equal(got.Missing, want) {
		t.Errorf("missing %q, want %q", got.Missing, want)
	}
	shuffled := names(1, 300)
	slices.Reverse(shuffled.Hosts)
	if again := DomainsOf(shuffled); !slices.Equal(got.List, again.List) {
		t.Error("the same names in another order have other domains: each push would change them")
	}
}

// Nothing that the table does not have is taken from other links, whatever the table.
func FuzzDomainsOf(f *testing.F) {
	f.Add("webapp.prod.svc.cluster.local *.wild.example db.corp.example * a..b", "www.example.com")
	f.Add("*.com google.com", "x.com")
	f.Fuzz(func(t *testing.T, hosts, foreign string) {
		names := Names{Hosts: strings.Fields(hosts), Domain: "svc.cluster.local", Namespace: "forum"}
		d := DomainsOf(names)
		if len(d.List) > MaxDomains {
			t.Fatalf("%d domains", len(d.List))
		}
		for _, x := range d.List {
			if !plain(x.Name) {
				t.Errorf("domain %q", x.Name)
			}
		}
		by, ok := d.Covers(foreign)
		if !ok {
			return
		}
		// Then it is below a host, a wildcard's parent, or in the cluster's domain, as the table has them.
		name := normal(foreign)
		for _, host := range append(names.Hosts, "svc.cluster.local", "svc.cluster", "svc") {
			suffix := strings.TrimPrefix(normal(host), "*.")
			short, _ := strings.CutSuffix(suffix, ".svc.cluster.local")
			if last, ok := lastTwo(short); ok {
				short = last
			}
			for _, s := range []string{suffix, short} {
				if name == s || strings.HasSuffix(name, "."+s) {
					return
				}
			}
		}
		t.Errorf("%q comes here by %s, and the table has only %q", foreign, by, names.Hosts)
	})
}

func TestCovers(t *testing.T) {
	d := DomainsOf(Names{Hosts: []string{"web.prod.svc.cluster.local", "*.wild.example"}, Domain: "svc.cluster.local", Namespace: "forum"})
	for name, want := range map[string]string{
		"web.prod.svc.cluster.local.":     "svc.cluster.local",
		"catalog.forum.svc.cluster.local": "forum.svc.cluster.local",
		"web.prod":                        "~web.prod",
		"A.B.Wild.Example.":               "~wild.example",
		"notwild.example":                 "",
		"www.example.com":                 "",
		"web":                             "",
		"svc":                             "", // one label
		"1.97.96.10.in-addr.arpa":         "",
	} {
		got, ok := d.Covers(name)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("Covers(%q) = %v, %t; want %q", name, got, ok, want)
		}
	}
}
