package identity

import "time"

// A Phase is where an identity is in its life; the drawing is on the package page.
type Phase string

const (
	None       Phase = "none"       // no certificate, and no request under way
	Requesting Phase = "requesting" // no certificate yet; the CA is being asked
	Valid      Phase = "valid"      // nothing to do until renewAt
	Renewing   Phase = "renewing"   // renewal is due or wanted: being asked for, or waiting to ask again
	Expiring   Phase = "expiring"   // little life is left and no renewal has succeeded
	Expired    Phase = "expired"    // the certificate's life is over; the CA is asked until it answers
)

// A life is the span that renewal counts from: the life as received, not the certificate's own, which is backdated.
type life struct {
	received, notAfter time.Time // received < notAfter; both zero: no certificate
}

func (l life) length() time.Duration { return l.notAfter.Sub(l.received) }

// A machine is the state of an identity. It is a value: only policy.step makes the next one.
type machine struct {
	phase    Phase
	life     life
	renewAt  time.Time // received < renewAt < notAfter
	retryAt  time.Time // no request before it; zero: at once
	askedAt  time.Time // start of the last request
	failures int       // requests failed since the last that succeeded, or since something changed
	asking   bool      // a request is under way
	again    bool      // what a request needs has changed since it began: if it fails, ask again at once
	wanted   bool      // somebody wants a new certificate, however long this one is good: until there is one
}

// An event is what happened to an identity.
type event struct {
	kind    eventKind
	life    life    // evLoaded, evIssued; evWake too when there is a certificate: a clock that was set changes it
	failure failure // evFailed
	random  float64 // in [0, 1): decides jitter
}

type eventKind int

const (
	evTick   eventKind = iota // time passed
	evLoaded                  // a certificate was found on disk
	evIssued                  // the CA gave one
	evFailed                  // a request failed
	evWake                    // a new token, another root, a clock that jumped: what failed may work now
	evRenew                   // someone wants a new certificate: now, and if that fails, as soon as it can be had
)

// A failure is a kind of failed request; each has its own back-off.
type failure int

const (
	failedUnreachable failure = iota // no answer
	failedInvalid                    // an answer that does not stand the check
	failedRefused                    // the CA answered and does not accept the credential
	failedOverloaded                 // the CA asked for patience
)

// backoffs are, for each failure, the first pause and the longest one; where nobody answered, the spans over which they are spread.
var backoffs = map[failure][2]time.Duration{
	failedUnreachable: {6 * time.Second, time.Minute},
	failedInvalid:     {2 * time.Second, 2 * time.Minute},
	failedRefused:     {2 * time.Second, 2 * time.Minute},
	failedOverloaded:  {10 * time.Second, 5 * time.Minute},
}

const (
	// shortestPause lies between the starts of two requests, whatever a CA's certificates look like: no hot loop.
	shortestPause = time.Second
	// wakePause lies between two requests when something changed in between.
	wakePause = 500 * time.Millisecond
)

// A policy decides when to renew.
type policy struct {
	ratio  float64 // renew when this share of the life is left; 0 < ratio < 1
	jitter float64 // share of the life by which that moment is moved, either way
}

// step is the whole life of an identity: the machine after ev at now, and whether a request must start. It has no clock and does
// no I/O. Dates are judged anew by every step, so that a clock that jumped is right again after the next one.
func (p policy) step(m machine, now time.Time, ev event) (next machine, ask bool) {
	m = m.afterJump(now)
	forced := false
	switch ev.kind {
	case evLoaded, evIssued:
		m = machine{life: ev.life, askedAt: m.askedAt, renewAt: p.renewAt(ev.life, ev.random)}
	case evFailed:
		m.asking = false
		m.failures++
		m.retryAt = now.Add(p.pause(m, now, ev))
		if m.again {
			m.again, m.failures, m.retryAt = false, 0, now
		}
	case evWake:
		if ev.life != m.life {
			m.life, m.renewAt = ev.life, p.renewAt(ev.life, ev.random)
		}
		m.failures, m.retryAt, m.again = 0, m.askedAt.Add(wakePause), m.asking
	case evRenew:
		forced, m.wanted = !m.asking, true
	}
	m.phase = p.phase(m, now)
	if m.asking || !forced && !p.due(m, now) {
		return m, false
	}
	m.asking, m.askedAt = true, now
	m.phase = p.phase(m, now)
	return m, true
}

