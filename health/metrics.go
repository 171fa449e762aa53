package health

import "github.com/prometheus/client_golang/prometheus"

// The metrics of this package.
const (
	metricProbes  = "wingman_health_probes_total"
	metricChanges = "wingman_health_changes_total"
	metricHealthy = "wingman_health_healthy"
)

type metrics struct {
	probes  *prometheus.CounterVec // by type and result
	changes *prometheus.CounterVec // by verdict
	healthy prometheus.Gauge
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricProbes,
			Help: "Probes of the workload, by type (http, https, tcp, exec, grpc, unit) and result (success, failure).",
		}, []string{"type", "result"}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: metricChanges,
			Help: "Changes of the verdict on the workload, the first one included, by the new verdict (healthy, unhealthy).",
		}, []string{"verdict"}),
		healthy: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricHealthy,
			Help: "1 while the verdict on the workload is healthy, 0 while it is unhealthy or not known yet.",
		}),
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.probes, m.changes, m.healthy} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) probed(kind string, ok bool) {
	result := "failure"
	if ok {
		result = "success"
	}
	m.probes.WithLabelValues(kind, result).Inc()
}

func (m *metrics) changed(ok bool) {
	m.changes.WithLabelValues(stateOf(ok).String()).Inc()
	if ok {
		m.healthy.Set(1)
	} else {
		m.healthy.Set(0)
	}
}
