package xds

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// serve speaks on one stream until it ends or ctx does (nil then). up is called once, when istiod answers.
func (c *Client) serve(ctx context.Context, w wire, node *corev3.Node, up func()) error {
	answers, ended := make(chan answer), make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			a, err := w.recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case answers <- a:
			case <-done:
				a.frame.free()
				return
			}
		}
	}()
	// gRPC's Send fails with io.EOF alone when the stream is gone; the reader has the cause.
	cause := func() error {
		for {
			select {
			case a := <-answers:
				a.frame.free()
			case err := <-ended:
				return err
			}
		}
	}

	for i, s := range c.cfg.Subscriptions {
		r := request{typeURL: s.TypeURL}
		if i == 0 {
			r.node = node
		}
		if w.send(r) != nil {
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
			c.goodbye(w, answers, ended)
			return nil
		case err := <-ended:
			return err
		case a := <-answers:
			if !answered {
				answered, news = true, c.health.news
				c.setAnswered()
				up()
			}
			if c.take(w, a) != nil {
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
	if err := w.send(request{typeURL: TypeHealth, detail: verdict(h)}); err != nil {
		return err
	}
	c.health.done(count)
	c.metrics.health.Inc()
	c.log.Debug("health sent", "healthy", h.Healthy, "reason", h.Reason)
	return nil
}

// take hands a push to its handler and answers it. Its error is a failed send.
func (c *Client) take(w wire, a answer) error {
	defer a.frame.free()
	handle := c.handler(a.typeURL)
	if handle == nil {
		// Never asked for: an answer of ours would be for a type that istiod does not watch on this stream.
		c.log.Debug("push of a type nobody asked for", "type", a.typeURL)
		return nil
	}
	began, name := time.Now(), shortType(a.typeURL)
	p, err := w.push(a)
	if err == nil {
		err = handle(p)
	}
	if err != nil {
		inUse := c.refused(a.typeURL, err)
		c.metrics.pushes.WithLabelValues(name, "nack").Inc()
		c.log.Warn("push refused; what was in use stays", "type", name, "version", a.version, "cause", err)
		return w.send(request{typeURL: a.typeURL, version: inUse, nonce: a.nonce, detail: refusal(err)})
	}
	c.accepted(a.typeURL, a.version)
	c.metrics.pushes.WithLabelValues(name, "ack").Inc()
	c.log.Debug("push taken in", "type", name, "version", a.version, "resources", len(p.Resources), "seconds", time.Since(began).Seconds())
	return w.send(request{typeURL: a.typeURL, version: a.version, nonce: a.nonce})
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
func (c *Client) goodbye(w wire, answers <-chan answer, ended <-chan error) {
	if c.tellHealth(w) != nil || w.closeSend() != nil {
		return
	}
	limit := time.NewTimer(goodbyeWait)
	defer limit.Stop()
	for {
		select {
		case a := <-answers: // too late to matter
			a.frame.free()
		case <-ended:
			return
		case <-limit.C:
			return
		}
	}
}
