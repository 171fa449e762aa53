package identity

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A test life is 100 minutes from testNow: renewal is due at 50, expiring begins at 75, the end is at 100.
var (
	testPolicy = policy{ratio: 0.5}
	testLife   = life{received: testNow, notAfter: testNow.Add(100 * time.Minute)}
)

func at(minutes float64) time.Time { return testNow.Add(time.Duration(minutes * float64(time.Minute))) }

func TestEveryEdgeOfTheLifeOfACertificate(t *testing.T) {
	// have builds a machine that has the test life; m0 has none.
	m0 := machine{phase: None}
	have := func(phase Phase, change func(*machine)) machine {
		m := machine{phase: phase, life: testLife, renewAt: at(50), askedAt: at(0)}
		if change != nil {
			change(&m)
		}
		return m
	}
	asking := func(m *machine) { m.asking = true }
	wanted := func(m *machine) { m.wanted = true }
	again := func(m *machine) { m.again = true }
	all := func(changes ...func(*machine)) func(*machine) {
		return func(m *machine) {
			for _, change := range changes {
				change(m)
			}
		}
	}
	paused := func(until float64) func(*machine) {
		return func(m *machine) { m.failures, m.retryAt = 3, at(until) }
	}
	fresh := life{received: at(60), notAfter: at(160)}
	tests := []struct {
		name  string
		from  machine
		now   float64
		event event
		to    Phase
		ask   bool
	}{
		{"none: the first look asks", m0, 0, event{kind: evTick}, Requesting, true},
		{"none: waits for its pause", machine{phase: None, failures: 1, retryAt: at(5)}, 4, event{kind: evTick}, None, false},
		{"none: asks when the pause is over", machine{phase: None, failures: 1, retryAt: at(5)}, 5, event{kind: evTick}, Requesting, true},
		{"none: a new token ends the pause", machine{phase: None, failures: 1, retryAt: at(5)}, 1, event{kind: evWake}, Requesting, true},
		{"none: someone wants one now", machine{phase: None, failures: 1, retryAt: at(5)}, 1, event{kind: evRenew}, Requesting, true},
		{"none: a certificate on disk", m0, 10, event{kind: evLoaded, life: testLife}, Valid, false},
		{"none: one on disk whose renewal is due", m0, 60, event{kind: evLoaded, life: testLife}, Renewing, true},
		{"none: one on disk near its end", m0, 80, event{kind: evLoaded, life: testLife}, Expiring, true},
		{"none: one on disk that has expired", m0, 200, event{kind: evLoaded, life: testLife}, Expired, true},
		{"requesting: waits", machine{phase: Requesting, asking: true}, 1, event{kind: evTick}, Requesting, false},
		{"requesting: is not asked twice", machine{phase: Requesting, asking: true}, 1, event{kind: evRenew}, Requesting, false},
		{"requesting: issued", machine{phase: Requesting, asking: true}, 0, event{kind: evIssued, life: testLife}, Valid, false},
		{"requesting: failed", machine{phase: Requesting, asking: true}, 1, event{kind: evFailed}, None, false},
		{"requesting: failed, but a new token came meanwhile", machine{phase: Requesting, asking: true, again: true}, 1, event{kind: evFailed}, Requesting, true},
		{"valid: rests", have(Valid, nil), 49, event{kind: evTick}, Valid, false},
		{"valid: a new token changes nothing", have(Valid, nil), 10, event{kind: evWake, life: testLife}, Valid, false},
		{"valid: half of the life is left", have(Valid, nil), 50, event{kind: evTick}, Renewing, true},
		{"valid: someone wants a new one now", have(Valid, nil), 10, event{kind: evRenew}, Renewing, true},
		{"valid: that request failed: it is wanted all the same", have(Renewing, all(asking, wanted)), 10, event{kind: evFailed}, Renewing, false},
		{"valid: that request failed, but a new token came meanwhile", have(Renewing, all(asking, wanted, again)), 10, event{kind: evFailed}, Renewing, true},
		{"valid: wanted, and its pause is not over", have(Renewing, all(paused(11), wanted)), 10, event{kind: evTick}, Renewing, false},
		{"valid: wanted, and its pause is over", have(Renewing, all(paused(11), wanted)), 11, event{kind: evTick}, Renewing, true},
		{"valid: wanted again within the pause", have(Renewing, all(paused(11), wanted)), 10, event{kind: evRenew}, Renewing, true},
		{"valid: wanted, and a new token ends the pause", have(Renewing, all(paused(20), wanted)), 10, event{kind: evWake, life: testLife}, Renewing, true},
		{"valid: wanted and issued", have(Renewing, all(asking, wanted)), 10, event{kind: evIssued, life: life{at(10), at(110)}}, Valid, false},
		{"valid: wanted while a request is under way", have(Renewing, asking), 10, event{kind: evRenew}, Renewing, false},
		{"valid: slept until a quarter is left", have(Valid, nil), 80, event{kind: evTick}, Expiring, true},
		{"valid: slept past the end", have(Valid, nil), 200, event{kind: evTick}, Expired, true},
		{"renewing: waits for the answer", have(Renewing, asking), 60, event{kind: evTick}, Renewing, false},
		{"renewing: issued", have(Renewing, asking), 60, event{kind: evIssued, life: fresh}, Valid, false},
		{"renewing: failed: the certificate in hand is used", have(Renewing, asking), 60, event{kind: evFailed}, Renewing, false},
		{"renewing: tries again", have(Renewing, paused(61)), 61, event{kind: evTick}, Renewing, true},
		{"renewing: a new token ends the pause", have(Renewing, paused(70)), 61, event{kind: evWake, life: testLife}, Renewing, true},
		{"renewing: a quarter is left", have(Renewing, paused(76)), 75, event{kind: evTick}, Expiring, false},
		{"renewing: a quarter is left while asking", have(Renewing, asking), 75, event{kind: evTick}, Expiring, false},
		{"renewing: the clock was set back", have(Renewing, paused(61)), 10, event{kind: evWake, life: testLife}, Valid, false},
		{"expiring: tries again", have(Expiring, paused(76)), 76, event{kind: evTick}, Expiring, true},
		{"expiring: issued", have(Expiring, asking), 80, event{kind: evIssued, life: life{at(80), at(180)}}, Valid, false},
		{"expiring: failed", have(Expiring, asking), 80, event{kind: evFailed, failure: failedRefused}, Expiring, false},
		{"expiring: the end", have(Expiring, paused(101)), 100, event{kind: evTick}, Expired, false},
		{"expiring: the end while asking", have(Expiring, asking), 100, event{kind: evTick}, Expired, false},
		{"expired: tries again", have(Expired, paused(101)), 101, event{kind: evTick}, Expired, true},
		{"expired: a new token ends the pause", have(Expired, paused(110)), 101, event{kind: evWake, life: testLife}, Expired, true},
		{"expired: issued", have(Expired, asking), 101, event{kind: evIssued, life: life{at(101), at(201)}}, Valid, false},
		{"expired: failed", have(Expired, asking), 101, event{kind: evFailed}, Expired, false},
		{"expired: the clock was ahead and has been set", have(Expired, paused(110)), 20, event{kind: evWake, life: testLife}, Valid, false},
		{"expired: the clock was behind and what it counted from changes", have(Expired, paused(110)), 101, event{kind: evWake, life: fresh}, Valid, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ask := testPolicy.step(tt.from, at(tt.now), tt.event)
			if got.phase != tt.to || ask != tt.ask {
				t.Errorf("%s at minute %v: got %s, ask %v; want %s, ask %v", tt.from.phase, tt.now, got.phase, ask, tt.to, tt.ask)
			}
			if ask != (got.asking && !tt.from.asking || ask && tt.from.again) {
				t.Errorf("ask is %v but asking went from %v to %v", ask, tt.from.asking, got.asking)
			}
			if w := testPolicy.wakeAt(got, at(tt.now)); !w.IsZero() && !w.After(at(tt.now)) {
				t.Errorf("wakes at %v, which is not after now: a hot loop", w)
			}
		})
	}
}

