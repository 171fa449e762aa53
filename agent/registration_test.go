package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/dnsproxy"
	"wingman/systemd/resolved"
)

func TestCoveredBy(t *testing.T) {
	d := resolved.DomainsOf(resolved.Names{Hosts: []string{"web.prod.svc.cluster.local", "db.corp.example"}, Domain: "svc.cluster.local", Namespace: "forum"})
	for _, tc := range []struct {
		name       string
		registered bool
		want       string
	}{
		{"db.corp.example.", true, "sends it here by domain ~db.corp.example"},
		{"web.prod", true, "sends it here by domain ~web.prod"},
		{"web", true, "only as web.forum.svc.cluster.local"},
		{"www.corp.example", true, "does not send it here"},
		{"98.97.96.10.in-addr.arpa", true, "does not send it here"},
		{"db.corp.example", false, "sends no name here"},
	} {
		if got := coveredBy(d, tc.registered, tc.name); !strings.Contains(got, tc.want) {
			t.Errorf("%s, registered %t: %q, want %q in it", tc.name, tc.registered, got, tc.want)
		}
	}
}

func TestReachable(t *testing.T) {
	for listen, want := range map[string]string{
		"127.0.0.1:15053": "127.0.0.1:15053", "0.0.0.0:53": "127.0.0.1:53", "[::]:53": "[::1]:53", "10.0.0.7:15053": "10.0.0.7:15053",
	} {
		if got := reachable(netip.MustParseAddrPort(listen)).String(); got != want {
			t.Errorf("%s is reached at %s, want %s", listen, got, want)
		}
	}
}

// What is registered follows the table and the settings; what is wrong with the machine is said.
func TestWishAndReportOfARegistration(t *testing.T) {
	root := t.TempDir()
	conf := filepath.Join(root, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 10.0.0.2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := &bootstrap.Config{Root: root, Namespace: "forum", Domain: "svc.cluster.local", Paths: bootstrap.Paths{ResolvConf: conf},
		DNS: bootstrap.DNS{Mode: bootstrap.DNSResolved, Listen: netip.MustParseAddrPort("127.0.0.1:15053")}}
	wish := captureWish{cfg: cfg, decision: decision{names: true}}
	var table *dnsproxy.Table
	r := &registration{wish: func() captureWish { return wish }, table: func() *dnsproxy.Table { return table }}
	keeper, err := resolved.New(resolved.Config{Wish: r.wanted})
	if err != nil {
		t.Fatal(err)
	}
	r.keeper = keeper
	domains := func() string {
		var list []string
		for _, d := range r.wanted().Domains.List {
			list = append(list, d.String())
		}
		return strings.Join(list, " ")
	}
	if got := domains(); got != "" {
		t.Errorf("without a table: %s", got)
	}
	table, err = dnsproxy.NewTable(dnsproxy.TableConfig{}, []dnsproxy.Name{
		{Host: "db.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, AltHosts: []string{"alt.example"}},
		{Host: "nobody.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := domains(), "~alt.example ~db.example"; got != want {
		t.Errorf("domains %s, want %s", got, want)
	}
	var d status.DNSReport
	if got := strings.Join(r.report(cfg, &d), "\n"); d.Mode != bootstrap.DNSResolved || d.Resolved == nil || !strings.Contains(got, "resolv.conf names 10.0.0.2") {
		t.Errorf("report %+v, degraded %q", d, got)
	}
	wish.names = false
	if w := r.wanted(); w.Registered || len(w.Domains.List) > 0 {
		t.Errorf("a machine that leaves wants %+v", w)
	}
	if got := r.report(cfg, &d); got != nil {
		t.Errorf("a machine that is not to be registered is degraded: %q", got)
	}
	var none *registration
	if got := none.report(&bootstrap.Config{DNS: bootstrap.DNS{Mode: bootstrap.DNSRedirect}}, &d); got != nil || d.Mode != bootstrap.DNSRedirect {
		t.Errorf("in mode redirect: %q, %+v", got, d)
	}
}
