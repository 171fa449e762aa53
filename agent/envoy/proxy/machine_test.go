package proxy

import (
	"fmt"
	"testing"
	"time"
)

var eventNames = map[string]event{
	"deadline": evDeadline, "started": evStarted, "cannot start": evCannotStart, "live": evLive, "not live": evNotLive,
	"silent": evSilent, "frozen": evFrozen, "shedding": evShedding, "ended": evEnded, "drained": evDrained, "replace": evReplace, "stop": evStop,
}

var actionNames = map[action]string{
	actNone: "", actStart: "start", actAbort: "abort", actKill: "kill", actDrain: "drain", actHandOver: "hand over", actTerminate: "terminate", actDone: "done",
}

var testTimings = timings{
	first: 50 * time.Millisecond, most: 400 * time.Millisecond, retry: 200 * time.Millisecond, well: time.Minute,
	hang: 10 * time.Second, deaf: 2, freeze: 5 * time.Second, drain: 5 * time.Second, handover: 2 * time.Second, grace: 3 * time.Second,
}

// happening is an event, some time after the one before, and what must follow from it.
type happening struct {
	after time.Duration
	event string
	want  string // "phase", "phase: action", with " +wait" to the deadline if there is one
}

func TestStep(t *testing.T) {
	const ms = time.Millisecond
	up := []happening{{0, "deadline", "waiting: start"}, {0, "started", "starting"}, {100 * ms, "not live", "starting"}, {100 * ms, "live", "live"}}
	tests := []struct {
		name    string
		timings func(*timings)
		story   []happening
	}{
		{"it comes up and serves", nil, up},
		{"it ends and is started again at once, then later and later, and never later than most", nil, append(up[:4:4],
			happening{0, "ended", "back-off +50ms"}, happening{50 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "ended", "back-off +100ms"}, happening{100 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "ended", "back-off +200ms"}, happening{200 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "ended", "back-off +400ms"}, happening{400 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "ended", "back-off +400ms"})},
		{"one that was well for a while starts from the first wait again", nil, append(up[:4:4],
			happening{0, "ended", "back-off +50ms"}, happening{50 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "live", "live"}, happening{time.Minute, "ended", "back-off +50ms"})},
		{"one that was live for less does not", nil, append(up[:4:4],
			happening{0, "ended", "back-off +50ms"}, happening{50 * ms, "deadline", "back-off: start"}, happening{0, "started", "starting"},
			happening{0, "live", "live"}, happening{time.Minute - ms, "ended", "back-off +100ms"})},
		{"what a start needs is looked for again, less and less often", nil, []happening{
			{0, "deadline", "waiting: start"}, {0, "cannot start", "waiting +50ms"}, {50 * ms, "deadline", "waiting: start"}, {0, "cannot start", "waiting +100ms"},
			{100 * ms, "deadline", "waiting: start"}, {0, "cannot start", "waiting +200ms"}, {200 * ms, "deadline", "waiting: start"}, {0, "cannot start", "waiting +200ms"},
			{200 * ms, "deadline", "waiting: start"}, {0, "started", "starting"},
			{0, "ended", "back-off +50ms"}, {50 * ms, "deadline", "back-off: start"}, {0, "cannot start", "waiting +50ms"}}},
		{"silence is borne for a while, and an answer ends it", nil, append(up[:4:4],
			happening{9 * time.Second, "silent", "live"}, happening{0, "not live", "live"}, happening{9 * time.Second, "silent", "live"},
			happening{time.Second, "silent", "hanging: abort +3s"})},
		{"a machine that slept is no Envoy that hangs", nil, append(up[:4:4],
			happening{time.Hour, "silent", "live"}, happening{time.Second, "live", "live"}, happening{time.Hour, "silent", "live"},
			happening{time.Second, "silent", "hanging: abort +3s"})},
		{"when no worker answers either it takes less", nil, append(up[:4:4],
			happening{time.Second, "frozen", "live"}, happening{5*time.Second - ms, "frozen", "live"}, happening{ms, "frozen", "hanging: abort +3s"})},
		{"a worker that answers in between is proof of life", nil, append(up[:4:4],
			happening{time.Second, "frozen", "live"}, happening{2 * time.Second, "silent", "live"}, happening{2 * time.Second, "frozen", "live"},
			happening{4 * time.Second, "frozen", "live"}, happening{time.Second - ms, "frozen", "live"}, happening{ms, "frozen", "hanging: abort +3s"})},
		{"workers of an Envoy that has not served yet are not there", nil, []happening{
			{0, "deadline", "waiting: start"}, {0, "started", "starting"}, {time.Second, "frozen", "starting"}, {6 * time.Second, "frozen", "starting"},
			{3 * time.Second, "frozen", "hanging: abort +3s"}}},
		{"one that never answers hangs too", nil, []happening{
			{0, "deadline", "waiting: start"}, {0, "started", "starting"}, {10*time.Second - ms, "silent", "starting"}, {ms, "silent", "hanging: abort +3s"}}},
		{"one that hangs is killed when it does not abort, and started again", nil, append(up[:4:4],
			happening{time.Second, "silent", "live"}, happening{9 * time.Second, "silent", "hanging: abort +3s"}, happening{time.Second, "live", "hanging +2s"},
			happening{2 * time.Second, "deadline", "hanging: kill"}, happening{0, "ended", "back-off +50ms"})},
		{"a stop drains, and ends it when nothing is left", nil, append(up[:4:4],
			happening{0, "stop", "draining: drain +5s"}, happening{time.Second, "silent", "draining +4s"}, happening{0, "stop", "draining +4s"},
			happening{time.Second, "drained", "stopping: terminate +3s"}, happening{0, "drained", "stopping +3s"}, happening{0, "ended", "stopped: done"})},
		{"a drain that takes too long is cut short", nil, append(up[:4:4],
			happening{0, "stop", "draining: drain +5s"}, happening{5 * time.Second, "deadline", "stopping: terminate +3s"},
			happening{3 * time.Second, "deadline", "stopping: kill"}, happening{0, "ended", "stopped: done"})},
		{"what drained already because the agent told it to has only the rest of the time", nil, append(up[:4:4],
			happening{0, "shedding", "live"}, happening{time.Second, "shedding", "live"}, happening{2 * time.Second, "stop", "draining: drain +2s"},
			happening{2 * time.Second, "deadline", "stopping: terminate +3s"}, happening{0, "ended", "stopped: done"})},
		{"one that drained for long enough is told to end at once", nil, append(up[:4:4],
			happening{0, "shedding", "live"}, happening{5 * time.Second, "stop", "stopping: terminate +3s"}, happening{0, "ended", "stopped: done"})},
		{"one that serves again has the whole time", nil, append(up[:4:4],
			happening{0, "shedding", "live"}, happening{5 * time.Second, "live", "live"}, happening{0, "stop", "draining: drain +5s"})},
		{"the next one does not drain because the last did", nil, append(up[:4:4],
			happening{0, "shedding", "live"}, happening{0, "ended", "back-off +50ms"}, happening{50 * time.Millisecond, "deadline", "back-off: start"},
			happening{0, "started", "starting"}, happening{0, "live", "live"}, happening{5 * time.Second, "stop", "draining: drain +5s"})},
		{"without time to drain it is told to end at once", func(t *timings) { t.drain = 0 }, append(up[:4:4],
			happening{0, "stop", "stopping: terminate +3s"}, happening{0, "ended", "stopped: done"})},
		{"one that ends while it drains is not started again", nil, append(up[:4:4],
			happening{0, "stop", "draining: drain +5s"}, happening{0, "ended", "stopped: done"})},
		{"one without configuration has nothing to drain", nil, []happening{
			{0, "deadline", "waiting: start"}, {0, "started", "starting"}, {0, "stop", "stopping: terminate +3s"}, {0, "ended", "stopped: done"}}},
		{"a stop while there is none ends at once", nil, []happening{
			{0, "deadline", "waiting: start"}, {0, "cannot start", "waiting +50ms"}, {0, "stop", "stopped: done"}}},
		{"a stop during back-off ends at once", nil, append(up[:4:4],
			happening{0, "ended", "back-off +50ms"}, happening{0, "stop", "stopped: done"})},
		{"a stop while it hangs waits for its end", nil, append(up[:4:4],
			happening{time.Second, "silent", "live"}, happening{9 * time.Second, "silent", "hanging: abort +3s"}, happening{0, "stop", "hanging +3s"},
			happening{3 * time.Second, "deadline", "hanging: kill"}, happening{0, "ended", "stopped: done"})},
		{"one that is to be replaced hands over, ends, and the next starts at once", nil, append(up[:4:4],
			happening{0, "replace", "handover: hand over +2s"}, happening{time.Second, "silent", "handover +1s"}, happening{0, "replace", "handover +1s"},
			happening{0, "drained", "stopping: terminate +3s"}, happening{0, "replace", "stopping +3s"}, happening{0, "ended", "back-off +0s"},
			happening{0, "deadline", "back-off: start"}, happening{0, "started", "starting"}, happening{0, "ended", "back-off +50ms"})},
		{"requests that take too long do not keep the next one away, nor does one that ignores its end", nil, append(up[:4:4],
			happening{0, "replace", "handover: hand over +2s"}, happening{2 * time.Second, "deadline", "stopping: terminate +3s"},
			happening{3 * time.Second, "deadline", "stopping: kill"}, happening{0, "ended", "back-off +0s"})},
		{"one that ends by itself while it hands over is followed at once too", nil, append(up[:4:4],
			happening{0, "replace", "handover: hand over +2s"}, happening{0, "ended", "back-off +0s"})},
		{"a stop goes before a replacement", nil, append(up[:4:4],
			happening{0, "replace", "handover: hand over +2s"}, happening{0, "stop", "handover +2s"}, happening{0, "drained", "stopping: terminate +3s"},
			happening{0, "ended", "stopped: done"})},
		{"after a stop there is nothing to replace", nil, append(up[:4:4],
			happening{0, "stop", "draining: drain +5s"}, happening{0, "replace", "draining +5s"}, happening{0, "ended", "stopped: done"})},
		{"one that does not serve is not replaced", nil, []happening{
			{0, "replace", "waiting +0s"}, {0, "deadline", "waiting: start"}, {0, "started", "starting"}, {0, "replace", "starting"}}},
		{"what comes late changes nothing", nil, append(up[:4:4],
			happening{0, "ended", "back-off +50ms"}, happening{0, "live", "back-off +50ms"}, happening{0, "silent", "back-off +50ms"},
			happening{0, "stop", "stopped: done"}, happening{0, "live", "stopped"}, happening{0, "ended", "stopped"}, happening{0, "deadline", "stopped"})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			numbers := testTimings
			if tt.timings != nil {
				tt.timings(&numbers)
			}
			now := time.Unix(1e9, 0)
			m := newMachine(numbers, now)
			for i, h := range tt.story {
				now = now.Add(h.after)
				var act action
				m, act = m.step(eventNames[h.event], now)
				got := string(m.phase)
				if act != actNone {
					got += ": " + actionNames[act]
				}
				if !m.deadline.IsZero() {
					got += fmt.Sprintf(" +%v", m.deadline.Sub(now))
				}
				if got != h.want {
					t.Fatalf("%d: %s after %v: got %q, want %q", i+1, h.event, h.after, got, h.want)
				}
			}
		})
	}
}

