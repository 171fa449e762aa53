package xds

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// serve speaks on one stream until it ends or ctx does (nil then). up is called once, when istiod answers.
func (c *Client) serve(ctx context.Context, w wire, node *corev3.Node, up func()) error {
	pushes, ended := make(chan Push), make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			p, err := w.recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case pushes <- p:
			case <-done:
				return
			}
		}
	}()
	// gRPC's Send fails with io.EOF alone when the stream is gone; the reader has the cause.
	cause := func() error {
		for {
			select {
			case <-pushes:
			case err := <-ended:
				return err
			}
		}
	}

	for i, s := range c.cfg.Subscriptions {
		n := node
		if i > 0 {
			n = nil
		}
		if w.subscribe(n, s.TypeURL) != nil {
			return cause()
		}
	}
	c.setPhase(PhaseConnected, nil)

	// Health must not be the first message, and before the node is accepted nobody would note it: it waits for the first answer,
	// and for a control plane that never answers a NameTable, firstAnswerWait.
	c.health.newStream()
	var news <-chan struct{}
	patience := time.NewTimer(firstAnswerWait)
	defer patience.Stop()
	for answered := false; ; {
		select {
		case <-ctx.Done():
			c.goodbye(w, pushes, ended)
			return nil
		case err := <-ended:
			return err
		case p := <-pushes:
			if !answered {
				answered, news = true, c.health.news
				c.setAnswered()
				up()
			}
			if c.take(w, p) != nil {
				return cause()
			}
		case <-patience.C:
			news = c.health.news
		case <-news:
			if c.tellHealth(w) != nil {
				return cause()
			}
		}
	}
}

// tellHealth sends the verdict that is due, if one is.
func (c *Client) tellHealth(w wire) error {
	h, count, due := c.health.take()
	if !due {
		return nil
	}
	if err := w.health(h); err != nil {
		return err
	}
	c.health.done(count)
	c.metrics.health.Inc()
	c.log.Debug("health sent", "healthy", h.Healthy, "reason", h.Reason)
	return nil
}

// take hands a push to its handler and answers it. Its error is a failed send.
func (c *Client) take(w wire, p Push) error {
	handle := c.handler(p.TypeURL)
	if handle == nil {
		// Never asked for: an answer of ours would be for a type that istiod does not watch on this stream.
		c.log.Debug("push of a type nobody asked for", "type", p.TypeURL)
		return nil
	}
	began, name := time.Now(), shortType(p.TypeURL)
	if err := handle(p); err != nil {
		inUse := c.refused(p.TypeURL, err)
		c.metrics.pushes.WithLabelValues(name, "nack").Inc()
		c.log.Warn("push refused; what was in use stays", "type", name, "version", p.Version, "cause", err)
		return w.nack(p, inUse, err)
	}
	c.accepted(p.TypeURL, p.Version)
	c.metrics.pushes.WithLabelValues(name, "ack").Inc()
	c.log.Debug("push taken in", "type", name, "version", p.Version, "resources", len(p.Resources), "seconds", time.Since(began).Seconds())
	return w.ack(p)
}

func (c *Client) handler(typeURL string) func(Push) error {
	for _, s := range c.cfg.Subscriptions {
		if s.TypeURL == typeURL {
			return s.Handle
		}
	}
	return nil
}

// goodbye sends a verdict still due, ends our side and gives istiod a moment to read it all. Only then may the connection go:
// closing it at once throws away what is still in the send buffer.
func (c *Client) goodbye(w wire, pushes <-chan Push, ended <-chan error) {
	if c.tellHealth(w) != nil || w.closeSend() != nil {
		return
	}
	limit := time.NewTimer(goodbyeWait)
	defer limit.Stop()
	for {
		select {
		case <-pushes: // too late to matter
		case <-ended:
			return
		case <-limit.C:
			return
		}
	}
}
