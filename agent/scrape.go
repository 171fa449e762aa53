package agent

import (
	"wingman/agent/envoy"
	"wingman/agent/status"
)

// merged says whose metrics /stats/prometheus holds beside the agent's own: by the settings in force at each scrape, and Envoy's where it
// is meant to run. One that is down is then missed and counted.
func (a *Agent) merged() status.Merge {
	return status.Merge{
		Sources: func() status.Sources {
			c := a.config()
			s := status.Sources{Applications: c.Metrics.Applications}
			if _, none := envoy.Find(c.Envoy); none == nil && c.Metrics.Envoy {
				s.Envoy = c.Status.PrometheusPort
			}
			return s
		},
		LocalhostOnly: func() bool { return a.config().Metrics.LocalhostOnly },
		Log:           a.logs.part("status"),
		Metrics:       a.metrics,
	}
}