// Whatever happens in whatever order: a stop always leads to the end within the time that it may take, and no Envoy is started
// while another runs.
func FuzzStep(f *testing.F) {
	f.Add([]byte{0, 1, 3, 8, 7, 6})
	f.Add([]byte{0, 3, 6, 0x36, 0x36, 0x50, 9})
	f.Add([]byte{0, 2, 0, 1, 5, 5, 0, 6, 0, 1, 8, 0, 0, 6})
	f.Fuzz(func(t *testing.T, story []byte) {
		now := time.Unix(1e9, 0)
		m := newMachine(testTimings, now)
		running := false
		do := func(ev event) {
			var act action
			if (ev == evEnded || ev == evLive || ev == evSilent || ev == evFrozen || ev == evShedding) && !running || ev == evDeadline && (m.deadline.IsZero() || now.Before(m.deadline)) || ev == evStarted || ev == evCannotStart {
				return
			}
			if ev == evEnded {
				running = false
			}
			m, act = m.step(ev, now)
			if act == actStart {
				if running {
					t.Fatalf("started beside another, in %s", m.phase)
				}
				running = true
				m, act = m.step(evStarted, now)
			}
			if act == actDone && running || m.phase == PhaseStopped && running {
				t.Fatal("done while it runs")
			}
			if act == actKill {
				running = false
				m, _ = m.step(evEnded, now)
			}
		}
		for _, b := range story {
			now = now.Add(time.Duration(b>>4) * time.Second)
			do(event(b) % (evStop + 1))
		}
		do(evStop)
		limit := now.Add(testTimings.drain + 2*testTimings.grace)
		for m.phase != PhaseStopped {
			if m.deadline.IsZero() || now.After(limit) {
				t.Fatalf("in %s without an end in sight", m.phase)
			}
			now = m.deadline
			do(evDeadline)
		}
	})
}
