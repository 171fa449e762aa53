package xds

import (
	"context"
	"crypto/tls"
	"sync"
	"testing"

	"wingman/agent/xds/discovery"
)

// States reach OnState in the order in which they came about, whichever goroutine brings them.
func TestStatesAreToldInOrder(t *testing.T) {
	told, last, backwards := 0, 0, 0
	c, err := New(Config{
		Address: "127.0.0.1:1", Subscriptions: []Subscription{{TypeURL: TypeNameTable}},
		Node: func(context.Context) (*discovery.Node, error) { return nil, nil }, TLS: func() *tls.Config { return nil },
		OnState: func(s State) { // one call at a time: the race detector would see another
			told++
			if s.Streams < last {
				backwards++
			}
			last = s.Streams
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	const goroutines, each = 8, 500
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for range each {
				c.setPhase(PhaseConnected, nil)
			}
		})
	}
	all.Wait()
	if told != goroutines*each || backwards > 0 || last != told {
		t.Errorf("told of %d states, the last with %d streams, %d out of order; want %d, all in order", told, last, backwards, goroutines*each)
	}
}
