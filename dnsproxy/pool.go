package dnsproxy

import (
	"slices"
	"time"
)

const (
	maxStreams   = 4  // to one server that answers in turn; else one does (RFC 7766 section 6.2.2)
	maxHung      = 16 // to one that lets them hang
	maxShort     = 64 // to one that closes them after fewer than fewOnStream questions
	fewOnStream  = 8
	slowStream   = 20 * time.Millisecond // without an answer: another stream may be quicker
	manyOnStream = 1 << 12               // as good as no limit
)

// pool is the streams to one server. What it has learned of the server it keeps over the streams.
type pool struct {
	open  []*upStream // the oldest first
	queue []*attempt  // questions that there is no room for
	most  int         // questions that the server takes by one stream; 0: no limit is known
	heard bool        // something has answered by a stream
	mixes bool        // its answers come in another order than the questions did
	plain bool        // it takes the keep-alive option for a mistake
	ended bool        // the server is out of use
}

// pick chooses the stream for a question: the one with the fewest. more says that a new one would be better: there is none, or all seem to answer one
// question after the other, and slowly. Neither means that there is no room. slow is a time without an answer that another stream may well make shorter, late one
// after which none is to be expected; alone asks for a stream without other questions. It is pure.
func (p *pool) pick(now time.Time, slow, late time.Duration, alone bool) (best *upStream, more bool) {
	alive := 0 // streams that do not seem to hang
	hung := func(s *upStream) bool { return len(s.pending) > 0 && s.waited(now) > late }
	for _, s := range p.open {
		if !hung(s) {
			alive++
		}
		switch {
		case s.full():
		case best == nil, hung(best) && !hung(s), hung(best) == hung(s) && len(s.pending) < len(best.pending):
			best = s
		}
	}
	if best != nil {
		if p.mixes || best.answered == 0 { // another would have to be made first, too
			slow = late
		}
		if len(best.pending) == 0 || !alone && best.waited(now) <= slow {
			return best, false
		}
	}
	limit, all := maxStreams, maxHung
	if p.most > 0 && p.most < fewOnStream {
		limit, all = maxShort, maxShort
	}
	if alive < limit && len(p.open) < all {
		return nil, true
	}
	return best, false
}

// nextLocked puts questions that waited where there is room now. Flights that end are returned.
func (p *pool) nextLocked(f *forwarder) (lost []*flight) {
	for len(p.queue) > 0 {
		a := p.queue[0]
		if a.flight.done {
			p.queue = p.queue[1:]
			continue
		}
		s, err := f.roomLocked(a.server, false)
		switch {
		case err != nil:
			p.queue = p.queue[1:]
			lost = appendFlight(lost, f.lostLocked(a, reasonUnreachable, err))
			continue
		case s == nil:
			return lost
		}
		p.queue = p.queue[1:]
		s.putLocked(a)
	}
	p.queue = nil
	return lost
}

// keptLocked is told of a stream that the server has not closed: if it had all the questions that were thought right, the next may have more.
func (p *pool) keptLocked(s *upStream) {
	if p.most > 0 && s.used >= p.most {
		if p.most += 1 + p.most/4; p.most > manyOnStream {
			p.most = 0
		}
	}
}

// endLocked takes the server out of use: what is idle is closed, the rest once its answers are there.
func (p *pool) endLocked() {
	p.ended, p.queue = true, nil
	for _, s := range slices.Clone(p.open) {
		if s.retired = true; len(s.pending) == 0 {
			s.closeLocked()
		}
	}
}
