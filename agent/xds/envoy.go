package xds

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Limits of Envoy's side.
const (
	// mostUnread is how many bytes of istiod's pushes pile up for an Envoy that does not read; with more its stream is cut, so that it cannot
	// stop the agent's own types. A push that nothing waits before is taken, however large.
	mostUnread = 128 << 20
	// mostRequests is how many requests of Envoy wait for a stream to istiod that is still being opened.
	mostRequests = 256
	// envoyGap is how long an Envoy may be away before the agent opens a stream of its own: a restart takes less.
	envoyGap = time.Second
)

// errEnvoyStalled ends a stream whose Envoy has stopped reading.
var errEnvoyStalled = errors.New("a stalled Envoy: it does not read what it is sent")

// errEnvoyLeft ends a stream to istiod whose Envoy is gone.
var errEnvoyLeft = errors.New("stream ended by Envoy")

// An envoy is one ADS stream that Envoy opened to the agent.
type envoy struct {
	stream   grpc.ServerStream
	delta    bool
	requests chan *frame // as Envoy sends them; closed when it ends the stream
	first    *frame      // Envoy's first request, which names its node; nil once it was passed on
	asked    map[string]bool
	queue    *queue
	fit      Fitter // nil: pushes pass untouched
}

// A Fitter fits istiod's pushes to one Envoy.
type Fitter interface {
	// Wants reports whether pushes of this type may need fitting; others are never read.
	Wants(typeURL string) bool
	// Fit returns the response that Envoy gets for one of istiod's, which is given up: frame itself when nothing has to change, else other
	// pieces, and those of frame were freed. It must not write to frame.
	Fit(typeURL string, frame mem.BufferSlice) mem.BufferSlice
}

// serveEnvoy lives as long as one stream of Envoy, or until ctx ends.
func (c *Client) serveEnvoy(ctx context.Context, stream grpc.ServerStream, delta bool) error {
	e := &envoy{
		stream:   stream,
		delta:    delta,
		requests: make(chan *frame, mostRequests),
		asked:    map[string]bool{},
		queue:    newQueue(c.mostUnread),
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer e.queue.close()
	// Both end when this handler has returned: gRPC ends their calls then.
	go func() { e.read(ctx); cancel(errEnvoyLeft) }()
	go func() { cancel(e.write()) }()

	select {
	case f, open := <-e.requests:
		if !open {
			return nil
		}
		e.first = f
	case <-ctx.Done():
		return endOf(context.Cause(ctx))
	}
	if c.cfg.Fit != nil {
		e.fit = c.cfg.Fit(e.first.data.Materialize(), delta)
	}
	c.envoyComes()
	defer c.envoyGoes()
	// Until a stream to istiod stands Envoy just waits.
	for {
		c.pauseEnvoy(ctx)
		began, woken := time.Now(), c.woken()
		err := c.attempt(ctx, e)
		switch {
		case ctx.Err() != nil:
			return endOf(context.Cause(ctx))
		case errors.Is(err, errFrame):
			return status.Error(codes.InvalidArgument, err.Error())
		case errors.Is(err, errEnvoyStalled):
			c.metrics.envoyStalls.Inc()
			c.log.Warn("Envoy does not read what istiod sends; its stream is cut", "limit_bytes", c.mostUnread)
			return endOf(err)
		case errors.Is(err, errSuperseded):
			return endOf(err)
		}
		end := classify(err)
		c.failed(end, err)
		c.paceEnvoy(end, time.Since(began), woken)
		if e.first == nil {
			// istiod's answers are of a stream that is gone: Envoy comes back and starts afresh.
			return endOf(err)
		}
	}
}

// paceEnvoy sets when the next attempt for Envoy may be made, after one that ended so; not later than now when Retry was called since woken
// was taken. Envoy's streams share one back-off: each refusal of istiod ends one, and Envoy is back at once.
func (c *Client) paceEnvoy(end ending, lived time.Duration, woken <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := c.envoyWaits.next(end, lived, jitter())
	select {
	case <-woken:
		wait = 0
	default:
	}
	c.envoyNext = time.Now().Add(wait)
}

// pauseEnvoy waits until then, until Retry, or until ctx ends.
func (c *Client) pauseEnvoy(ctx context.Context) {
	c.mu.Lock()
	wait, woken := time.Until(c.envoyNext), c.wake
	c.mu.Unlock()
	if wait <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-woken:
	case <-time.After(wait):
	}
}

// endOf is the status Envoy sees when istiod's stream ended.
func endOf(err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, errEnvoyLeft) {
		return nil
	}
	return status.Error(codes.Unavailable, err.Error())
}

// read moves Envoy's requests into the channel.
func (e *envoy) read(ctx context.Context) {
	defer close(e.requests)
	for {
		f := &frame{}
		if err := e.stream.RecvMsg(f); err != nil {
			return
		}
		select {
		case e.requests <- f:
		case <-ctx.Done():
			f.free()
			return
		}
	}
}

// write sends what is in the queue until that is closed; its error is why Envoy could not be written to.
func (e *envoy) write() error {
	for {
		f, ok := e.queue.pop()
		if !ok {
			return nil
		}
		err := e.stream.SendMsg(f)
		f.free()
		if err != nil {
			return err
		}
	}
}

// passes decides whether a request of Envoy goes on to istiod. An ACK or NACK of a type that this stream never asked for belongs to an
// older one, and has crashed istiod (nil pointer in delta.go); the agent's own types are none of Envoy's business.
func (e *envoy) passes(h header) bool {
	switch h.typeURL {
	case TypeNameTable, TypeHealth, TypeProxyConfig:
		return false
	}
	if h.nonce == "" && !h.refusal {
		e.asked[h.typeURL] = true
	}
	return e.asked[h.typeURL]
}

// fitIn makes an answer one that this Envoy understands.
func (e *envoy) fitIn(a answer) {
	if e.fit == nil || !e.fit.Wants(a.typeURL) {
		return
	}
	a.frame.data = e.fit.Fit(a.typeURL, a.frame.data)
}

// layout is that of Envoy's requests.
func (e *envoy) layout() layout {
	if e.delta {
		return deltaRequest
	}
	return sotwRequest
}

// queue holds frames for Envoy, bounded in bytes.
type queue struct {
	limit int

	mu     sync.Mutex // guards everything below
	filled sync.Cond
	frames []*frame
	bytes  int
	closed bool
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit}
	q.filled.L = &q.mu
	return q
}

// push adds f, which is the queue's from then on. It reports false when too much waits already: f is freed.
func (q *queue) push(f *frame) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := f.data.Len()
	// One push is always taken, however large: the limit is for what piles up.
	if q.closed || q.bytes > 0 && q.bytes+n > q.limit {
		f.free()
		return false
	}
	q.frames = append(q.frames, f)
	q.bytes += n
	q.filled.Signal()
	return true
}

// pop waits for a frame; ok is false once the queue is closed.
func (q *queue) pop() (f *frame, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.frames) == 0 && !q.closed {
		q.filled.Wait()
	}
	if q.closed {
		return nil, false
	}
	f = q.frames[0]
	q.frames[0] = nil
	q.frames = q.frames[1:]
	q.bytes -= f.data.Len()
	return f, true
}

// close ends pop and frees what waits.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, f := range q.frames {
		f.free()
	}
	q.frames, q.bytes = nil, 0
	q.filled.Broadcast()
}
