package xds

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"wingman/agent/xds/discovery"
)

// This file keeps the books of a Client: which session is the one that counts, and what status shows of it.

// promote makes s, which istiod has answered, the session that counts, and cuts the one before: istiod now has the newer stream, so the
// registration survives.
func (c *Client) promote(s *session) {
	c.mu.Lock()
	former := c.primary
	c.primary, c.parted = s, false
	c.state.Answered, c.state.Envoy = true, s.envoy != nil
	c.state.LastError, c.state.Rejected = "", false
	outage := time.Duration(0)
	if c.said != "" {
		outage = time.Since(c.state.DownSince)
	}
	c.state.DownSince, c.said = time.Time{}, ""
	c.noteLocked()
	c.mu.Unlock()
	c.health.told(s.told)
	if former != nil {
		former.cut()
	}
	if outage > 0 {
		c.log.Info("istiod is back", "address", c.cfg.Address, "after", outage.Round(time.Millisecond))
	}
	c.tell()
}

// over notes that s has ended.
func (c *Client) over(s *session) {
	c.mu.Lock()
	if former := c.primary; former != s {
		// Opened after the one that counts and ended before it: istiod would not see that one's end. Another one makes it right.
		stale := former != nil && s.named && s.number > former.number
		c.mu.Unlock()
		if stale {
			former.cut()
		}
		return
	}
	c.primary = nil
	c.state.Answered, c.state.Envoy = false, false
	c.turnLocked()
	c.mu.Unlock()
}

// turnLocked wakes Run: it may be its turn.
func (c *Client) turnLocked() {
	close(c.turn)
	c.turn = make(chan struct{})
}

// envoyComes notes a stream of Envoy, and ends an attempt of the agent's own that istiod has not answered yet.
func (c *Client) envoyComes() {
	c.mu.Lock()
	c.envoys++
	own := c.own
	if p := c.primary; p != nil && p.envoy == nil {
		own = nil // it stands, and is cut once Envoy's is answered
	}
	c.mu.Unlock()
	if own != nil {
		own()
	}
}

// envoyGoes notes its end.
func (c *Client) envoyGoes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.envoys--; c.envoys == 0 {
		c.envoyLeft = time.Now()
		c.turnLocked()
	}
}

func (c *Client) envoyIsHere() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.envoys > 0
}

// nextNumber counts sessions.
func (c *Client) nextNumber() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened++
	return c.opened
}

// waitTurn waits while Envoy's stream carries the agent's types, and a moment longer: an Envoy that restarts is back in no time. It returns false
// when ctx ends.
func (c *Client) waitTurn(ctx context.Context) bool {
	for ctx.Err() == nil {
		c.mu.Lock()
		taken, left, turn := c.primary != nil || c.envoys > 0, c.envoyLeft, c.turn
		c.mu.Unlock()
		gap := envoyGap - time.Since(left)
		switch {
		case taken:
			select {
			case <-turn:
			case <-ctx.Done():
			}
		case gap > 0:
			select {
			case <-time.After(gap):
			case <-ctx.Done():
			}
		default:
			return true
		}
	}
	return false
}

// failed notes how a stream or an attempt ended. The same cause again is not news, whatever its ports are this time.
func (c *Client) failed(end ending, err error) {
	c.metrics.ends.WithLabelValues(end.String()).Inc()
	level := slog.LevelDebug
	if end == endGraceful {
		c.setPhase(PhaseWaiting, nil)
	} else {
		c.mu.Lock()
		if cause := sameCause(err); c.said != cause {
			c.said = cause
			level = slog.LevelWarn
		}
		c.state.Rejected = end == endRejected
		c.mu.Unlock()
		c.setPhase(PhaseWaiting, err)
	}
	c.log.Log(context.Background(), level, "no stream to istiod", "address", c.cfg.Address, "kind", end.String(), "cause", err)
	if c.cfg.OnRefused != nil && mayBeRefusal(end, err) {
		c.cfg.OnRefused()
	}
}

