package chapter

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wingman/test/mesh/testbed"
)

// bookSettings is the book's sidecar.env.
const bookSettings = `ISTIO_AGENT_FLAGS="--log_output_level=dns:debug"
SECRET_TTL="12h0m0s"
`

// look does what the book does to see what is going on: istioctl's tools on what Envoy has, istioctl proxy-status, istiod's debug
// pages, the agent's log. forum has bookSettings and catalog has none; catalogAt is where forum's Envoy finds catalog.
func look(t *testing.T, bed *testbed.Bed, forum, catalog *member, catalogAt string) {
	t.Helper()
	dump, clusters := saved(t, forum, "/config_dump"), saved(t, forum, "/clusters?format=json")
	for kind, want := range map[string][]string{
		"listener": {
			"0.0.0.0 80 Trans: raw_buffer; App: http/1.1,h2c Route: 80",
			"0.0.0.0 15001 ALL PassthroughCluster",
			"0.0.0.0 15006 Trans: tls; App: istio,istio-peer-exchange,istio-http/1.0,istio-http/1.1,istio-h2; Addr: *:8080 Cluster: inbound|8080||",
			"0.0.0.0 15021 ALL Inline Route: /healthz/ready*",
			"0.0.0.0 15090 ALL Inline Route: /stats/prometheus*",
		},
		"route": {
			"80 catalog.istioinaction.svc.cluster.local:80 catalog.istioinaction.svc.cluster.local.,",
			"inbound|8080|| inbound|http|80 * /*",
		},
		"cluster": {
			"8080 - inbound ORIGINAL_DST",
			"catalog.istioinaction.svc.cluster.local 80 - outbound EDS",
		},
		"secret": {"default Cert Chain ACTIVE true", "ROOTCA CA ACTIVE true"},
	} {
		shows(t, bed, kind, dump, want)
	}
	shows(t, bed, "endpoint", clusters, []string{catalogAt + " HEALTHY OK outbound|80||" + catalogFQDN})
	shows(t, bed, "eds", saved(t, forum, "/config_dump?include_eds"), []string{catalogAt + " HEALTHY outbound|80||" + catalogFQDN})

	for m, life := range map[*member]time.Duration{forum: 12 * time.Hour, catalog: 24 * time.Hour} {
		certificateLives(t, bed, m, life)
		testbed.Await(t, "istiod has one row for "+m.Name(), func() error {
			if rows := bed.ProxyRows(t); count(rows, m.Proxy()) != 1 {
				return fmt.Errorf("it has %v", rows)
			}
			return nil
		})
		testbed.Await(t, "every push to "+m.Name()+" is acknowledged", func() error {
			return bed.Acknowledged(t, m.Proxy(), "Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration", "NameTable")
		})
		testbed.Await(t, m.Name()+" has istiod's names", func() error { return bed.SameNames(t, m.VM) })
	}

	const query = " DEBUG dns query "
	if !strings.Contains(forum.AgentLog(t), query) {
		t.Error("with ISTIO_AGENT_FLAGS=--log_output_level=dns:debug the agent logs no query")
	}
	if strings.Contains(catalog.AgentLog(t), query) {
		t.Error("without ISTIO_AGENT_FLAGS the agent logs queries")
	}
}

// saved is a file with a page of Envoy's admin port, as `curl localhost:15000/config_dump > file` makes it.
func saved(t *testing.T, m *member, page string) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "page.json")
	if err := os.WriteFile(file, []byte(m.envoy.Admin(t, page)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// proxyConfig is the table that istioctl proxy-config makes of a file, with single spaces.
func proxyConfig(t *testing.T, bed *testbed.Bed, kind, file string) (lines []string) {
	t.Helper()
	for line := range strings.Lines(bed.Istioctl(t, "proxy-config", kind, "--file", file)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

// shows fails unless the table has a line that begins with each of want.
func shows(t *testing.T, bed *testbed.Bed, kind, file string, want []string) {
	t.Helper()
	lines := proxyConfig(t, bed, kind, file)
	for _, w := range want {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, w) }) {
			t.Errorf("istioctl proxy-config %s has no line %q:\n%s", kind, w, strings.Join(lines, "\n"))
		}
	}
}

// certificateLives fails unless a machine's certificate was given for this long, and Envoy has the same one.
func certificateLives(t *testing.T, bed *testbed.Bed, m *member, want time.Duration) {
	t.Helper()
	s, err := m.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if life := s.Identity.NotAfter.Sub(s.Identity.ReceivedAt); (life - want).Abs() > time.Minute {
		t.Errorf("%s: the certificate lives %s, want %s", m.Name(), life, want)
	}
	serial := strings.Repeat("0", max(0, 32-len(s.Identity.Serial))) + s.Identity.Serial // istioctl prints 16 bytes at least
	shows(t, bed, "secret", saved(t, m, "/config_dump"), []string{
		fmt.Sprintf("default Cert Chain ACTIVE true %s %s", serial, s.Identity.NotAfter.UTC().Format(time.RFC3339)),
	})
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if s == one {
			n++
		}
	}
	return n
}
