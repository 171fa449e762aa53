package xds

import (
	"context"
	"errors"
	"io"
	"time"

	"wingman/agent/xds/discovery"
)

// A session is one stream to istiod: the agent's own, or one that carries Envoy's requests and pushes beside the agent's.
type session struct {
	c     *Client
	w     wire
	envoy *envoy // nil: the agent's own
	told  uint64 // count of the verdict that istiod was told here
	// cut ends the session because a newer one has taken over.
	cut context.CancelFunc
	// stands says that istiod has answered: another stream may be opened.
	stands func()
	number uint64 // in the order of opening
	named  bool   // istiod was told the node
	// answered is whether istiod has accepted the node, and with it the certificate; serve's goroutine alone uses it.
	answered bool

	answers chan answer
	ended   chan error // buffered 1: why istiod's side ended

	unsent []*frame    // what waits for the writer, oldest first
	sends  chan *frame // to the writer; nil once it was closed
}

// mostUnsent is how many messages may wait for istiod before Envoy's requests have to.
const mostUnsent = 16

func newSession(c *Client, w wire, e *envoy, cut context.CancelFunc, stands func()) *session {
	return &session{c: c, w: w, envoy: e, cut: cut, stands: stands, number: c.nextNumber(),
		answers: make(chan answer), ended: make(chan error, 1), sends: make(chan *frame)}
}

// serve speaks on the stream until it ends or ctx does (nil then).
//
// It never waits for a message to be sent: istiod does not read while it sends a push that we do not read, and so both would wait for ever.
func (s *session) serve(ctx context.Context, node *discovery.Node) error {
	done := make(chan struct{})
	defer close(done)
	go s.read(done)
	go s.write(s.sends, done)
	defer s.c.over(s)
	defer s.drop()

	if err := s.open(node); err != nil {
		return err
	}
	s.named = true
	s.c.setPhase(PhaseConnected, nil)

	var fromEnvoy <-chan *frame
	if s.envoy != nil {
		fromEnvoy = s.envoy.requests
	}
	// Health must not be the first message, and before the node is accepted nobody would note it: it waits for the first answer,
	// and for a control plane that never answers a NameTable, firstAnswerWait.
	patience := time.NewTimer(firstAnswerWait)
	defer patience.Stop()
	for answered, mayTell := false, false; ; {
		var news <-chan struct{}
		if mayTell {
			var err error
			if news, err = s.tellHealth(); err != nil {
				return err
			}
		}
		requests := fromEnvoy
		if len(s.unsent) >= mostUnsent {
			requests = nil
		}
		sends, next := s.next()
		select {
		case <-ctx.Done():
			s.goodbye()
			return nil
		case err := <-s.ended:
			return err
		case sends <- next:
			s.unsent = s.unsent[1:]
		case a := <-s.answers:
			if !answered {
				answered, mayTell, s.answered = true, true, true
				s.c.promote(s)
				s.stands()
			}
			if err := s.take(a); err != nil {
				return err
			}
		case f, open := <-requests:
			if !open { // Envoy is gone; its handler ends ctx
				fromEnvoy = nil
				continue
			}
			s.forward(f)
		case <-patience.C:
			mayTell = true
		case <-news:
		}
	}
}

// next returns what the writer gets next and the channel to it, which is nil when nothing waits.
func (s *session) next() (chan<- *frame, *frame) {
	if len(s.unsent) == 0 {
		return nil, nil
	}
	return s.sends, s.unsent[0]
}

// send encodes a request of the agent's own, for the writer.
func (s *session) send(r request) error {
	f, err := s.w.encode(r)
	if err != nil {
		return err
	}
	s.unsent = append(s.unsent, f)
	return nil
}

// drop frees what was not sent.
func (s *session) drop() {
	for _, f := range s.unsent {
		f.free()
	}
	s.unsent = nil
}

