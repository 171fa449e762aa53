package dnsproxy

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// waiter is a client whose question is upstream.
type waiter struct {
	msg   []byte // the question as it came; its own copy
	limit int    // octets the client takes
	via   transport
	to    replier
	trace *trace // nil unless somebody wants to know
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
	deadline time.Time
	by       string // the server that answered
	fallback []byte // the best of the useless answers (SERVFAIL, REFUSED, …), passed on if nothing better comes
	overTCP  bool   // a stream is being read; no more datagrams
	probe    bool   // not a client's, see loop.go
	done     bool
}

// attempt is one query sent for a flight.
type attempt struct {
	flight *flight
	server *server
	sock   *upSocket // nil over TCP
	id     uint16
	sent   time.Time
}

// forwarder takes questions upstream. No goroutine waits for an answer: sockets have readers, flights have timers.
type forwarder struct {
	s      *Server
	log    *slog.Logger
	routes []*route // split DNS, longest suffix first; the last is the default

	mu      sync.Mutex // guards everything below, and every flight, route, server and socket
	conf    resolvConf
	flights map[string]*flight
	ports   map[uint16]*upSocket // our sockets by their port
	probes  map[string]*server   // loop probes under way, by the key of their name
	waiting int                  // clients in all flights
	tcp     int                  // streams open
	closing bool
	idle    chan struct{} // closed when closing and nothing is in flight
	readers sync.WaitGroup
}

func newForwarder(s *Server, routes []*route) *forwarder {
	return &forwarder{s: s, log: s.log, routes: routes, flights: make(map[string]*flight), ports: make(map[uint16]*upSocket),
		probes: make(map[string]*server), idle: make(chan struct{})}
}

// ask takes a question upstream; w.to gets exactly one answer, whatever happens. It does not block.
func (f *forwarder) ask(w waiter, q *upstreamQuery) {
	f.mu.Lock()
	if f.loopLocked(w, q) {
		f.mu.Unlock()
		f.refuseLoop(w)
		return
	}
	if f.waiting >= f.s.cfg.MaxForwards || f.closing {
		f.mu.Unlock()
		f.s.metrics.overload.Inc()
		f.fail(w, dns.ExtendedErrorCodeNotReady, "too many questions are waiting for upstream")
		return
	}
	f.waiting++
	if fl := f.flights[q.key]; fl != nil {
		fl.waiters = append(fl.waiters, w)
		f.suspectLoopLocked(fl)
		f.mu.Unlock()
		return
	}
	fl := &flight{key: q.key, query: q.msg, waiters: []waiter{w}, route: f.routeOf(q.name)}
	f.flights[q.key] = fl
	fl.order = fl.route.orderLocked(f)
	fl.deadline = time.Now().Add(f.conf.budget(f.s.cfg.ForwardTimeout))
	done := f.advanceLocked(fl)
	f.mu.Unlock()
	f.deliver(done)
}

// advanceLocked makes the flight's next attempt and sets the time of the one after. A finished flight is returned, for
// deliver.
func (f *forwarder) advanceLocked(fl *flight) *flight {
	limit := f.sendLimit(fl)
	for fl.sends < limit {
		server := fl.order[fl.sends%len(fl.order)]
		fl.sends++
		if f.conf.useTCP {
			f.streamLocked(fl, server)
		} else if err := f.sendLocked(fl, server); err != nil {
			server.failedLocked(f, reasonUnreachable, err)
			continue
		}
		f.timeLocked(fl, min(server.patience(fl.sends, len(fl.order)), time.Until(fl.deadline)))
		return nil
	}
	if left := time.Until(fl.deadline); left > 0 && len(fl.attempts) > 0 {
		f.timeLocked(fl, left)
		return nil
	}
	return f.finishLocked(fl, fl.fallback)
}