// setPhase moves State.Phase. While a session counts, what others attempt does not show.
func (c *Client) setPhase(p Phase, cause error) {
	c.mu.Lock()
	if c.primary != nil && p != PhaseConnected {
		c.mu.Unlock()
		return
	}
	if c.state.Phase != p {
		c.state.Since = time.Now()
	}
	if p != PhaseConnected && p != PhaseIdle && c.state.DownSince.IsZero() {
		c.state.DownSince = time.Now()
	}
	c.state.Phase = p
	switch {
	case p == PhaseConnected:
		c.state.Streams++
	case cause != nil:
		c.state.LastError = cause.Error()
	case p == PhaseWaiting:
		c.state.LastError = ""
	}
	connected := 0.0
	if p == PhaseConnected {
		connected = 1
	}
	c.metrics.connected.Set(connected) // under the lock: two that cross would leave it at the older of two phases
	c.noteLocked()
	c.mu.Unlock()
	c.tell()
}

// noteLocked notes the state for OnState; tell follows, without the lock.
func (c *Client) noteLocked() {
	if c.cfg.OnState != nil {
		c.untold = append(c.untold, c.stateLocked())
	}
}

// tell hands on what was noted, in that order whoever comes first.
func (c *Client) tell() {
	c.telling.Lock()
	defer c.telling.Unlock()
	for {
		c.mu.Lock()
		if len(c.untold) == 0 {
			c.mu.Unlock()
			return
		}
		next := c.untold[0]
		c.untold = c.untold[1:]
		c.mu.Unlock()
		c.cfg.OnState(next)
	}
}

// refused notes a NACK and returns the version of that type that stays in use.
func (c *Client) refused(typeURL string, reason error) (inUse string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.NACKs++
	c.state.LastNACK = reason.Error()
	return c.inUse[typeURL]
}

// accepted notes an ACK.
func (c *Client) accepted(typeURL, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.LastNACK = ""
	c.inUse[typeURL] = version
}

// envoyRefused notes a NACK of Envoy. The same reason again is not news: istiod sends a resource that was refused with every push.
func (c *Client) envoyRefused(typeURL, reason string) {
	name := shortType(typeURL)
	c.metrics.envoyNACKs.WithLabelValues(name).Inc()
	c.mu.Lock()
	known := c.state.EnvoyNACK[name] == reason
	if c.state.EnvoyNACK == nil {
		c.state.EnvoyNACK = map[string]string{}
	}
	c.state.EnvoyNACKs++
	c.state.EnvoyNACK[name] = reason
	if !known {
		c.noteLocked()
	}
	c.mu.Unlock()
	if !known {
		c.log.Warn("Envoy refused a push and keeps what it had", "type", name, "cause", reason)
		c.tell()
	}
}

// envoyAccepted notes an ACK of Envoy.
func (c *Client) envoyAccepted(typeURL string) {
	name := shortType(typeURL)
	c.mu.Lock()
	_, was := c.state.EnvoyNACK[name]
	delete(c.state.EnvoyNACK, name)
	if was {
		c.noteLocked()
	}
	c.mu.Unlock()
	if was {
		c.log.Info("Envoy takes pushes of this type again", "type", name)
		c.tell()
	}
}

// handler returns who takes pushes of a type in; nil: not one of the agent's own.
func (c *Client) handler(typeURL string) func(Push) error {
	for _, s := range c.cfg.Subscriptions {
		if s.TypeURL == typeURL {
			return s.Handle
		}
	}
	return nil
}

// lastError keeps the outcome of the newest dial.
type lastError struct {
	mu  sync.Mutex
	err error
}

func (l *lastError) set(err error) { l.mu.Lock(); l.err = err; l.mu.Unlock() }
func (l *lastError) get() error    { l.mu.Lock(); defer l.mu.Unlock(); return l.err }

// factsOf reads back from a node what error messages name.
func factsOf(n *discovery.Node) nodeFacts {
	f := n.GetMetadata().GetFields()
	return nodeFacts{
		id:        f["SERVICE_ACCOUNT"].GetStringValue(),
		namespace: f["NAMESPACE"].GetStringValue(),
		group:     f["AUTO_REGISTER_GROUP"].GetStringValue(),
	}
}
