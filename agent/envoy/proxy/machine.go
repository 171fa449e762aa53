package proxy

import "time"

// soon is a wait for the next start that is too short to send clients elsewhere for.
const soon = 500 * time.Millisecond

// Phase is where the supervisor stands with its Envoy.
type Phase string

// Phases.
const (
	PhaseWaiting  Phase = "waiting"  // Envoy cannot be started yet: State.Cause says why
	PhaseStarting Phase = "starting" // it runs and has no configuration yet
	PhaseLive     Phase = "live"     // it serves
	PhaseHanging  Phase = "hanging"  // its admin port did not answer for HangTimeout, or no thread for a few seconds: it was told to abort
	PhaseBackoff  Phase = "back-off" // it ended; the next start comes by itself
	PhaseHandover Phase = "handover" // about to be replaced: requests come to their ends, new connections wait
	PhaseDraining Phase = "draining" // asked to stop: connections come to their ends
	PhaseStopping Phase = "stopping" // told to end
	PhaseStopped  Phase = "stopped"
)

// timings are the machine's numbers.
type timings struct {
	first, most time.Duration // wait before a start after an end: doubles from first to most
	retry       time.Duration // most that a start waits for what it needs
	well        time.Duration // an Envoy that was live for so long starts from first again
	hang        time.Duration // without an answer, and deaf questions in a row: a machine that slept is no Envoy that hangs
	deaf        int
	freeze      time.Duration // between the first and the last of deaf questions that no thread answered
	drain       time.Duration // most that a drain takes; zero: none
	handover    time.Duration // most that requests in flight have before an Envoy is replaced
	grace       time.Duration // between SIGABRT or SIGTERM and SIGKILL
}

// machine is the state of the supervisor. Its zero value, with timings, waits to start at once.
type machine struct {
	timings
	phase    Phase
	since    time.Time     // when phase began
	deadline time.Time     // when evDeadline is due; zero: never
	ended    time.Duration // wait after the next end; zero: first
	failed   time.Duration // wait after the next failed start; zero: first
	answered time.Time     // last answer of the present Envoy, or its start
	silent   int           // questions without an answer since then
	frozen   int           // questions in a row that no thread answered
	frozenAt time.Time     // the first of them
	liveAt   time.Time     // since when the present Envoy is live; zero: not yet
	shedding time.Time     // since when it drains because somebody else told it to, as the agent does when it leaves; zero: it does not
	replace  bool          // asked to put another in the place of the present Envoy
	stop     bool          // asked to stop
}

// event is what happened.
type event int

const (
	evDeadline    event = iota // machine.deadline passed
	evStarted                  // after actStart: Envoy runs
	evCannotStart              // after actStart: it does not
	evLive                     // it answered, and serves
	evNotLive                  // it answered, and does not serve
	evShedding                 // it answered, and drains
	evSilent                   // its main thread did not answer
	evFrozen                   // and no worker either
	evEnded
	evDrained // after actDrain or actHandOver: nothing left to wait for
	evReplace // another Envoy is to take the place of the present one, which serves
	evStop    // the supervisor is to stop
)

// action is what is to be done about it.
type action int

const (
	actNone action = iota
	actStart
	actAbort     // SIGABRT: Envoy says where it hangs
	actKill      // SIGKILL
	actDrain     // begin to drain; evDrained follows
	actHandOver  // have Envoy accept nothing more; evDrained follows
	actTerminate // SIGTERM
	actDone      // nothing runs any more
)

func newMachine(t timings, now time.Time) machine {
	return machine{timings: t, phase: PhaseWaiting, since: now, deadline: now}
}

// step is pure. An event that makes no sense in a phase (an answer that was under way when Envoy ended) changes nothing.
func (m machine) step(ev event, now time.Time) (machine, action) {
	next, act := m.next(ev, now)
	if next.phase != m.phase {
		next.since = now
	}
	return next, act
}

