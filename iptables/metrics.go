package iptables

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric names of this package.
const (
	MetricApplies      = "wingman_iptables_applies_total"
	MetricApplySeconds = "wingman_iptables_apply_seconds"
)

// metrics is nil-safe: without a registry nothing is counted.
type metrics struct {
	applies *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		applies: prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricApplies, Help: "Changes of the capture rules, by what was asked for and how it ended."}, []string{"action", "result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: MetricApplySeconds, Help: "Seconds that bringing the kernel to the plan took.", Buckets: []float64{.005, .01, .025, .05, .1, .25, 1, 5}}),
	}
	for _, c := range []prometheus.Collector{m.applies, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of the capture rules: %w", err)
		}
	}
	return m, nil
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

func (m *metrics) applied(err error, took time.Duration) {
	if m == nil {
		return
	}
	m.applies.WithLabelValues("apply", result(err)).Inc()
	m.seconds.Observe(took.Seconds())
}

func (m *metrics) removed(err error) {
	if m == nil {
		return
	}
	m.applies.WithLabelValues("remove", result(err)).Inc()
}