// write sends what it is given until sends is closed; then it ends our side of the stream, and istiod ends its own once everything sent was
// handled. When a send fails the stream is over, and read has the cause: gRPC's Send fails with io.EOF alone.
func (s *session) write(sends <-chan *frame, done <-chan struct{}) {
	for {
		select {
		case f, more := <-sends:
			if !more {
				_ = s.w.closeSend() // it fails when there is no stream any more
				return
			}
			if s.w.pass(f) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

// read moves istiod's answers into the channel until the stream ends.
func (s *session) read(done <-chan struct{}) {
	for {
		a, err := s.w.recv()
		if err != nil {
			s.ended <- err
			return
		}
		select {
		case s.answers <- a:
		case <-done:
			a.frame.free()
			return
		}
	}
}

// open sends what a stream begins with: the node, in Envoy's first request or in ours, and the agent's subscriptions. Its error wraps errFrame when
// Envoy's request is not one.
func (s *session) open(node *discovery.Node) error {
	if e := s.envoy; e != nil {
		first, err := e.first.withNode(e.delta, node)
		if err != nil {
			return err
		}
		e.first, node = nil, nil
		s.forward(first)
	}
	for _, sub := range s.c.cfg.Subscriptions {
		if err := s.send(request{typeURL: sub.TypeURL, node: node}); err != nil {
			return err
		}
		node = nil
	}
	return nil
}

// forward passes a request of Envoy on.
func (s *session) forward(f *frame) {
	h, err := f.header(s.envoy.layout())
	if err != nil || !s.envoy.passes(h) {
		s.c.log.Debug("request of Envoy not passed on", "type", h.typeURL, "nonce", h.nonce, "cause", err)
		f.free()
		return
	}
	if h.refusal {
		s.c.envoyRefused(h.typeURL, f.refusalText(s.envoy.delta))
	} else if h.nonce != "" {
		s.c.envoyAccepted(h.typeURL)
	}
	s.unsent = append(s.unsent, f)
}

// take hands an answer to whom it is for. Its error ends the stream: errEnvoyStalled, say.
func (s *session) take(a answer) error {
	handle := s.c.handler(a.typeURL)
	if handle == nil {
		if s.envoy == nil {
			// Never asked for: an answer of ours would be for a type that istiod does not watch on this stream.
			s.c.log.Debug("push of a type nobody asked for", "type", a.typeURL)
			a.frame.free()
			return nil
		}
		s.envoy.fitIn(a)
		if !s.envoy.queue.push(a.frame) {
			return errEnvoyStalled
		}
		return nil
	}
	defer a.frame.free()
	began, name := time.Now(), shortType(a.typeURL)
	p, err := s.w.push(a)
	if err == nil {
		err = handle(p)
	}
	if err != nil {
		inUse := s.c.refused(a.typeURL, err)
		s.c.metrics.pushes.WithLabelValues(name, "nack").Inc()
		s.c.log.Warn("push refused; what was in use stays", "type", name, "version", a.version, "cause", err)
		return s.send(request{typeURL: a.typeURL, version: inUse, nonce: a.nonce, detail: refusal(err)})
	}
	s.c.accepted(a.typeURL, a.version)
	s.c.metrics.pushes.WithLabelValues(name, "ack").Inc()
	s.c.log.Debug("push taken in", "type", name, "version", a.version, "resources", len(p.Resources), "seconds", time.Since(began).Seconds())
	return s.send(request{typeURL: a.typeURL, version: a.version, nonce: a.nonce})
}

// tellHealth sends the verdict that is due, if one is, and returns what to wait for.
func (s *session) tellHealth() (news <-chan struct{}, err error) {
	h, count, due, news := s.c.health.due(s.told)
	if !due {
		return news, nil
	}
	if err := s.send(request{typeURL: TypeHealth, detail: verdict(h)}); err != nil {
		return nil, err
	}
	s.told = count
	s.c.health.told(count)
	s.c.metrics.health.Inc()
	s.c.log.Debug("health sent", "healthy", h.Healthy, "reason", h.Reason)
	_, _, _, news = s.c.health.due(count)
	return news, nil
}

// Parted reports whether istiod saw the end of the last stream that it had answered: only then does it begin to count the grace period of the
// WorkloadEntry. A stream that was lost may stand at its side for long.
func (c *Client) Parted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.parted
}

// noteParted notes that istiod ended s because our side did.
func (c *Client) noteParted(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.primary == s {
		c.parted = true
	}
}

// goodbye sends what is due, ends our side and gives istiod a moment to read it all. Only then may the connection go: closing it at once
// throws away what is still in the send buffer.
func (s *session) goodbye() {
	if _, err := s.tellHealth(); err != nil {
		return
	}
	limit := time.NewTimer(goodbyeWait)
	defer limit.Stop()
	for {
		sends, next := s.next()
		if next == nil && s.sends != nil {
			close(s.sends)
			s.sends = nil
		}
		select {
		case sends <- next:
			s.unsent = s.unsent[1:]
		case a := <-s.answers: // too late to matter
			a.frame.free()
		case err := <-s.ended:
			if errors.Is(err, io.EOF) {
				s.c.noteParted(s)
			}
			return
		case <-limit.C:
			return
		}
	}
}
