package testbed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Load is a steady stream of requests from a machine to a service in the mesh, as an application there would send them: half of them over new
// connections, each with a question to the machine's resolver first, half over connections that are kept.
type Load struct {
	vm         *VM
	host, path string
	addr       string // of the host; empty: ask the resolver

	cancel context.CancelFunc
	ended  sync.WaitGroup

	mu  sync.Mutex // guards everything below
	all []shot
}

// shot is one request.
type shot struct {
	began, ended time.Time
	kept         bool // over a connection that was there before
	err          error
}

const (
	// Rate is how many requests a Load sends in a second.
	Rate = 200

	keptConnections = 10
	// shotTimeout is long for a request between two machines, and a client's patience at the least.
	shotTimeout = 10 * time.Second
)

// Load begins to ask http://host/path. It ends with the test.
func (v *VM) Load(t testing.TB, host, path string) *Load {
	return v.LoadAt(t, "", host, path)
}

// LoadAt is Load without questions to the resolver: the host has this address. Nothing in its way is the agent's but Envoy's configuration.
func (v *VM) LoadAt(t testing.TB, addr, host, path string) *Load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{vm: v, host: host, path: path, addr: addr, cancel: cancel}
	for range keptConnections {
		l.ended.Go(func() { l.keepAsking(ctx, time.Second*keptConnections/(Rate/2)) })
	}
	l.ended.Go(func() {
		tick := time.NewTicker(time.Second / (Rate / 2))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.ended.Go(func() { l.askAnew(t.Context()) })
			}
		}
	})
	t.Cleanup(func() { l.Stop() })
	return l
}

// Stop ends the stream, waits for the last answers and returns what became of the requests.
func (l *Load) Stop() Outcome {
	l.cancel()
	l.ended.Wait()
	return l.Outcome()
}

// Outcome is what became of the requests so far that have ended.
func (l *Load) Outcome() Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Outcome{slices.Clone(l.all)}
}

func (l *Load) note(s shot) {
	s.ended = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

// askAnew looks the host up, connects and asks once.
func (l *Load) askAnew(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, shotTimeout)
	defer cancel()
	s := shot{began: time.Now()}
	c, err := l.connect(ctx)
	if err == nil {
		err = l.ask(ctx, c, bufio.NewReader(c))
		c.Close()
	}
	s.err = err
	l.note(s)
}

// keepAsking asks over one connection, and makes a new one only after a failure.
func (l *Load) keepAsking(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A request that is under way comes to its end.
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), shotTimeout)
		s := shot{began: time.Now(), kept: c != nil}
		if c == nil {
			if c, s.err = l.connect(one); s.err != nil {
				c = nil // not a connection that is nil
			} else {
				r = bufio.NewReader(c)
			}
		}
		if s.err == nil {
			if s.err = l.ask(one, c, r); s.err != nil {
				c.Close()
				c = nil
			}
		}
		cancel()
		l.note(s)
	}
}

func (l *Load) connect(ctx context.Context) (net.Conn, error) {
	addr := l.addr
	if addr == "" {
		r, err := lookup(ctx, l.vm.Machine, l.host)
		if err != nil {
			return nil, err
		}
		if addr, err = address(r); err != nil {
			return nil, fmt.Errorf("look %s up: %w", l.host, err)
		}
	}
	return l.vm.Dial(ctx, "tcp", net.JoinHostPort(addr, "80"))
}

// ask sends one request over c. net/http's client would try again by itself, which is what must not be hidden here.
func (l *Load) ask(ctx context.Context, c net.Conn, r *bufio.Reader) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", l.path, l.host); err != nil {
		return err
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d: %s", res.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

// Outcome is what became of the requests of a Load.
type Outcome struct{ all []shot }

// Sent is the number of requests, and of those over kept connections.
func (o Outcome) Sent() (all, kept int) {
	for _, s := range o.all {
		if s.kept {
			kept++
		}
	}
	return len(o.all), kept
}

// Failed is the number of requests without a good answer.
func (o Outcome) Failed() (n int) {
	for _, s := range o.all {
		if s.err != nil {
			n++
		}
	}
	return n
}

// Slowest is the longest that a request with a good answer took.
func (o Outcome) Slowest() (longest time.Duration) {
	for _, s := range o.all {
		if s.err == nil {
			longest = max(longest, s.ended.Sub(s.began))
		}
	}
	return longest
}

// Gap is how long traffic was away after t: until the end of the first request that was begun later than t, and later than every request that
// failed, and got its answer. ok is false while there is none, and when nothing failed at all the gap is zero.
func (o Outcome) Gap(t time.Time) (gap time.Duration, ok bool) {
	var lastFailed time.Time
	for _, s := range o.all {
		if s.err != nil && s.ended.After(t) && s.began.After(lastFailed) {
			lastFailed = s.began
		}
	}
	var back time.Time
	for _, s := range o.all {
		if s.err == nil && s.began.After(t) && s.began.After(lastFailed) && (back.IsZero() || s.ended.Before(back)) {
			back = s.ended
		}
	}
	switch {
	case back.IsZero():
		return 0, false
	case lastFailed.IsZero():
		return 0, true
	}
	return back.Sub(t), true
}

// String tells how many of how many failed, and of what.
func (o Outcome) String() string {
	sent, kept := o.Sent()
	var b strings.Builder
	fmt.Fprintf(&b, "%d of %d requests failed (%d of all over kept connections; the slowest answer took %s)", o.Failed(), sent, kept, o.Slowest().Round(time.Millisecond))
	if sent == 0 {
		return b.String()
	}
	first := o.all[0].began
	times, last := map[string]int{}, map[string]time.Duration{}
	var causes, began []string // in order of their first request
	for _, s := range o.all {
		if s.err == nil {
			continue
		}
		cause := fmt.Sprintf("%v (kept: %v)", s.err, s.kept)
		if times[cause]++; times[cause] == 1 {
			causes = append(causes, cause)
			began = append(began, fmt.Sprintf("%s after %s", s.ended.Sub(s.began).Round(time.Millisecond), s.began.Sub(first).Round(time.Millisecond)))
		}
		last[cause] = s.began.Sub(first).Round(time.Millisecond)
	}
	for i, cause := range causes[:min(len(causes), 10)] {
		fmt.Fprintf(&b, "\n  %s, %d times until %s: %s", began[i], times[cause], last[cause], cause)
	}
	return b.String()
}