// sendLimit bounds the queries that one question causes.
func (f *forwarder) sendLimit(fl *flight) int {
	const attempts = 3 // glibc makes 2; ours are sooner
	if fl.probe {
		return 1
	}
	return len(fl.order) * max(attempts, f.conf.attempts)
}

func (f *forwarder) timeLocked(fl *flight, after time.Duration) {
	if fl.timer == nil {
		fl.timer = time.AfterFunc(after, func() { f.tick(fl) })
		return
	}
	fl.timer.Reset(after)
}

// tick is a flight's timer: the answer is late.
func (f *forwarder) tick(fl *flight) {
	f.mu.Lock()
	var done *flight
	switch {
	case fl.done:
	case time.Until(fl.deadline) <= 0:
		done = f.finishLocked(fl, fl.fallback)
	case fl.overTCP && !f.conf.useTCP:
		f.timeLocked(fl, time.Until(fl.deadline))
	default:
		done = f.advanceLocked(fl)
	}
	f.mu.Unlock()
	f.deliver(done)
}

// answered takes an upstream's answer to an attempt. msg is the caller's buffer and is copied if it is kept.
func (f *forwarder) answered(a *attempt, msg []byte) {
	f.mu.Lock()
	done := f.answeredLocked(a, msg)
	f.mu.Unlock()
	f.deliver(done)
}

func (f *forwarder) answeredLocked(a *attempt, msg []byte) *flight {
	fl := a.flight
	if fl.done {
		return nil
	}
	fl.by = a.server.label
	a.server.answeredLocked(f, time.Since(a.sent))
	fl.attempts = slices.DeleteFunc(fl.attempts, func(o *attempt) bool { return o == a })
	truncated := msg[2]&flagTC != 0 && a.sock != nil
	switch rcode := int(msg[3] & rcodeMask); {
	case rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused || rcode == dns.RcodeNotImplemented:
		// this server cannot help; another may (glibc's resolver goes on likewise)
		a.server.refusedLocked(f, rcode)
		if fl.fallback == nil {
			fl.fallback = slices.Clone(msg)
		}
		if fl.overTCP || fl.sends < len(fl.order) {
			fl.overTCP = false
			return f.advanceLocked(fl)
		}
		if len(fl.attempts) > 0 {
			return nil
		}
		return f.finishLocked(fl, fl.fallback)
	case truncated:
		fl.fallback = slices.Clone(msg) // better than nothing, if the stream fails
		if !fl.overTCP {
			f.streamLocked(fl, a.server)
		}
		return nil
	}
	return f.finishLocked(fl, slices.Clone(msg))
}

// lost is an attempt that will have no answer: refused by the host, broken off.
func (f *forwarder) lost(a *attempt, reason string, err error) {
	f.mu.Lock()
	done := f.lostLocked(a, reason, err)
	f.mu.Unlock()
	f.deliver(done)
}

func (f *forwarder) lostLocked(a *attempt, reason string, err error) *flight {
	fl := a.flight
	if fl.done {
		return nil
	}
	a.server.failedLocked(f, reason, err)
	fl.attempts = slices.DeleteFunc(fl.attempts, func(o *attempt) bool { return o == a })
	if a.sock == nil {
		fl.overTCP = false
	}
	if len(fl.attempts) > 0 && fl.sends >= len(fl.order) {
		return nil // others are under way
	}
	if fl.sends >= len(fl.order) && len(fl.attempts) == 0 {
		// everyone has been asked and all said no: waiting would not help
		return f.finishLocked(fl, fl.fallback)
	}
	return f.advanceLocked(fl)
}

// finishLocked ends a flight; answer is nil if there is none. The caller delivers it after unlocking.
func (f *forwarder) finishLocked(fl *flight, answer []byte) *flight {
	fl.done = true
	fl.fallback = answer
	if fl.timer != nil {
		fl.timer.Stop()
	}
	for _, a := range fl.attempts {
		if late := time.Since(a.sent); late > a.server.lateAfter() {
			a.server.failedLocked(f, reasonTimeout, fmt.Errorf("no answer within %v", late.Round(time.Millisecond)))
		}
		if a.sock != nil {
			a.sock.forgetLocked(a.id)
		}
	}
	delete(f.flights, fl.key)
	f.waiting -= len(fl.waiters)
	if f.closing && len(f.flights) == 0 {
		close(f.idle)
	}
	return fl
}