// due reports whether a request should be under way at now.
func (p policy) due(m machine, now time.Time) bool {
	return m.phase != Valid && !now.Before(m.nextAsk())
}

// nextAsk is the earliest time for the next request that nobody forces.
func (m machine) nextAsk() time.Time {
	if m.failures == 0 && !m.retryAt.IsZero() {
		return m.retryAt // woken
	}
	return later(m.retryAt, m.askedAt.Add(shortestPause))
}

// wakeAt is when step must run next at the latest: the first date after now at which something changes by itself. Zero: none.
func (p policy) wakeAt(m machine, now time.Time) time.Time {
	var dates []time.Time
	if (m.life != life{}) {
		dates = append(dates, m.renewAt, p.expiringAt(m.life), m.life.notAfter)
	}
	if !m.asking && m.phase != Valid {
		dates = append(dates, m.nextAsk())
	}
	var first time.Time
	for _, d := range dates {
		if d.After(now) && (first.IsZero() || d.Before(first)) {
			first = d
		}
	}
	return first
}

func (p policy) phase(m machine, now time.Time) Phase {
	switch {
	case m.life == life{} && m.asking:
		return Requesting
	case m.life == life{}:
		return None
	case !now.Before(m.life.notAfter):
		return Expired
	case !now.Before(p.expiringAt(m.life)):
		return Expiring
	case m.asking || m.wanted || !now.Before(m.renewAt):
		return Renewing
	}
	return Valid
}

// renewAt is when renewal is due. Rule from Istio security/pkg/nodeagent/cache/secretcache.go, rotateTime: the share of life left
// is ratio, moved by up to jitter either way.
func (p policy) renewAt(l life, random float64) time.Time {
	share := min(max(p.ratio+p.jitter*(2*random-1), 0.01), 0.99)
	return l.notAfter.Add(-time.Duration(share * float64(l.length())))
}

// expiringAt is when too little life is left: a quarter of it, or half of what renewal began with if that is less.
func (p policy) expiringAt(l life) time.Time {
	return l.notAfter.Add(-time.Duration(min(0.25, p.ratio/2) * float64(l.length())))
}

// pause is the back-off after the failure ev: doubled each time, spread over half to one and a half of itself. Where nobody answered, which a whole fleet
// may learn in one moment, it is spread over all of its span: a fleet that was refused at once does not come back at once. The less life is left, the
// shorter it gets (a quarter of what is left), so that the last minute is used too; a CA that asked for patience gets it.
func (p policy) pause(m machine, now time.Time, ev event) time.Duration {
	first, longest := backoffs[ev.failure][0], backoffs[ev.failure][1]
	d := longest
	if n := m.failures - 1; n < 16 {
		d = min(first<<n, longest)
	}
	least := first // however little life is left
	if ev.failure == failedUnreachable {
		least = shortestPause
		d = shortestPause + time.Duration(ev.random*float64(d))
	} else {
		d = time.Duration((0.5 + ev.random) * float64(d))
	}
	if left := m.life.notAfter.Sub(now); left > 0 && m.life != (life{}) {
		d = min(d, max(left/4, least))
	}
	return d
}

// afterJump is m with the dates of requests that a clock set back has moved into the future forgotten.
func (m machine) afterJump(now time.Time) machine {
	if m.askedAt.After(now) {
		m.askedAt = time.Time{}
	}
	if m.retryAt.After(now.Add(8 * time.Minute)) { // beyond the longest pause
		m.retryAt = time.Time{}
	}
	return m
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
