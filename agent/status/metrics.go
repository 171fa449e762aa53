package status

import "github.com/prometheus/client_golang/prometheus"

// Metric names.
const (
	metricScrapes        = "wingman_status_scrapes_total"
	metricScrapeFailures = "wingman_status_scrape_failures_total"
)

// Whose metrics are merged: values of the label source. Istio: metrics.ScrapeType* in pilot/cmd/pilot-agent/metrics.
const (
	sourceAgent       = "agent"
	sourceEnvoy       = "envoy"
	sourceApplication = "application"
)

type metrics struct {
	scrapes  prometheus.Counter
	failures *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		scrapes: prometheus.NewCounter(prometheus.CounterOpts{Name: metricScrapes,
			Help: "Scrapes of /stats/prometheus. Istio: istio_agent_scrapes_total."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricScrapeFailures,
			Help: "Sources whose metrics are missing from a scrape of /stats/prometheus, wholly or in part. Istio: istio_agent_scrape_failures_total."}, []string{"source"}),
	}
	for _, source := range []string{sourceAgent, sourceEnvoy, sourceApplication} {
		m.failures.WithLabelValues(source) // a rate needs the zero
	}
	if r != nil {
		r.MustRegister(m.scrapes, m.failures)
	}
	return m
}
