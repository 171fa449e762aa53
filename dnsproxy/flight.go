package dnsproxy

import (
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// hopelessLocked reports whether all servers are down.
func (fl *flight) hopelessLocked() bool {
	return !slices.ContainsFunc(fl.order, func(s *server) bool { return !s.down() })
}

func (fl *flight) join(f *forwarder, w waiter) {
	fl.waiters = append(fl.waiters, w)
	f.waiting++
	if !fl.since.IsZero() {
		return
	}
	fl.since = time.Now()
	if fl.older = f.newest; fl.older != nil {
		fl.older.newer = fl
	} else {
		f.oldest = fl
	}
	f.newest = fl
}

// unlistLocked takes a flight that nobody waits for any more off the list of the others.
func (fl *flight) unlistLocked(f *forwarder) {
	if fl.since.IsZero() {
		return
	}
	if fl.newer != nil {
		fl.newer.older = fl.older
	} else {
		f.newest = fl.older
	}
	if fl.older != nil {
		fl.older.newer = fl.newer
	} else {
		f.oldest = fl.newer
	}
	fl.older, fl.newer, fl.since = nil, nil, time.Time{}
}

const (
	// jostleAfter is how long a question may wait before it can lose its place to a new one, as with Unbound (jostle-timeout).
	jostleAfter = 200 * time.Millisecond
	tooMany     = "too many questions are waiting for upstream"
)

// jostleLocked ends the flight that clients have waited for longest, if that is long: names whose servers do not answer must not
// take all places from those whose servers do. The caller delivers it after unlocking.
func (f *forwarder) jostleLocked() *flight {
	fl := f.oldest
	if fl == nil || time.Since(fl.since) < jostleAfter {
		return nil
	}
	fl.crowded = true
	f.s.metrics.overload.Inc()
	return f.finishLocked(fl, fl.fallback)
}

// leaveLocked takes everyone off the flight, which goes on for the cache's sake.
func (fl *flight) leaveLocked(f *forwarder) []waiter {
	waiters := fl.waiters
	fl.waiters = nil
	f.waiting -= len(waiters)
	fl.unlistLocked(f)
	return waiters
}

// advanceLocked makes the flight's next attempt and sets the time of the one after. A finished flight is returned, for
// deliver.
func (f *forwarder) advanceLocked(fl *flight) *flight {
	limit := f.sendLimit(fl)
	for fl.sends < limit {
		server := fl.order[fl.sends%len(fl.order)]
		fl.sends++
		if !f.conf.useTCP && fl.fetching(server) {
			continue
		}
		send := f.sendLocked
		if f.conf.useTCP {
			send = f.streamLocked
		}
		if err := send(fl, server); err != nil {
			server.failedLocked(f, reasonUnreachable, err)
			continue
		}
		f.timeLocked(fl, nextQuery(server.patience(), fl.sends, len(fl.order), limit, time.Until(fl.deadline)))
		return nil
	}
	if left := time.Until(fl.deadline); left > 0 && len(fl.attempts) > 0 {
		f.timeLocked(fl, left)
		return nil
	}
	return f.finishLocked(fl, fl.fallback)
}

// attemptLocked notes an attempt that is being made. The caller says by which way.
func (fl *flight) attemptLocked(server *server) *attempt {
	a := &fl.attempt
	if a.flight != nil {
		a = new(attempt)
	}
	*a = attempt{flight: fl, server: server, id: randomID(), sent: time.Now()}
	fl.attempts = append(fl.attempts, a)
	return a
}

// fetching reports whether server is being asked over TCP.
func (fl *flight) fetching(server *server) bool {
	return slices.ContainsFunc(fl.attempts, func(a *attempt) bool { return a.overTCP && a.server == server })
}

// sendLimit bounds the queries that one question causes.
func (f *forwarder) sendLimit(fl *flight) int {
	const (
		datagrams = 5 // to each server, as Unbound sends (outbound-msg-retry)
		streams   = 3 // which send again by themselves what is lost
	)
	switch {
	case fl.probe:
		return 1
	case f.conf.useTCP:
		return len(fl.order) * max(streams, f.conf.attempts)
	}
	return len(fl.order) * max(datagrams, f.conf.attempts)
}

// nextQuery is how long after a flight's query number sends the next one goes out, if no answer comes: to another server soon after the answer
// is late, to the same one with doubling intervals. But all that the limit allows are to fit into the time that is left: where every fiftieth
// answer is lost and one of two servers is dead, two tries of the other one are too few.
func nextQuery(late time.Duration, sends, servers, limit int, left time.Duration) time.Duration {
	interval := min(late<<((sends-1)/max(servers, 1)), 2*maxPatience)
	if fits := left / time.Duration(limit-sends+1); interval > fits {
		interval = max(fits, min(late, firstPatience))
	}
	return min(interval, left)
}

// timeLocked sets the time of the flight's next step; the clients' patience with a stale answer at hand may end before.
func (f *forwarder) timeLocked(fl *flight, after time.Duration) {
	fl.next = time.Now().Add(after)
	if fl.stale != nil && len(fl.waiters) > 0 {
		after = min(after, time.Until(fl.staleAt))
	}
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
	var late []waiter
	now := time.Now()
	if !fl.done && fl.stale != nil && !now.Before(fl.staleAt) {
		late = fl.leaveLocked(f)
		fl.stale.failed.Store(int64(now.Sub(processStart)))
	}
	switch {
	case fl.done:
	case !now.Before(fl.deadline):
		done = f.finishLocked(fl, fl.fallback)
	case now.Before(fl.next):
		f.timeLocked(fl, fl.next.Sub(now))
	case fl.overTCP && !f.conf.useTCP:
		for _, a := range fl.attempts {
			f.moveLocked(a)
		}
		done = f.advanceLocked(fl) // streams to a server may lead nowhere, as firewalls have it that know DNS by UDP alone
	default:
		done = f.advanceLocked(fl)
	}
	f.mu.Unlock()
	f.flush()
	f.deliverStale(fl, late)
	f.deliver(done, nil)
}

// answeredLocked takes an upstream's answer to an attempt. msg is the caller's buffer and is copied if it is kept. A finished flight is returned, for deliver.
func (f *forwarder) answeredLocked(a *attempt, msg []byte) *flight {
	fl := a.flight
	if fl.done {
		return nil
	}
	fl.by = a.server.label
	a.server.answeredLocked(f, time.Since(a.sent))
	fl.attempts = slices.DeleteFunc(fl.attempts, func(o *attempt) bool { return o == a })
	msg = withoutExtendedRcode(msg)
	truncated := msg[2]&flagTC != 0 && !a.overTCP
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
		if !fl.fetching(a.server) {
			return f.fetchLocked(fl, a.server)
		}
		return nil
	}
	return f.finishLocked(fl, slices.Clone(msg))
}

