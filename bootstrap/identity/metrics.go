package identity

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Names of metrics. Dates are Unix timestamps, 0 when there is none: alert on `metric - time()`.
const (
	metricNotAfter   = "wingman_identity_certificate_expiry_timestamp_seconds"
	metricReceived   = "wingman_identity_certificate_received_timestamp_seconds"
	metricRenewAt    = "wingman_identity_certificate_renew_timestamp_seconds"
	metricToken      = "wingman_identity_token_expiry_timestamp_seconds"
	metricRoot       = "wingman_identity_root_expiry_timestamp_seconds"
	metricPhase      = "wingman_identity_phase"
	metricRequests   = "wingman_identity_requests_total"
	metricSeconds    = "wingman_identity_request_duration_seconds"
	metricStoreFails = "wingman_identity_store_errors_total"
)

type metrics struct {
	notAfter, received, renewAt, token, root prometheus.Gauge
	phase                                    *prometheus.GaugeVec
	requests                                 *prometheus.CounterVec
	seconds                                  prometheus.Histogram
	storeFails                               prometheus.Counter
}

// newMetrics makes the metrics and registers them, unless reg is nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		notAfter: gauge(metricNotAfter, "When the workload certificate in use expires. Istio: istio_agent_cert_expiry_seconds, there as seconds left."),
		received: gauge(metricReceived, "When the workload certificate in use was received."),
		renewAt:  gauge(metricRenewAt, "When its renewal is due."),
		token:    gauge(metricToken, "When the token in the token file expires, by its own claims."),
		root:     gauge(metricRoot, "When the last of the trusted roots expires."),
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: metricPhase,
			Help: "1 for the phase that the identity is in: none, requesting, valid, renewing, expiring, expired."}, []string{"phase"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricRequests,
			Help: "Requests for a certificate by the credential tried and result: ok, refused, unreachable, overloaded, invalid. " +
				"Istio: num_outgoing_requests, num_failed_outgoing_requests."}, []string{"credential", "result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: metricSeconds,
			Help:    "How long a request took that brought a certificate. Istio: outgoing_latency.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 10}}),
		storeFails: prometheus.NewCounter(prometheus.CounterOpts{Name: metricStoreFails,
			Help: "Certificates that could not be written to disk."}),
	}
	if reg == nil {
		return m, nil
	}
	var problems []error
	for _, c := range []prometheus.Collector{m.notAfter, m.received, m.renewAt, m.token, m.root, m.phase, m.requests, m.seconds, m.storeFails} {
		problems = append(problems, reg.Register(c))
	}
	return m, errors.Join(problems...)
}

// show sets the gauges to what s says.
func (m *metrics) show(s State) {
	m.notAfter.Set(timestamp(s.NotAfter))
	m.received.Set(timestamp(s.ReceivedAt))
	m.renewAt.Set(timestamp(s.RenewAt))
	m.token.Set(timestamp(s.Token.Expires))
	var last time.Time
	for _, r := range s.Roots {
		last = later(last, r.NotAfter)
	}
	m.root.Set(timestamp(last))
	for _, p := range []Phase{None, Requesting, Valid, Renewing, Expiring, Expired} {
		is := 0.0
		if p == s.Phase {
			is = 1
		}
		m.phase.WithLabelValues(string(p)).Set(is)
	}
}

func timestamp(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func (f failure) String() string {
	switch f {
	case failedInvalid:
		return "invalid"
	case failedRefused:
		return "refused"
	case failedOverloaded:
		return "overloaded"
	}
	return "unreachable"
}
