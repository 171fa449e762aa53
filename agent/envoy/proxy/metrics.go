package proxy

import "github.com/prometheus/client_golang/prometheus"

// Metric names. The supervisor has no port of its own: the agent tells for it.
const (
	metricUp     = "wingman_proxy_up"
	metricLive   = "wingman_proxy_envoy_live"
	metricStarts = "wingman_proxy_envoy_starts_total"
	metricSince  = "wingman_proxy_phase_timestamp_seconds"
)

// collector reads the state of a supervisor at each scrape.
type collector struct {
	runDir                  string
	up, live, starts, since *prometheus.Desc
}

// NewCollector returns metrics of the supervisor of runDir, for another process's registry.
func NewCollector(runDir string) prometheus.Collector {
	return &collector{
		runDir: runDir,
		up:     prometheus.NewDesc(metricUp, "1 while wingman proxy runs.", nil, nil),
		live:   prometheus.NewDesc(metricLive, "1 while Envoy serves.", nil, nil),
		starts: prometheus.NewDesc(metricStarts, "Envoys started since wingman proxy began.", nil, nil),
		since:  prometheus.NewDesc(metricSince, "When the present phase of wingman proxy began.", []string{"phase"}, nil),
	}
}

func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.live, c.starts, c.since} {
		to <- d
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	s, err := ReadState(c.runDir)
	if err != nil {
		to <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, 0)
		to <- prometheus.MustNewConstMetric(c.live, prometheus.GaugeValue, 0)
		return
	}
	live := 0.0
	if s.Phase == PhaseLive {
		live = 1
	}
	to <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, 1)
	to <- prometheus.MustNewConstMetric(c.live, prometheus.GaugeValue, live)
	to <- prometheus.MustNewConstMetric(c.starts, prometheus.CounterValue, float64(s.Starts))
	to <- prometheus.MustNewConstMetric(c.since, prometheus.GaugeValue, float64(s.Since.UnixNano())/1e9, string(s.Phase))
}
