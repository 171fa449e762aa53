package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// requests sends 200 HTTP requests a second, each over a connection of its own, and notes which fail.
type requests struct {
	t        *testing.T
	client   *http.Client
	url      string
	check    func(*http.Response) error
	stop     chan struct{}
	finished chan struct{}

	mu     sync.Mutex // guards everything below
	sent   int
	failed []failure
}

// failure is a request that got no answer, or not the right one.
type failure struct {
	began, ended time.Time
	err          error
}

// startRequests asks url over connections that dial makes. check says what is wrong with an answer.
func startRequests(t *testing.T, url string, dial func(ctx context.Context, network, addr string) (net.Conn, error), check func(*http.Response) error) *requests {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialTLSContext: dial, DialContext: dial}
	r := &requests{
		t: t, client: &http.Client{Transport: transport, Timeout: 10 * time.Second}, url: url, check: check,
		stop: make(chan struct{}), finished: make(chan struct{}),
	}
	go r.send()
	t.Cleanup(func() { r.end() })
	return r
}

func (r *requests) send() {
	defer close(r.finished)
	var running sync.WaitGroup
	defer running.Wait()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-ticks.C:
		}
		running.Go(func() {
			began := time.Now()
			err := r.one()
			r.mu.Lock()
			defer r.mu.Unlock()
			r.sent++
			if err != nil {
				r.failed = append(r.failed, failure{began, time.Now(), err})
			}
		})
	}
}

func (r *requests) one() error {
	res, err := r.client.Get(r.url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return errors.Join(err, res.Body.Close(), r.check(res))
}

// end stops sending, waits for the last answers, and returns how many were sent and which failed.
func (r *requests) end() (sent int, failed []failure) {
	r.t.Helper()
	select {
	case <-r.stop:
	default:
		close(r.stop)
	}
	<-r.finished
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent, r.failed
}

// answered counts the good answers so far.
func (r *requests) answered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent - len(r.failed)
}

// mustBeWhole fails the test when a request failed.
func (r *requests) mustBeWhole(what string) {
	r.t.Helper()
	sent, failed := r.end()
	r.t.Logf("%s: %d requests sent, %d failed", what, sent, len(failed))
	if sent < 100 {
		r.t.Errorf("%s: only %d requests were sent", what, sent)
	}
	if len(failed) > 0 {
		r.t.Errorf("%s: %d of %d requests failed, want none; the first at %s: %v", what, len(failed), sent, failed[0].began.Format("15:04:05.000"), failed[0].err)
	}
}

// by returns a check that an answer is good and names server as the one it came through.
func by(server string) func(*http.Response) error {
	return func(res *http.Response) error {
		if got := res.Header.Get("Server"); res.StatusCode != http.StatusOK || got != server {
			return fmt.Errorf("answer %d of %q, want 200 of %q", res.StatusCode, got, server)
		}
		return nil
	}
}