// deliver answers everyone who waits for a finished flight.
func (f *forwarder) deliver(fl *flight) {
	if fl == nil {
		return
	}
	for _, w := range fl.waiters {
		f.conclude(w, fl)
	}
}

// conclude turns the flight's answer into that of one client.
func (f *forwarder) conclude(w waiter, fl *flight) {
	t := f.s.Table()
	if w.trace != nil {
		w.trace.server = fl.by
		if w.trace.raw {
			t = nil
		}
	}
	switch {
	case fl.fallback == nil:
		if reply := f.searchReply(t, w); reply != nil {
			f.send(w, reply, fromMesh)
			return
		}
		code, text := fl.route.why(f)
		f.fail(w, code, text)
	case int(fl.fallback[3]&rcodeMask) == dns.RcodeNameError:
		if reply := f.searchReply(t, w); reply != nil {
			f.send(w, reply, fromMesh)
			return
		}
		if reply := t.nonTerminalReply(w); reply != nil {
			f.send(w, reply, fromMesh)
			return
		}
		fallthrough
	default:
		f.send(w, fit(fl.fallback, w), fromUpstream)
	}
}

// fail answers SERVFAIL with the cause.
func (f *forwarder) fail(w waiter, code uint16, text string) {
	req := new(dns.Msg)
	if req.Unpack(w.msg) != nil {
		f.send(w, errorReply(w.msg, dns.RcodeServerFailure), fromRefused)
		return
	}
	reply := newReply(req, dns.RcodeServerFailure)
	explainWhy(reply, code, text)
	f.send(w, pack(reply, w.limit), fromRefused)
}

// refuseLoop answers a question of our own that came back.
func (f *forwarder) refuseLoop(w waiter) {
	req := new(dns.Msg)
	if req.Unpack(w.msg) != nil {
		f.send(w, errorReply(w.msg, dns.RcodeRefused), fromRefused)
		return
	}
	reply := newReply(req, dns.RcodeRefused)
	explainWhy(reply, dns.ExtendedErrorCodeOther, "this question came from the agent that answers it: a loop")
	f.send(w, pack(reply, w.limit), fromRefused)
}

func (f *forwarder) send(w waiter, msg []byte, from source) {
	if w.trace != nil {
		w.trace.from = from
	} else {
		f.s.metrics.add(w.via, questionType(w.msg), msg, from)
	}
	w.to.reply(msg)
}

// start lets the forwarder take questions: with the servers of the configuration, else of resolv.conf as it is now. It
// returns what it read.
func (f *forwarder) start() (read string) {
	f.mu.Lock()
	f.routes[len(f.routes)-1].setLocked(f, f.s.cfg.Upstreams)
	for _, r := range f.routes[:len(f.routes)-1] {
		r.setLocked(f, r.fixed)
	}
	f.mu.Unlock()
	text, err := f.watch().read()
	if err != nil {
		f.log.Warn("no upstream resolvers yet", "cause", err)
		return ""
	}
	f.reconfigure(text)
	return text
}

func (f *forwarder) watch() *resolvWatch { return &resolvWatch{path: f.s.cfg.ResolvConf, log: f.log} }

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
		f.deliver(fl)
	}
	f.readers.Wait()
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
		f.routes[len(f.routes)-1].setLocked(f, conf.servers)
	}
}

// randomID is unpredictable: the runtime's ChaCha8, seeded by the kernel (RFC 5452 section 9.2).
func randomID() uint16 { return uint16(rand.Uint32()) }
