package dnsproxy

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// waiter is a client whose question is upstream.
type waiter struct {
	msg   []byte // the question as it came; its own copy
	limit int    // octets the client takes
	via   transport
	to    replier
	trace *trace  // nil unless somebody wants to know
	since instant // when it came
}

// replier sends an answer to one client. It must not block for long and may be used after the client is gone.
type replier interface {
	reply(msg []byte)
}

// flight is one question upstream, with everyone who waits for its answer. Questions that are equal but for the id, the
// letters' case and the size share one: so a question that comes back to us on a loop meets itself and goes no further.
type flight struct {
	key     string
	query   []byte // what is sent, but for the id
	route   *route
	order   []*server // whom to ask, the best first
	waiters []waiter

	sends    int // attempts made
	attempts []*attempt
	timer    *time.Timer
	next     time.Time // of the next step
	deadline time.Time
	cacheKey string    // where the answer is kept; "" for nowhere
	since    time.Time // when its first client came; zero: nobody waits
	crowded  bool      // ended for others to be asked
	older    *flight   // in the list of those that clients wait for
	newer    *flight
	stale    *cached   // what clients get if there is no answer; nil for nothing
	staleAt  time.Time // or if it does not come by then
	by       string    // the server that answered
	fallback []byte    // the best of the useless answers (SERVFAIL, REFUSED, …), passed on if nothing better comes
	overTCP  bool      // a stream is being read; its server gets no more datagrams
	probe    bool      // not a client's, see loop.go
	done     bool

	// room for what most flights have one of
	oneWaiter  [1]waiter
	oneAttempt [1]*attempt
	attempt    attempt
}

// attempt is one query sent for a flight.
type attempt struct {
	flight  *flight
	server  *server
	sock    *upSocket // nil over TCP
	stream  *upStream // nil over UDP, and while there is no room on any stream
	id      uint16
	sent    time.Time
	overTCP bool

	// over TCP
	place   int  // among the questions of its stream, from 1
	resends int  // how often it lost its stream
	asks    bool // the query asks how long the stream may be kept (RFC 7828)
}

// forwarder takes questions upstream. No goroutine waits for an answer: sockets have readers, flights have timers.
type forwarder struct {
	s      *Server
	log    *slog.Logger
	routes []*route // split DNS, longest suffix first; the last is the default
	epoll  int      // the set of all upstream sockets
	gate   *gate    // of that set

	mu       sync.Mutex // guards everything below, and every flight, route, server and socket
	conf     resolvConf
	flights  map[string]*flight
	sockets  map[int]*upSocket    // by descriptor
	ports    map[uint16]*upSocket // by port
	dirty    []*upSocket          // with something unsent
	streams  map[int]*upStream    // by descriptor
	unsent   []*upStream          // with something unsent
	roomy    []*server            // with questions that waited for room on a stream, and may have it now
	packets  packets
	reading  bool               // the reader is at work
	closable []int              // descriptors to close once it is not
	probes   map[string]*server // loop probes under way, by the key of their name
	waiting  int                // clients in all flights
	oldest   *flight            // ends of the list of flights that clients wait for
	newest   *flight
	closing  bool
	idle     chan struct{} // closed when closing and nothing is in flight
	readers  sync.WaitGroup
}

func newForwarder(s *Server, routes []*route) *forwarder {
	return &forwarder{s: s, log: s.log, routes: routes, flights: make(map[string]*flight), sockets: make(map[int]*upSocket), streams: make(map[int]*upStream), ports: make(map[uint16]*upSocket),
		probes: make(map[string]*server), idle: make(chan struct{})}
}

// ask takes a question upstream; w.to gets exactly one answer, whatever happens. It does not block. The query leaves with
// the next flush, which the caller owes.
func (f *forwarder) ask(w waiter, q *upstreamQuery) {
	w.since = now()
	f.mu.Lock()
	if f.loopLocked(w, q) {
		f.mu.Unlock()
		f.refuseLoop(w)
		return
	}
	var jostled *flight
	if f.waiting >= f.s.cfg.MaxForwards && !f.closing {
		jostled = f.jostleLocked()
	}
	if f.waiting >= f.s.cfg.MaxForwards || f.closing {
		f.mu.Unlock()
		f.s.metrics.overload.Inc()
		f.fail(w, dns.ExtendedErrorCodeNotReady, tooMany, nil)
		return
	}
	fl := f.flights[q.key]
	var done *flight
	if fl != nil {
		fl.join(f, w)
		f.suspectLoopLocked(fl)
	} else {
		fl = f.newFlightLocked(q)
		fl.join(f, w)
		if done = f.advanceLocked(fl); done == nil && len(fl.order) > 1 {
			f.tryLocked(fl)
		}
	}
	var late []waiter
	if fl.stale != nil && !fl.done && (!time.Now().Before(fl.staleAt) || fl.hopelessLocked() || fl.stale.failedLately(now())) {
		late = fl.leaveLocked(f)
	}
	f.mu.Unlock()
	f.deliver(jostled, nil)
	f.deliverStale(fl, late)
	f.deliver(done, nil)
}

