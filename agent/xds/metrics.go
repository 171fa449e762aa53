package xds

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric names.
const (
	metricConnected = "wingman_xds_connected"
	metricPushes    = "wingman_xds_pushes_total"
	metricEnds      = "wingman_xds_stream_ends_total"
	metricHealth    = "wingman_xds_health_reports_total"
	metricEnvoyNACK = "wingman_xds_envoy_nacks_total"

	metricEnvoyStalls = "wingman_xds_envoy_stalls_total"
)

type metrics struct {
	connected prometheus.Gauge
	pushes    *prometheus.CounterVec // type, answer
	ends      *prometheus.CounterVec // kind
	health    prometheus.Counter
	// envoyNACKs counts by type.
	envoyNACKs  *prometheus.CounterVec
	envoyStalls prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	m := metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: metricConnected,
			Help: "1 while a stream to istiod stands, else 0."}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricPushes,
			Help: "Pushes of istiod by type and by the answer given (ack, nack)."}, []string{"type", "answer"}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricEnds,
			Help: "Streams and attempts that ended, by kind (graceful, refused, broken, rejected). Istio: istio_agent_istiod_connection_terminations, istio_agent_istiod_connection_failures."}, []string{"kind"}),
		health: prometheus.NewCounter(prometheus.CounterOpts{Name: metricHealth,
			Help: "Health verdicts sent to istiod."}),
		envoyNACKs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricEnvoyNACK,
			Help: "Pushes that Envoy refused, by type."}, []string{"type"}),
		envoyStalls: prometheus.NewCounter(prometheus.CounterOpts{Name: metricEnvoyStalls,
			Help: "Streams of an Envoy that did not read what istiod sends, cut off."}),
	}
	if r != nil {
		r.MustRegister(m.connected, m.pushes, m.ends, m.health, m.envoyNACKs, m.envoyStalls)
	}
	return m
}

// shortType is the last part of a type URL: NameTable of type.googleapis.com/istio.networking.nds.v1.NameTable.
func shortType(url string) string {
	return url[strings.LastIndexAny(url, "./")+1:]
}
