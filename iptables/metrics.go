package iptables

import (
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric names of this package.
const (
	MetricApplies      = "wingman_iptables_applies_total"
	MetricApplySeconds = "wingman_iptables_apply_seconds"
	MetricRepairs      = "wingman_iptables_repairs_total"
	MetricContested    = "wingman_iptables_contested"
	MetricOpen         = "wingman_iptables_open"
)

// metrics is nil-safe: without a registry nothing is counted.
type metrics struct {
	applies       *prometheus.CounterVec
	seconds       prometheus.Histogram
	repairs       prometheus.Counter
	contestedNow  prometheus.Gauge
	openDirection *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		applies:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: MetricApplies, Help: "Changes of the capture rules, by what was asked for and how it ended."}, []string{"action", "result"}),
		seconds:       prometheus.NewHistogram(prometheus.HistogramOpts{Name: MetricApplySeconds, Help: "Seconds that bringing the kernel to the plan took.", Buckets: []float64{.005, .01, .025, .05, .1, .25, 1, 5}}),
		repairs:       prometheus.NewCounter(prometheus.CounterOpts{Name: MetricRepairs, Help: "Times that capture rules which somebody else had taken out were put back."}),
		contestedNow:  prometheus.NewGauge(prometheus.GaugeOpts{Name: MetricContested, Help: "1 while somebody keeps taking capture rules out and they are left alone, else 0."}),
		openDirection: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: MetricOpen, Help: "1 while traffic of that direction goes past a proxy that is down (policy open), else 0."}, []string{"direction"}),
	}
	for _, c := range []prometheus.Collector{m.applies, m.seconds, m.repairs, m.contestedNow, m.openDirection} {
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

func (m *metrics) repaired() {
	if m != nil {
		m.repairs.Inc()
	}
}

func (m *metrics) contested(now bool) {
	if m != nil {
		m.contestedNow.Set(boolean(now))
	}
}

func (m *metrics) open(rules *Rules) {
	if m == nil {
		return
	}
	for _, direction := range []string{"inbound", "outbound"} {
		m.openDirection.WithLabelValues(direction).Set(boolean(slices.Contains(rules.Open, direction)))
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