func (m machine) next(ev event, now time.Time) (machine, action) {
	if ev == evStop {
		return m.stopNow(now)
	}
	switch m.phase {
	case PhaseWaiting, PhaseBackoff:
		switch ev {
		case evDeadline:
			m.deadline = time.Time{}
			return m, actStart
		case evStarted:
			m.phase, m.deadline, m.failed, m.answered, m.silent = PhaseStarting, time.Time{}, 0, now, 0
			m.frozen, m.replace = 0, false
			m.liveAt, m.shedding = time.Time{}, time.Time{}
		case evCannotStart:
			m.phase = PhaseWaiting
			m.deadline, m.failed = m.after(now, m.failed, m.retry)
		}
	case PhaseStarting, PhaseLive:
		switch ev {
		case evLive:
			m.answered, m.silent, m.frozen, m.shedding = now, 0, 0, time.Time{}
			if m.phase == PhaseStarting {
				m.phase, m.liveAt = PhaseLive, now
			}
		case evNotLive:
			m.answered, m.silent, m.frozen = now, 0, 0
		case evShedding:
			m.answered, m.silent, m.frozen = now, 0, 0
			if m.shedding.IsZero() {
				m.shedding = now
			}
		case evSilent, evFrozen:
			m = m.unanswered(ev, now)
			if m.silent >= m.deaf && now.Sub(m.answered) >= m.hang || m.frozen >= m.deaf && now.Sub(m.frozenAt) >= m.freeze {
				m.phase, m.deadline = PhaseHanging, now.Add(m.grace)
				return m, actAbort
			}
		case evReplace:
			if m.phase == PhaseLive {
				m.phase, m.replace, m.deadline = PhaseHandover, true, now.Add(m.handover)
				return m, actHandOver
			}
		case evEnded:
			return m.backOff(now), actNone
		}
	case PhaseHanging:
		switch ev {
		case evDeadline:
			m.deadline = time.Time{}
			return m, actKill
		case evEnded:
			if m.stop {
				return m.done()
			}
			return m.backOff(now), actNone
		}
	case PhaseDraining, PhaseHandover:
		switch ev {
		case evDrained, evDeadline:
			return m.terminate(now)
		case evEnded:
			return m.over(now)
		}
	case PhaseStopping:
		switch ev {
		case evDeadline:
			m.deadline = time.Time{}
			return m, actKill
		case evEnded:
			return m.over(now)
		}
	}
	return m, actNone
}

// holds reports whether connections that come after the end of the present Envoy are worth being kept waiting: it served, and the
// next one starts soon. In a loop of crashes they are refused.
func (m machine) holds(now time.Time) bool {
	return !m.stop && !m.liveAt.IsZero() && (m.replace || m.backOff(now).deadline.Sub(now) <= soon)
}

// unanswered counts a question without an answer. Workers begin to serve when Envoy is live.
func (m machine) unanswered(ev event, now time.Time) machine {
	m.silent++
	switch {
	case ev == evSilent || m.phase != PhaseLive:
		m.frozen = 0
	case m.frozen == 0:
		m.frozen, m.frozenAt = 1, now
	default:
		m.frozen++
	}
	return m
}

// stopNow begins the way out. Only an Envoy that serves has something to drain.
func (m machine) stopNow(now time.Time) (machine, action) {
	if m.stop {
		return m, actNone
	}
	m.stop = true
	switch m.phase {
	case PhaseWaiting, PhaseBackoff:
		return m.done()
	case PhaseStarting:
		return m.terminate(now)
	case PhaseLive:
		left := m.drain
		if !m.shedding.IsZero() {
			left -= now.Sub(m.shedding)
		}
		if left <= 0 {
			return m.terminate(now)
		}
		m.phase, m.deadline = PhaseDraining, now.Add(left)
		return m, actDrain
	}
	return m, actNone // hanging, or to be replaced: its end, which is under way, is the end
}

// over goes on after the end of an Envoy that was told to end: at once to the next one, where one is to take its place.
func (m machine) over(now time.Time) (machine, action) {
	if m.stop || !m.replace {
		return m.done()
	}
	m.phase, m.deadline = PhaseBackoff, now
	return m, actNone
}

func (m machine) terminate(now time.Time) (machine, action) {
	m.phase, m.deadline = PhaseStopping, now.Add(m.grace)
	return m, actTerminate
}

func (m machine) done() (machine, action) {
	m.phase, m.deadline = PhaseStopped, time.Time{}
	return m, actDone
}

// backOff plans the next start after an end.
func (m machine) backOff(now time.Time) machine {
	if !m.liveAt.IsZero() && now.Sub(m.liveAt) >= m.well {
		m.ended = 0
	}
	m.phase = PhaseBackoff
	m.deadline, m.ended = m.after(now, m.ended, m.most)
	return m
}

// after returns now and wait later, and the wait after that.
func (m machine) after(now time.Time, wait, most time.Duration) (time.Time, time.Duration) {
	wait = min(max(wait, m.first), most)
	return now.Add(wait), min(2*wait, most)
}
