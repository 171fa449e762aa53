package status

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wingman/agent/envoy/envoytest"
	"wingman/bootstrap"
)

// TestMain gives the tests a network of their own: the real Envoy's ports are fixed.
func TestMain(m *testing.M) { envoytest.Main(m) }

// envoyFile is a bootstrap file of ours whose sockets are in dir.
func envoyFile(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile("../envoy/testdata/vm.json")
	if err != nil {
		t.Fatal(err)
	}
	const run = "/run/wingman/"
	if !strings.Contains(string(b), run+"xds.sock") {
		t.Fatalf("no %sxds.sock in the file", run)
	}
	return []byte(strings.ReplaceAll(string(b), run, dir+"/"))
}

// The real Envoy's metrics stand between ours and the application's, whatever the scraper prefers, and come and go with it.
func TestMergeWithEnvoy(t *testing.T) {
	program := envoytest.Program(t)
	s := Sources{Envoy: 15090, Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says("text/plain", appBody)))}}
	m := newMerged(t, s)
	t.Run("while it runs", func(t *testing.T) {
		dir := envoytest.Dir(t)
		envoytest.NewADS(t, filepath.Join(dir, "xds.sock"))
		envoytest.Start(t, program, envoyFile(t, dir))
		envoytest.Await(t, "Envoy's metrics", func(context.Context) error {
			if body, _ := m.scrape(t); !strings.Contains(body, "\nenvoy_server_live{} 1\n") {
				return errors.New("not among the merged ones")
			}
			return nil
		})
		failed := m.failures()
		for _, accept := range []string{
			"",
			"*/*",
			"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3",
		} {
			body, contentType := m.scrape(t, "Accept", accept, "Accept-Encoding", "gzip, br")
			ours, rest, ok := strings.Cut(body, "# TYPE envoy_")
			if !ok || !strings.HasPrefix(contentType, "text/plain") || !strings.Contains(ours, "wingman_test 1\n") || !strings.HasSuffix(rest, appBody) {
				t.Errorf("asked for %q: %s, %d bytes that start %.60q and end %q", accept, contentType, len(body), body, body[max(0, len(body)-100):])
			}
			parses(t, body)
		}
		all, _ := m.scrape(t)
		m.url += "?usedonly"
		used, _ := m.scrape(t)
		m.url = strings.TrimSuffix(m.url, "?usedonly")
		if len(used) >= len(all) || !strings.Contains(used, "envoy_server_live") {
			t.Errorf("?usedonly gives %d of %d bytes: it did not reach Envoy", len(used), len(all))
		}
		if m.failures() != failed {
			t.Errorf("failures %v, before %v", m.failures(), failed)
		}
	})
	before := m.failures()
	body, _ := m.scrape(t)
	if strings.Contains(body, "envoy_server_live") || !strings.Contains(body, "wingman_test 1\n"+appBody) {
		t.Errorf("after Envoy's end:\n%s", body)
	}
	if now := m.failures(); now[1] != before[1]+1 {
		t.Errorf("failures %v, before %v: want one more of envoy", now, before)
	}
	if !strings.HasSuffix(strings.TrimSpace(m.log.String()), "connection refused\"") {
		t.Errorf("the last line does not say that Envoy is gone:\n%s", m.log)
	}
}

// The admin port would say the same, but not only that: what a query can reach matters, and 15090 leads to metrics alone.
func TestEnvoysMetricsPortShowsNothingElse(t *testing.T) {
	program := envoytest.Program(t)
	dir := envoytest.Dir(t)
	envoytest.NewADS(t, filepath.Join(dir, "xds.sock"))
	envoytest.Start(t, program, envoyFile(t, dir))
	envoytest.Await(t, "port 15090", func(ctx context.Context) error {
		for path, want := range map[string]int{"/stats/prometheus": 200, "/config_dump": 404, "/": 404} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:15090"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Fatalf("%s answers %s, want %d", path, res.Status, want)
			}
		}
		return nil
	})
}
