package health

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxReason bounds a report's reason in bytes: it lands in a Kubernetes condition.
const maxReason = 1024

// state is what is known of one probe, or of the workload as a whole.
type state int

const (
	unknown state = iota
	healthy
	unhealthy
)

func (s state) String() string { return [...]string{"unknown", "healthy", "unhealthy"}[s] }

func stateOf(ok bool) state {
	if ok {
		return healthy
	}
	return unhealthy
}

// rule is how many results in a row it takes to change a probe's state; both are at least 1.
type rule struct{ success, failure int }

// tally is the state of one probe: its thresholds, and what it counted.
type tally struct {
	rule
	target    string // named in reasons for health; reasons for failure come with the error
	state     state
	successes int // in a row
	failures  int // in a row
	reason    string
}

// count adds one result. The first state needs its threshold too, as Istio's does.
func (t *tally) count(err error) {
	if err == nil {
		t.successes, t.failures, t.reason = t.successes+1, 0, ""
		if t.successes >= t.success {
			t.state = healthy
		}
		return
	}
	t.successes, t.failures = 0, t.failures+1
	t.reason = cmp.Or(oneLine(err.Error()), t.target+": no reason given")
	if t.failures >= t.failure {
		t.state = unhealthy
	}
}

// Damping holds back a workload that flaps: once its probes made it unhealthy Changes times within Window, it is
// reported healthy again only after they passed for Hold without a break.
// Istio has no such thing. The zero value is off.
type Damping struct {
	Changes int           // at least 2, or zero for no damping
	Window  time.Duration // more than zero if Changes is set
	Hold    time.Duration // more than zero if Changes is set
}

func (d Damping) check() error {
	if d == (Damping{}) {
		return nil
	}
	if d.Changes < 2 || d.Window <= 0 || d.Hold <= 0 {
		return fmt.Errorf("damping: found changes %d, window %s, hold %s, expected at least 2 changes and durations above zero",
			d.Changes, d.Window, d.Hold)
	}
	return nil
}

// An event is something that can change the verdict: probed or tick.
type event any

type (
	// probed is the outcome of one probe; a nil err is a success.
	probed struct {
		probe int
		err   error
	}
	// tick is the start, and the time wakeAt having come.
	tick struct{}
)

// verdict combines the probes into one state. It has no clock and does no I/O: see step.
type verdict struct {
	damping Damping
	probes  []tally
	current state // as last reported; never goes back to unknown

	drops        []time.Time // when the probes made the workload unhealthy, within damping.Window
	failing      bool        // the probes fail now; drops counts the edges
	damped       bool        // the workload flapped and has not yet passed for damping.Hold
	passingSince time.Time   // zero unless damped and all probes pass
	wakeAt       time.Time   // when a tick will change the state; zero for never
}

func newVerdict(watchers []watcher, d Damping) verdict {
	v := verdict{damping: d}
	for _, w := range watchers {
		v.probes = append(v.probes, tally{rule: w.rule(), target: w.target()})
	}
	return v
}

// step takes one event in. changed reports whether the verdict is another one now, or the first one; report is it then.
func (v *verdict) step(now time.Time, e event) (report Report, changed bool) {
	reason := ""
	if e, ok := e.(probed); ok {
		v.probes[e.probe].count(e.err)
		reason = v.probes[e.probe].target + " succeeded"
	}
	probes := v.damp(now, v.combined())
	switch {
	case probes == unhealthy && v.damped && !v.failing:
		reason = fmt.Sprintf("flapping: unhealthy %d times within %s; probes must pass for %s", len(v.drops), v.damping.Window, v.damping.Hold)
	case probes == unhealthy:
		reason = strings.Join(v.probeReasons(), "; ")
	case len(v.probes) == 0:
		reason = "no probe configured"
	case v.damping != (Damping{}):
		reason = cmp.Or(reason, "probes passed for "+v.damping.Hold.String())
	}
	if probes == unknown || probes == v.current {
		return Report{}, false
	}
	v.current = probes
	return Report{Healthy: probes == healthy, Reason: clip(cmp.Or(reason, "no reason given"), maxReason), At: now}, true
}

// combined is healthy if all probes are, unhealthy if any is, unknown otherwise.
func (v *verdict) combined() state {
	all := healthy
	for _, t := range v.probes {
		switch t.state {
		case unhealthy:
			return unhealthy
		case unknown:
			all = unknown
		}
	}
	return all
}

// damp turns healthy into unhealthy for a workload that flaps.
func (v *verdict) damp(now time.Time, probes state) state {
	v.wakeAt = time.Time{}
	if v.damping == (Damping{}) {
		v.failing = probes == unhealthy
		return probes
	}
	if probes == unhealthy {
		if !v.failing {
			v.drops = slices.DeleteFunc(append(v.drops, now), func(at time.Time) bool { return now.Sub(at) > v.damping.Window })
			v.damped = v.damped || len(v.drops) >= v.damping.Changes
		}
		v.failing, v.passingSince = true, time.Time{}
		return unhealthy
	}
	v.failing = false
	if !v.damped || probes == unknown {
		return probes
	}
	if v.passingSince.IsZero() {
		v.passingSince = now
	}
	if until := v.passingSince.Add(v.damping.Hold); now.Before(until) {
		v.wakeAt = until
		return unhealthy
	}
	v.damped, v.passingSince, v.drops = false, time.Time{}, nil
	return healthy
}

func (v *verdict) probeReasons() []string {
	var reasons []string
	for _, t := range v.probes {
		if t.state == unhealthy {
			// A probe that begins to pass but has not reached its threshold has no error of its own any more.
			reasons = append(reasons, cmp.Or(t.reason, fmt.Sprintf("%s: %d of %d successes", t.target, t.successes, t.success)))
		}
	}
	return reasons
}
