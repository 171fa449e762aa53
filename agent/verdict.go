package agent

import (
	"cmp"
	"context"
	"time"

	"wingman/agent/xds"
	"wingman/bootstrap/identity"
	"wingman/health"
)

// This file is about what istiod is told of this machine's health: the workload's own verdict (package health), unless the agent knows better.

// verdict is what istiod is told is made from.
type verdict struct {
	workload *health.Report
	// Reasons to be unhealthy whatever the workload says; empty: none.
	leaving, drained, unidentified, unfit string
}

// health is what istiod is to be told; known is false before the first verdict.
func (v verdict) health() (h xds.Health, known bool) {
	if why := cmp.Or(v.leaving, v.drained, v.unidentified, v.unfit); why != "" {
		return xds.Health{Reason: why}, true
	}
	switch {
	case v.workload == nil:
		return xds.Health{}, false
	case v.workload.Healthy:
		return xds.Health{Healthy: true}, true // a reason that changes while all is well is no news
	}
	return xds.Health{Reason: v.workload.Reason}, true
}

// callOff drops a shutdown as the reason to leave. Any other stays: the machine goes all the same.
func (v *verdict) callOff() {
	if v.leaving == shutdownReason {
		v.leaving = ""
	}
}

// report is the verdict for people, who want a reason for health too.
func (v verdict) report(h xds.Health, now time.Time) health.Report {
	r := health.Report{Healthy: h.Healthy, Reason: h.Reason, At: now}
	if h.Healthy {
		r.Reason = v.workload.Reason
	}
	return r
}

// unidentified says why nobody should send traffic to a machine with this certificate: peers refuse one that has ended. None at all is no reason, there is no
// stream then to say it on.
func unidentified(c *identity.Certificate, lastError string, now time.Time) string {
	if c == nil || now.Before(c.NotAfter) {
		return ""
	}
	why := "the certificate ended at " + c.NotAfter.UTC().Format(time.RFC3339)
	if lastError != "" {
		why += ": " + lastError
	}
	return why
}

// onHealth is told the workload's verdict.
func (m *member) onHealth(r health.Report) {
	m.mu.Lock()
	m.workload = &r
	m.mu.Unlock()
	m.tellHealth()
}

// tellHealth hands the verdict that counts now to the stream. Identity and Envoy are looked at anew each time.
func (m *member) tellHealth() {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	// The reason is not asked for again: another one while it stays ended is no news.
	if c := m.identity.Current(); c == nil || time.Now().Before(c.NotAfter) {
		m.unidentified = ""
	} else if m.unidentified == "" {
		m.unidentified = unidentified(c, m.identity.State().LastError, time.Now())
	}
	m.unfit = m.side.unfit()
	client, v := m.xds, m.verdict
	m.mu.Unlock()
	if client == nil {
		return
	}
	if h, known := v.health(); known {
		client.ReportHealth(h)
		m.record(v.report(h, time.Now()))
	}
	m.changed()
}

// identityCheck is how often a certificate's end is looked for at least: a timer does not notice a suspend, or a clock that was set.
const identityCheck = 10 * time.Second

// watchIdentity has istiod told at once when the certificate ends, and when it counts again.
func (m *member) watchIdentity(ctx context.Context) error {
	for ended := false; ; {
		wait := identityCheck
		if c := m.identity.Current(); c != nil {
			left := time.Until(c.NotAfter)
			if now := left <= 0; now != ended {
				ended = now
				m.tellHealth()
			}
			if left > 0 {
				wait = min(wait, left)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.certified:
		case <-time.After(wait):
		}
	}
}

// wasHealthy reports whether istiod was told, before the machine began to leave, that the workload serves.
func (m *member) wasHealthy() bool {
	m.mu.Lock()
	v, client := m.verdict, m.xds
	m.mu.Unlock()
	v.leaving = ""
	h, known := v.health()
	return known && h.Healthy && client != nil && client.State().Phase == xds.PhaseConnected
}

// leave tells istiod that this workload is not to be used any more and waits, within limits, until it was told.
func (m *member) leave(ctx context.Context, why string) {
	m.mu.Lock()
	m.leaving = why
	client := m.xds
	m.mu.Unlock()
	m.tellHealth()
	if client == nil || client.State().Phase != xds.PhaseConnected {
		return
	}
	if !sent(ctx, client) {
		m.log.Warn("istiod could not be told that this workload leaves")
	}
}

// sent waits, for at most farewell, until istiod was sent the verdict that counts now, and reports whether it was.
func sent(ctx context.Context, client *xds.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	return client.HealthSent(ctx)
}

// stay takes back that this machine shuts down.
func (m *member) stay() {
	m.mu.Lock()
	m.callOff()
	m.mu.Unlock()
	m.tellHealth()
}
