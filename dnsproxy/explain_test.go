package dnsproxy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

func TestExplain(t *testing.T) {
	up := newUpstream(t, zone(t, example, "webapp.istioinaction. 60 IN A 192.0.2.9"))
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}}, forum(t))
	s.forward.mu.Lock()
	s.forward.conf.search = searchKeys([]string{"corp.example"})
	s.forward.mu.Unlock()
	server := up.addr.String()
	nothing := Outcome{Source: "upstream", Rcode: "NXDOMAIN", Upstream: server}
	mesh := func(records ...string) Outcome { return Outcome{Source: "mesh", Rcode: "NOERROR", Records: records} }
	tests := []struct {
		name string
		ask  string
		want Explanation
	}{
		{"a short form, which upstream has otherwise", "webapp.istioinaction", Explanation{Rule: "short form", Host: "webapp.istioinaction.svc.cluster.local", Registry: "Kubernetes",
			Answer:  mesh("webapp.istioinaction.\t30\tIN\tA\t10.96.97.98"),
			Without: Outcome{Source: "upstream", Rcode: "NOERROR", Upstream: server, Records: []string{"webapp.istioinaction.\t60\tIN\tA\t192.0.2.9"}}}},
		{"an exact name", "auto.corp.internal", Explanation{Rule: "exact", Host: "auto.corp.internal", Registry: "External", Answer: mesh("auto.corp.internal.\t30\tIN\tA\t240.240.0.1"), Without: nothing}},
		{"a wildcard", "x.wild.corp.internal", Explanation{Rule: "wildcard", Host: "*.wild.corp.internal", Registry: "External", Answer: mesh("x.wild.corp.internal.\t30\tIN\tA\t240.240.0.20"), Without: nothing}},
		{"a reverse name", "98.97.96.10.in-addr.arpa", Explanation{Rule: "address", Host: "webapp.istioinaction.svc.cluster.local", Registry: "Kubernetes", Answer: mesh(), Without: nothing}},
		{"a name completed by the search list", "forum.corp.example", Explanation{Rule: "search list", Suffix: "corp.example.", Host: "forum.forum-services.svc.cluster.local", Registry: "Kubernetes",
			Answer:  Outcome{Source: "mesh", Rcode: "NOERROR", Upstream: server, Records: []string{"forum.corp.example.\t30\tIN\tCNAME\tforum.", "forum.\t30\tIN\tA\t10.96.72.87"}},
			Without: nothing}},
		{"a name with names of the mesh below it", "istioinaction.svc.cluster.local", Explanation{Rule: "non-terminal", Answer: Outcome{Source: "mesh", Rcode: "NOERROR", Upstream: server}, Without: nothing}},
		{"localhost", "localhost", Explanation{Rule: "localhost", Answer: Outcome{Source: "local", Rcode: "NOERROR", Records: []string{"localhost.\t30\tIN\tA\t127.0.0.1"}}, Without: nothing}},
		{"a name of others", "www.example.com", Explanation{
			Answer:  Outcome{Source: "upstream", Rcode: "NOERROR", Upstream: server, Records: []string{"www.example.com.\t300\tIN\tA\t192.0.2.80"}},
			Without: Outcome{Source: "upstream", Rcode: "NOERROR", Upstream: server, Records: []string{"www.example.com.\t300\tIN\tA\t192.0.2.80"}}}},
		{"the same name again, from the cache", "www.example.com", Explanation{
			Answer:  Outcome{Source: "cache", Rcode: "NOERROR", Records: []string{"www.example.com.\t300\tIN\tA\t192.0.2.80"}},
			Without: Outcome{Source: "upstream", Rcode: "NOERROR", Upstream: server, Records: []string{"www.example.com.\t300\tIN\tA\t192.0.2.80"}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := s.Explain(context.Background(), tt.ask, dns.TypeA)
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Name, tt.want.Type, tt.want.TableVersion = tt.ask+".", "A", "v1"
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(Outcome{}, "Took"), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s (-want +got)\n%s", tt.ask, diff)
			}
			if got.Answer.Took <= 0 || got.Without.Took <= 0 {
				t.Errorf("%s took %v with the agent and %v without", tt.ask, got.Answer.Took, got.Without.Took)
			}
		})
	}
	if _, err := s.Explain(context.Background(), "a..b", dns.TypeA); err == nil {
		t.Error("a name that is none was explained")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	up.set(silent)
	if _, err := s.Explain(ended, "other.example.com", dns.TypeA); err == nil {
		t.Error("Explain went on after its context had ended")
	}
	if got := s.Stats().Queries; got != 0 {
		t.Errorf("explaining counted as %d answers to clients", got)
	}
}

