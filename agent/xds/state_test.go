package xds

import (
	"context"
	"crypto/tls"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"wingman/agent/xds/discovery"
)

// crossedGauge lets another phase come just before it is set, where one can.
type crossedGauge struct {
	prometheus.Gauge
	c     *Client
	other bool // it has come
}

func (g *crossedGauge) Set(v float64) {
	if g.c.mu.TryLock() {
		g.c.mu.Unlock()
		if !g.other {
			g.other = true
			g.c.setPhase(PhaseConnected, nil)
		}
	}
	g.Gauge.Set(v)
}

// Envoy's streams and the agent's own move the phase at the same time; an alert looks at the gauge alone.
func TestTheGaugeSaysWhatTheStateSays(t *testing.T) {
	c, err := New(Config{
		Address:       "127.0.0.1:15012",
		Node:          func(context.Context) (*discovery.Node, error) { return &discovery.Node{}, nil },
		TLS:           func() *tls.Config { return &tls.Config{} },
		Subscriptions: []Subscription{{TypeURL: TypeNameTable}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.metrics.connected = &crossedGauge{Gauge: c.metrics.connected, c: c}
	c.setPhase(PhaseConnecting, nil)
	var m dto.Metric
	if err := c.metrics.connected.Write(&m); err != nil {
		t.Fatal(err)
	}
	if p := c.State().Phase; (m.GetGauge().GetValue() == 1) != (p == PhaseConnected) {
		t.Errorf("%s is %v while the phase is %s", metricConnected, m.GetGauge().GetValue(), p)
	}
}
