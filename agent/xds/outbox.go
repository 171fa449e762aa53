package xds

import (
	"context"
	"sync"
)

// outbox holds the one verdict that istiod has to know: the latest. What is put while another waits replaces it.
type outbox struct {
	news chan struct{} // buffered 1: take may have something

	mu     sync.Mutex // guards everything below
	latest Health
	put1st bool          // there is a verdict at all
	want   uint64        // counts the verdicts put
	sent   uint64        // the count of the one sent last; sent <= want
	owed   bool          // a new stream has not been told yet
	change chan struct{} // closed and replaced when sent moves
}

func newOutbox() outbox {
	return outbox{news: make(chan struct{}, 1), change: make(chan struct{})}
}

func (o *outbox) ring() {
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// put makes h the verdict to know. The same verdict again is no news: each report rewrites the entry in the API server.
func (o *outbox) put(h Health) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.put1st && o.latest == h {
		return
	}
	o.latest, o.put1st = h, true
	o.want++
	o.ring()
}

// newStream makes the latest verdict due again: istiod forgets it with the stream.
func (o *outbox) newStream() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.owed = true
	o.ring()
}

// take returns the verdict that is due, if one is, with its count for done.
func (o *outbox) take() (h Health, count uint64, due bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.latest, o.want, o.put1st && (o.owed || o.sent < o.want)
}

// done notes that the verdict with that count was sent on the present stream.
func (o *outbox) done(count uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.owed = false
	o.sent = count
	close(o.change)
	o.change = make(chan struct{})
	if o.sent < o.want {
		o.ring()
	}
}

// wait returns true once the verdict that is the latest now, or a later one, was sent; false when ctx ends first.
func (o *outbox) wait(ctx context.Context) bool {
	o.mu.Lock()
	count := o.want
	for {
		if o.sent >= count && !o.owed {
			o.mu.Unlock()
			return true
		}
		change := o.change
		o.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return false
		}
		o.mu.Lock()
	}
}
