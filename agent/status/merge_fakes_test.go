package status

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"wingman/bootstrap"
	"wingman/test/syncbuffer"
)

// Bodies of sources.
const (
	envoyBody = "# TYPE envoy_server_live gauge\nenvoy_server_live{} 1\n"
	appBody   = "# HELP forum_posts_total Posts.\n# TYPE forum_posts_total counter\nforum_posts_total 7\n"
)

// merged is a /stats/prometheus with sources of the test's choice.
type merged struct {
	*merger
	url string
	log *syncbuffer.Buffer
}

func newMerged(t testing.TB, s Sources) *merged {
	t.Helper()
	own := prometheus.NewRegistry()
	own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wingman_test", Help: "Ours."}, func() float64 { return 1 }))
	own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "go_goroutines", Help: "Go's."}, func() float64 { return 2 }))
	log := &syncbuffer.Buffer{}
	m := newMerger(own, Merge{
		Sources: func() Sources { return s },
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "at" {
				return slog.Attr{}
			}
			return a
		}})),
		Metrics: own,
	})
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	return &merged{merger: m, url: server.URL, log: log}
}

// scrape asks once; headers are name, value, ….
func (m *merged) scrape(t testing.TB, headers ...string) (body, contentType string) {
	t.Helper()
	res := m.get(t.Context(), t, headers...)
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("scrape = %s, %v", res.Status, err)
	}
	return string(b), res.Header.Get("Content-Type")
}

func (m *merged) get(ctx context.Context, t testing.TB, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Set(pair[0], pair[1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// failures are the counts by source: agent, envoy, application.
func (m *merged) failures() [3]float64 {
	var n [3]float64
	for i, source := range []string{sourceAgent, sourceEnvoy, sourceApplication} {
		n[i] = value(m.metrics.failures.WithLabelValues(source))
	}
	return n
}

func value(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	return m.GetCounter().GetValue()
}

// serveOn answers on a port of its own.
func serveOn(t testing.TB, h http.HandlerFunc) (port uint16) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
}

// says answers with a body and its type.
func says(contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		io.WriteString(w, body)
	}
}

func app(port uint16) bootstrap.ScrapeTarget {
	return bootstrap.ScrapeTarget{Port: port, Path: "/metrics"}
}

// parses fails the test when a body is not what Prometheus reads, or a name comes twice.
func parses(t testing.TB, body string) {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	if _, err := p.TextToMetricFamilies(strings.NewReader(body)); err != nil {
		t.Errorf("the merged metrics cannot be read: %v\n%s", err, body)
	}
}