func TestRenewalIsDueWhenTheRatioOfTheLifeAsReceivedIsLeft(t *testing.T) {
	tests := []struct {
		name   string
		policy policy
		random float64
		want   float64 // minutes
	}{
		{"Istio's default", policy{ratio: 0.5}, 0.3, 50},
		{"a smaller ratio renews later", policy{ratio: 0.2}, 0.3, 80},
		{"jitter in the middle does nothing", policy{ratio: 0.5, jitter: 0.01}, 0.5, 50},
		{"jitter moves it earlier", policy{ratio: 0.5, jitter: 0.01}, 1, 49},
		{"and later", policy{ratio: 0.5, jitter: 0.01}, 0, 51},
		{"never before the receipt", policy{ratio: 0.9, jitter: 0.5}, 1, 1},
		{"never after the end", policy{ratio: 0.1, jitter: 0.5}, 0, 99},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.policy.renewAt(testLife, tt.random); got.Sub(at(tt.want)).Abs() > time.Millisecond {
				t.Errorf("due after %v, want %v min", got.Sub(testNow), tt.want)
			}
		})
	}
}

func TestPauses(t *testing.T) {
	noLife := machine{}
	tests := []struct {
		name     string
		machine  machine
		failure  failure
		failures int
		min, max time.Duration // over all jitter
	}{
		{"soon at first, and a fleet is spread", noLife, failedUnreachable, 1, time.Second, 7 * time.Second},
		{"then doubled", noLife, failedUnreachable, 4, time.Second, 49 * time.Second},
		{"over at most a minute", noLife, failedUnreachable, 12, time.Second, 61 * time.Second},
		{"after a year of failures too", noLife, failedUnreachable, 1 << 20, time.Second, 61 * time.Second},
		{"a dead credential is tried less often", noLife, failedRefused, 12, time.Minute, 3 * time.Minute},
		{"an overloaded CA is left alone at first", noLife, failedOverloaded, 1, 5 * time.Second, 15 * time.Second},
		{"and for longer", noLife, failedOverloaded, 12, 150 * time.Second, 450 * time.Second},
		{"with much life left nothing changes", machine{life: life{testNow, testNow.Add(time.Hour)}}, failedUnreachable, 12, time.Second, 61 * time.Second},
		{"in the last minute it is at most a quarter of what is left", machine{life: life{testNow, testNow.Add(20 * time.Second)}}, failedUnreachable, 12, time.Second, 5 * time.Second},
		{"but never a hot loop", machine{life: life{testNow, testNow.Add(time.Second)}}, failedUnreachable, 12, time.Second, time.Second},
		{"an overloaded CA keeps its peace even then", machine{life: life{testNow, testNow.Add(time.Second)}}, failedOverloaded, 12, 10 * time.Second, 10 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.machine.failures = tt.failures
			low := testPolicy.pause(tt.machine, testNow, event{failure: tt.failure, random: 0})
			high := testPolicy.pause(tt.machine, testNow, event{failure: tt.failure, random: 1})
			if low != tt.min || high != tt.max {
				t.Errorf("%v to %v, want %v to %v", low, high, tt.min, tt.max)
			}
		})
	}
}

