package sds

import "github.com/prometheus/client_golang/prometheus"

// Metric names.
const (
	metricStreams  = "wingman_sds_streams"
	metricPushes   = "wingman_sds_pushes_total"
	metricRefusals = "wingman_sds_refusals_total"
)

type metrics struct {
	streams  prometheus.Gauge
	pushes   *prometheus.CounterVec
	refusals *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		streams:  prometheus.NewGauge(prometheus.GaugeOpts{Name: metricStreams, Help: "Streams on which Envoy follows certificates."}),
		pushes:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPushes, Help: "Secrets sent to Envoy, by kind."}, []string{"kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricRefusals, Help: "Secrets that Envoy refused, by kind."}, []string{"kind"}),
	}
	if r != nil {
		r.MustRegister(m.streams, m.pushes, m.refusals)
	}
	return m
}

// kindOf is the label for a name; names themselves hold paths and are no labels.
func kindOf(name string) string {
	r, err := parseName(name)
	if err != nil {
		return "unknown"
	}
	return string(r.kind)
}