// TestMetrics compares everything that is exposed after a few questions, but for durations.
func TestMetrics(t *testing.T) {
	up := newUpstream(t, zone(t, example))
	registry := prometheus.NewRegistry()
	var log lines
	s := serve(t, Config{Upstreams: []netip.AddrPort{up.addr}, Metrics: registry, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, forum(t, external("a..example", "1.1.1.1")))
	exchange(t, s.addr, overUDP, question("forum", dns.TypeA))
	exchange(t, s.addr, overTCP, question("forum", dns.TypeHTTPS))
	exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))
	exchange(t, s.addr, overUDP, question("www.example.com", dns.TypeA))
	exchange(t, s.addr, overUDP, question("no.example.com", dns.TypeTLSA))
	exchange(t, s.addr, overUDP, question("localhost", dns.TypeAAAA))
	odd := question("forum", dns.TypeA)
	odd.Opcode = dns.OpcodeStatus
	exchange(t, s.addr, overUDP, odd)
	versioned := question("forum", dns.TypeA).SetEdns0(1232, false)
	versioned.IsEdns0().SetVersion(1)
	exchange(t, s.addr, overUDP, versioned)
	ask(t, s.addr, overUDP, []byte("x"), 20*time.Millisecond)
	want := []string{
		"wingman_dnsproxy_cache_entries 1", // the answer that had a TTL to go by
		"wingman_dnsproxy_dropped_total 1",
		"wingman_dnsproxy_queries_total rcode=BADVERS source=refused transport=udp type=A 1",
		"wingman_dnsproxy_queries_total rcode=NOERROR source=cache transport=udp type=A 1",
		"wingman_dnsproxy_queries_total rcode=NOERROR source=local transport=udp type=AAAA 1",
		"wingman_dnsproxy_queries_total rcode=NOERROR source=mesh transport=tcp type=HTTPS 1",
		"wingman_dnsproxy_queries_total rcode=NOERROR source=mesh transport=udp type=A 1",
		"wingman_dnsproxy_queries_total rcode=NOERROR source=upstream transport=udp type=A 1",
		"wingman_dnsproxy_queries_total rcode=NOTIMP source=refused transport=udp type=A 1",
		"wingman_dnsproxy_queries_total rcode=NXDOMAIN source=upstream transport=udp type=other 1",
		"wingman_dnsproxy_table_left_out 1",
		"wingman_dnsproxy_table_names 11",
		"wingman_dnsproxy_upstream_duration_seconds upstream=" + up.addr.String() + " 2",
		"wingman_dnsproxy_upstream_healthy upstream=" + up.addr.String() + " 1",
		"wingman_dnsproxy_wait_seconds source=mesh 0",
		"wingman_dnsproxy_wait_seconds source=refused 0",
		"wingman_dnsproxy_wait_seconds source=stale 0",
		"wingman_dnsproxy_wait_seconds source=upstream 2",
	}
	if diff := cmp.Diff(want, exposed(t, registry, metricQueries, metricDropped, metricTableNames, metricTableLeftOut, metricUpstreamTime, metricUpstreamUp, metricCacheEntries, metricWait)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, line := range []string{
		`msg="dns query" name=forum. type=A transport=udp source=mesh`, `msg="dns query" name=www.example.com. type=A transport=udp source=upstream`,
		`msg="dns query" name=www.example.com. type=A transport=udp source=cache`, `msg="dns query" name=forum. type=HTTPS transport=tcp source=mesh`,
	} {
		if log.count(line) != 1 {
			t.Errorf("the log does not have %s", line)
		}
	}
	if _, err := New(Config{UDP: s.cfg.UDP, Metrics: registry}); err == nil {
		t.Error("metrics were registered twice without an error")
	}
}

// exposed is what a registry shows of some metrics, a line each, sorted; histograms by their count.
func exposed(t *testing.T, registry *prometheus.Registry, names ...string) (lines []string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if !slices.Contains(names, family.GetName()) {
			continue
		}
		for _, m := range family.GetMetric() {
			line := []string{family.GetName()}
			for _, label := range m.GetLabel() {
				line = append(line, label.GetName()+"="+label.GetValue())
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			lines = append(lines, strings.Join(append(line, fmt.Sprint(value)), " "))
		}
	}
	slices.Sort(lines)
	return lines
}