func TestHealthWarnsAtAQuarterAndIsDegradedAtATenth(t *testing.T) {
	for _, tt := range []struct {
		ratio   float64
		life    life
		minutes float64
		want    Health
	}{
		{0.5, testLife, 74, Fine}, {0.5, testLife, 75, Warning}, {0.5, testLife, 89, Warning}, {0.5, testLife, 90, Degraded}, {0.5, testLife, 101, Degraded},
		{0.2, testLife, 80, Fine}, {0.2, testLife, 90, Warning}, {0.2, testLife, 96, Degraded}, // renewal begins at 80: being there is no alarm
		{0.5, life{}, 0, Degraded},
	} {
		if got := (policy{ratio: tt.ratio}).health(tt.life, at(tt.minutes)); got != tt.want {
			t.Errorf("ratio %v, minute %v: %s, want %s", tt.ratio, tt.minutes, got, tt.want)
		}
	}
}

// A world runs machines in simulated time: no sleep, no goroutine, years in milliseconds.
type world struct {
	now   time.Time
	rand  *rand.Rand
	asked []time.Time
	next  event // what happens to the machine at now
}

// run steps m from date to date for d, and answers each request by answer, which is told the time and gives the life (zero: failed)
// and how long the answer took.
func (w *world) run(p policy, m machine, d time.Duration, answer func(now time.Time) (life, failure, time.Duration)) machine {
	end := w.now.Add(d)
	for w.now.Before(end) {
		w.next.random = w.rand.Float64()
		var ask bool
		if m, ask = p.step(m, w.now, w.next); ask {
			w.asked = append(w.asked, w.now)
			l, failed, took := answer(w.now)
			w.now = w.now.Add(took)
			w.next = event{kind: evFailed, failure: failed}
			if (l != life{}) {
				w.next = event{kind: evIssued, life: l}
			}
			continue
		}
		next := w.now.Add(longestSleep)
		if at := p.wakeAt(m, w.now); !at.IsZero() && at.Before(next) {
			next = at
		}
		w.now, w.next = next, event{kind: evTick}
	}
	return m
}

