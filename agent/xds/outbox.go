package xds

import (
	"context"
	"sync"
)

// outbox holds the one verdict that istiod has to know: the latest. What is put while another waits replaces it. Each session remembers by
// its count what it has told, so a new stream, which has told nothing, is always due.
type outbox struct {
	mu     sync.Mutex // guards everything below
	latest Health
	count  uint64        // of the verdicts put; 0: there is none
	sent   uint64        // the count told on the newest stream
	news   chan struct{} // closed and replaced whenever something above changes
}

func newOutbox() outbox { return outbox{news: make(chan struct{})} }

func (o *outbox) changedLocked() {
	close(o.news)
	o.news = make(chan struct{})
}

// put makes h the verdict to know. The same verdict again is no news: each report rewrites the entry in the API server.
func (o *outbox) put(h Health) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count > 0 && o.latest == h {
		return
	}
	o.latest = h
	o.count++
	o.changedLocked()
}

// due returns the verdict that a session which has told up to count has to tell, and what to wait for when there is none.
func (o *outbox) due(told uint64) (h Health, count uint64, due bool, news <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.latest, o.count, told < o.count, o.news
}

// told notes what the newest stream has been told.
func (o *outbox) told(count uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent = count
	o.changedLocked()
}

// wait returns true once the verdict that is the latest now, or a later one, was sent; false when ctx ends first.
func (o *outbox) wait(ctx context.Context) bool {
	o.mu.Lock()
	want := o.count
	for {
		if o.sent >= want {
			o.mu.Unlock()
			return true
		}
		news := o.news
		o.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return false
		}
		o.mu.Lock()
	}
}