// withoutExtendedRcode makes SERVFAIL of the codes whose upper bits are in the OPT (RFC 6891 section 6.1.3), such as BADVERS, whose lower ones say NOERROR:
// our questions give no cause for them, so the server cannot help.
func withoutExtendedRcode(msg []byte) []byte {
	const extended = 5 // octet of an OPT
	l, ok := walk(msg)
	if !ok || l.opt == 0 || msg[l.opt+extended] == 0 {
		return msg
	}
	msg = slices.Clone(msg)
	msg[3] = msg[3]&^rcodeMask | dns.RcodeServerFailure
	msg[l.opt+extended] = 0
	return msg
}

// lostLocked is an attempt that will have no answer: refused by the host, broken off. A finished flight is returned, for deliver.
func (f *forwarder) lostLocked(a *attempt, reason string, err error) *flight {
	fl := a.flight
	if fl.done {
		return nil
	}
	a.server.failedLocked(f, reason, err)
	fl.attempts = slices.DeleteFunc(fl.attempts, func(o *attempt) bool { return o == a })
	if a.overTCP {
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
		if late := time.Since(a.sent); late >= a.server.patience() {
			a.server.failedLocked(f, reasonTimeout, fmt.Errorf("no answer within %v", late.Round(time.Millisecond)))
		}
		if a.sock != nil {
			a.sock.forgetLocked(a.id)
		}
		if a.stream != nil {
			a.stream.forgetLocked(a)
		}
	}
	delete(f.flights, fl.key)
	fl.unlistLocked(f)
	if !fl.probe {
		f.waiting -= len(fl.waiters)
	}
	if f.closing && len(f.flights) == 0 {
		close(f.idle)
	}
	return fl
}