func TestNoLifeMakesAHotLoop(t *testing.T) {
	tests := []struct {
		name     string
		life     time.Duration // of every certificate; 0: every request fails
		min, max int           // requests in ten minutes
	}{
		{"a day: one request", 24 * time.Hour, 1, 1},
		{"twenty seconds: one in ten", 20 * time.Second, 58, 62},
		{"five seconds: one in two and a half", 5 * time.Second, 230, 250},
		{"a millisecond: one in a second", time.Millisecond, 500, 600},
		{"a nanosecond too", time.Nanosecond, 500, 600},
		{"a CA that refuses for ten minutes", 0, 10, 30},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{now: testNow, rand: rand.New(rand.NewPCG(1, 2))}
			w.run(testPolicy, machine{phase: None}, 10*time.Minute, func(now time.Time) (life, failure, time.Duration) {
				if tt.life == 0 {
					return life{}, failedUnreachable, time.Millisecond
				}
				return life{now, now.Add(tt.life)}, 0, time.Millisecond
			})
			if n := len(w.asked); n < tt.min || n > tt.max {
				t.Errorf("%d requests in ten minutes, want %d to %d", n, tt.min, tt.max)
			}
		})
	}
}

func TestRenewalIsTriedUntilTheLastMinute(t *testing.T) {
	// The CA is down from the first renewal on and comes back twelve seconds before the end: that is soon enough.
	w := &world{now: testNow, rand: rand.New(rand.NewPCG(3, 4))}
	first := testLife
	m := w.run(testPolicy, machine{phase: Valid, life: first, renewAt: at(50)}, 99*time.Minute+59*time.Second, func(now time.Time) (life, failure, time.Duration) {
		if now.Before(first.notAfter.Add(-12 * time.Second)) {
			return life{}, failedUnreachable, time.Second
		}
		return life{now, now.Add(100 * time.Minute)}, 0, time.Second
	})
	if m.phase != Valid || m.life == first {
		t.Errorf("one second before the end: %s with the life %v", m.phase, m.life)
	}
}

// TestManyAgentsDoNotComeBackAsOneWave starts 2,000 machines in the same second against a CA that takes 50 requests a second and tells the
// others RESOURCE_EXHAUSTED. All must be served, and renewals must not fall on one moment.
func TestManyAgentsDoNotComeBackAsOneWave(t *testing.T) {
	const agents, capacity = 2000, 50
	served := map[int64]int{}   // by second
	renewals := map[int64]int{} // by minute
	p := policy{ratio: 0.5, jitter: 0.01}
	var last time.Time
	worlds := make([]*world, agents)
	machines := make([]machine, agents)
	for i := range worlds {
		worlds[i] = &world{now: testNow, rand: rand.New(rand.NewPCG(uint64(i), 7))}
		machines[i] = machine{phase: None}
	}
	for second := range 1800 {
		used, asked := 0, 0
		for i, w := range worlds {
			machines[i] = w.run(p, machines[i], testNow.Add(time.Duration(second+1)*time.Second).Sub(w.now), func(now time.Time) (life, failure, time.Duration) {
				asked++
				if used++; used > capacity {
					return life{}, failedOverloaded, time.Millisecond
				}
				served[int64(second)]++
				last = later(last, now)
				l := life{now, now.Add(24 * time.Hour)}
				renewals[p.renewAt(l, w.rand.Float64()).Unix()/60]++
				return l, 0, time.Millisecond
			})
		}
		if second > 0 && asked > 400 {
			t.Errorf("second %d: %d requests at once, a second wave", second, asked)
		}
	}
	total, peak := 0, 0
	for _, n := range served {
		total += n
	}
	for _, n := range renewals {
		peak = max(peak, n)
	}
	if total != agents {
		t.Errorf("%d of %d agents have a certificate after half an hour", total, agents)
	}
	if peak > agents/8 {
		t.Errorf("%d renewals fall on one minute", peak)
	}
	t.Logf("all served after %v; at most %d renewals in one minute half a day later", last.Sub(testNow).Round(time.Second), peak)
}