// prefetch asks upstream for the cache's sake. Nobody waits for the answer. The caller owes a flush.
func (f *forwarder) prefetch(q upstreamQuery) {
	f.mu.Lock()
	var done *flight
	if f.flights[q.key] == nil && len(f.flights) < f.s.cfg.MaxForwards && !f.closing {
		done = f.advanceLocked(f.newFlightLocked(&q))
	}
	f.mu.Unlock()
	f.deliver(done, nil)
}

func (f *forwarder) newFlightLocked(q *upstreamQuery) *flight {
	began := time.Now()
	fl := &flight{key: q.key, query: q.msg, cacheKey: q.cacheKey, stale: q.stale, staleAt: began.Add(staleAfter), route: f.routeOf(q.name)}
	fl.waiters, fl.attempts = fl.oneWaiter[:0], fl.oneAttempt[:0]
	fl.order = fl.route.orderLocked(f)
	fl.deadline = began.Add(f.conf.budget(f.s.cfg.ForwardTimeout))
	if fl.hopelessLocked() {
		fl.deadline = began.Add(min(hopelessPatience, time.Until(fl.deadline)))
	}
	f.flights[q.key] = fl
	return fl
}

// staleAfter is when a client gets an old answer rather than wait on (RFC 8767 section 5, client response timer).
const staleAfter = 1800 * time.Millisecond

// hopelessPatience bounds a question when every server has been silent for a while: clients should hear soon that there is no
// answer. Their first answer ends that.
const hopelessPatience = 1500 * time.Millisecond

// start lets the forwarder take questions: with the servers of the configuration, else of resolv.conf as it is now. It
// returns what it read of that.
func (f *forwarder) start() (read string, err error) {
	if f.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return "", fmt.Errorf("watch upstream sockets: %w", err)
	}
	if f.gate, err = newGate(f.epoll); err != nil {
		unix.Close(f.epoll)
		return "", fmt.Errorf("watch upstream sockets: %w", err)
	}
	r := &reader{f: f, batch: newBatch(udpBatch, udpPacket, false)}
	f.readers.Go(func() { _ = f.gate.read(r.serve) })

	f.mu.Lock()
	f.routes[len(f.routes)-1].setLocked(f, f.s.cfg.Upstreams)
	for _, r := range f.routes[:len(f.routes)-1] {
		r.setLocked(f, r.fixed)
	}
	f.mu.Unlock()
	text, err := f.watch().read()
	if err != nil {
		f.log.Warn("no upstream resolvers yet", "cause", err)
		return "", nil
	}
	f.reconfigure(text)
	return text, nil
}

func (f *forwarder) watch() *resolvWatch {
	w := &resolvWatch{path: f.s.cfg.ResolvConf, log: f.log}
	if f.s.cfg.BehindResolved {
		w.uplinks = f.s.cfg.UplinkConf
	}
	return w
}

// stop answers what is in flight until the deadline and the rest with SERVFAIL, then closes the sockets.
func (f *forwarder) stop(deadline time.Time) {
	f.mu.Lock()
	f.closing = true
	if len(f.flights) == 0 {
		close(f.idle)
	}
	f.mu.Unlock()
	late := time.NewTimer(time.Until(deadline))
	defer late.Stop()
	select {
	case <-f.idle:
	case <-late.C:
	}
	f.mu.Lock()
	var unanswered []*flight
	for _, fl := range f.flights {
		unanswered = append(unanswered, f.finishLocked(fl, fl.fallback))
	}
	for _, r := range f.routes {
		r.setLocked(f, nil)
	}
	f.mu.Unlock()
	for _, fl := range unanswered {
		f.deliver(fl, nil)
	}
	f.gate.stop()
	f.readers.Wait()
	f.gate.close()
	unix.Close(f.epoll)
}

// reconfigure takes over a new resolv.conf. One without a usable server is someone's half-written or emptied file: the last
// good servers stay.
func (f *forwarder) reconfigure(text string) {
	conf := parseResolvConf(text)
	f.mu.Lock()
	defer f.mu.Unlock()
	byFile := len(f.s.cfg.Upstreams) == 0
	if byFile && len(conf.servers) == 0 {
		f.log.Warn("resolv.conf names no usable server, the last good ones stay", "file", f.s.cfg.ResolvConf, "servers", f.conf.servers)
		return
	}
	f.conf = conf
	if byFile {
		f.log.Info("upstream resolvers taken from file", "file", f.s.cfg.ResolvConf, "servers", conf.servers)
		r := f.routes[len(f.routes)-1]
		r.setLocked(f, conf.servers)
		f.s.cache.flush() // another network, it may be, with other answers
		for _, fl := range f.flights {
			if fl.route == r && !fl.probe {
				fl.order, fl.sends = r.orderLocked(f), 0 // the next step asks the new ones
			}
		}
	}
}

// randomID is unpredictable: the runtime's ChaCha8, seeded by the kernel (RFC 5452 section 9.2).
func randomID() uint16 { return uint16(rand.Uint32()) }
