package dnsproxy

import (
	"encoding/binary"
	"time"

	"github.com/miekg/dns"
)

// deliver answers everyone who waits for a finished flight, by way of box if there is one.
func (f *forwarder) deliver(fl *flight, box *outbox) {
	if fl == nil {
		return
	}
	if fl.cacheKey != "" && useful(fl.fallback) {
		f.s.cache.put(fl.cacheKey, fl.fallback, now())
	}
	if fl.stale != nil && !useful(fl.fallback) {
		fl.stale.failed.Store(int64(now()))
	}
	for _, w := range fl.waiters {
		if w.trace != nil {
			w.trace.server = fl.by
		}
		if fl.stale != nil && (!useful(fl.fallback) || w.via == overTCP && fl.fallback[2]&flagTC != 0) {
			f.conclude(w, fl, fl.stale.message(w.msg, now()), fromStale, box)
		} else {
			f.conclude(w, fl, fl.fallback, fromUpstream, box)
		}
	}
}

// deliverStale answers clients who left a flight with what was true once. The flight goes on meanwhile: only what does not
// change of it is looked at.
func (f *forwarder) deliverStale(fl *flight, waiters []waiter) {
	for _, w := range waiters {
		f.conclude(w, fl, fl.stale.message(w.msg, now()), fromStale, nil)
	}
}

// conclude turns the flight's answer, nil if there is none, into that of one client.
func (f *forwarder) conclude(w waiter, fl *flight, answer []byte, from source, box *outbox) {
	t := f.s.Table()
	if w.trace != nil && w.trace.raw {
		t = nil
	}
	if answer != nil && w.via == overTCP && answer[2]&flagTC != 0 {
		// over TCP nobody looks at TC: an answer cut short would be taken for the whole
		f.fail(w, dns.ExtendedErrorCodeNetworkError, fl.by+" truncates its answer, and no server gives the whole one over TCP", box)
		return
	}
	if answer != nil {
		reply, from := f.compose(t, w, answer, from)
		f.send(w, reply, from, box)
		return
	}
	if reply := f.searchReply(t, w); reply != nil {
		f.send(w, reply, fromMesh, box)
		return
	}
	code, text := uint16(dns.ExtendedErrorCodeNotReady), tooMany
	if !fl.crowded {
		code, text = fl.route.why(f)
	}
	f.fail(w, code, text, box)
}

// useful reports whether an upstream's answer is one, not an excuse.
func useful(answer []byte) bool {
	return answer != nil && (answer[3]&rcodeMask == dns.RcodeSuccess || answer[3]&rcodeMask == dns.RcodeNameError)
}

// compose makes a client's reply of an upstream's answer. Where that denies a name, the mesh has the last word.
func (f *forwarder) compose(t *Table, w waiter, answer []byte, from source) ([]byte, source) {
	if answer[3]&rcodeMask == dns.RcodeNameError {
		if reply := f.searchReply(t, w); reply != nil {
			return reply, fromMesh
		}
		if reply := t.nonTerminalReply(w); reply != nil {
			return reply, fromMesh
		}
	}
	reply := fit(answer, w)
	if f.s.cfg.BehindResolved {
		shortenDenial(reply)
	}
	if from == fromStale {
		code := dns.ExtendedErrorCodeStaleAnswer
		if answer[3]&rcodeMask == dns.RcodeNameError {
			code = dns.ExtendedErrorCodeStaleNXDOMAINAnswer
		}
		reply = withExtendedError(reply, code, w.limit)
	}
	return reply, from
}

// shortenDenial makes a reply that says "no such name" or "no such record" live no longer than the mesh's own: what its client remembers longer would hide a
// name that the mesh gets meanwhile. The SOA's TTL bounds that (RFC 2308 section 5).
func shortenDenial(reply []byte) {
	l, ok := walk(reply)
	if code := reply[3] & rcodeMask; !ok || code != dns.RcodeNameError && (code != dns.RcodeSuccess || binary.BigEndian.Uint16(reply[6:]) > 0) {
		return
	}
	records(reply, l, func(r record) {
		if r.section == 1 && r.ttl > tableTTL {
			binary.BigEndian.PutUint32(reply[r.ttlAt:], tableTTL)
		}
	})
}

// fail answers SERVFAIL with the cause.
func (f *forwarder) fail(w waiter, code uint16, text string, box *outbox) {
	req, err := unpackQuery(w.msg)
	if err != nil {
		f.send(w, errorReply(w.msg, dns.RcodeServerFailure), fromRefused, box)
		return
	}
	reply := newReply(req, dns.RcodeServerFailure)
	explainWhy(reply, code, text)
	f.send(w, pack(reply, w.limit), fromRefused, box)
}

// refuseLoop answers a question of our own that came back.
func (f *forwarder) refuseLoop(w waiter) {
	req, err := unpackQuery(w.msg)
	if err != nil {
		f.send(w, errorReply(w.msg, dns.RcodeRefused), fromRefused, nil)
		return
	}
	reply := newReply(req, dns.RcodeRefused)
	explainWhy(reply, dns.ExtendedErrorCodeOther, "this question came from the agent that answers it: a loop")
	f.send(w, pack(reply, w.limit), fromRefused, nil)
}

func (f *forwarder) send(w waiter, msg []byte, from source, box *outbox) {
	if w.trace != nil {
		w.trace.from = from
	} else {
		f.s.metrics.add(w.via, questionType(w.msg), msg, from)
		f.s.metrics.waits[from].Observe(time.Duration(now() - w.since).Seconds())
	}
	box.send(w.to, msg)
}
