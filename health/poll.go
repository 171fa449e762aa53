package health

import (
	"context"
	"fmt"
	"time"
)

// cutGrace is what a probe may take beyond its time-out to notice it. Longer, and it counts as failed without its say.
const cutGrace = 250 * time.Millisecond

// A check asks once. It honours ctx, whose deadline is the probe's time-out; its error says what was asked and what came
// of it ("GET http://10.99.0.2:8080/healthz: connection refused").
type check interface {
	run(ctx context.Context) error
	kind() string
	target() string
}

// poller is the watcher of a check that has to be asked again and again.
type poller struct {
	check
	delay, every, within time.Duration
	thresholds           rule
}

func (p *poller) rule() rule { return p.thresholds }

// watch asks at once after the delay, then once per period. A check that takes longer than a period is not overtaken:
// the next one follows at the next tick. One that outlives its time-out (a process that cannot be killed because its disk
// hangs) counts as failed then and once more per period, and no other is begun until it is gone.
func (p *poller) watch(ctx context.Context, emit func(error)) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(p.delay):
	}
	ticks := time.NewTicker(p.every)
	defer ticks.Stop()
	for {
		p.once(ctx, emit)
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// once runs the check and returns when it is done, or ctx is.
func (p *poller) once(ctx context.Context, emit func(error)) {
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, p.within)
		defer cancel()
		done <- p.run(ctx)
	}()
	overdue := time.NewTimer(p.within + cutGrace)
	defer overdue.Stop()
	stuck := false
	for {
		select {
		case err := <-done:
			if !stuck { // else its outcome is old news
				emit(err)
			}
			return
		case <-overdue.C:
			stuck = true
			emit(fmt.Errorf("%s: not done after %s, and cannot be stopped", p.target(), time.Since(began).Round(time.Second/10)))
			overdue.Reset(p.every)
		case <-ctx.Done():
			// Wait for the check to notice, but not for one that is stuck: that would keep the daemon from stopping.
			select {
			case <-done:
			case <-time.After(cutGrace):
			}
			return
		}
	}
}
