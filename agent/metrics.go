package agent

import "github.com/prometheus/client_golang/prometheus"

// metricBuild names the version; its value is always 1.
const metricBuild = "wingman_build_info"

func newBuildInfo(version string) prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        metricBuild,
		Help:        "1, labelled with the version of this daemon. Istio: istio_build.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	g.Set(1)
	return g
}
