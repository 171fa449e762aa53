package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"wingman/agent/envoy"
)

const (
	// handoverFor is how long requests in flight have to end before an Envoy is replaced. New connections wait meanwhile, so it is short: with the
	// start of the next one clients should be served by their kernel's second try after a second, or by the third after three.
	handoverFor = 2 * time.Second
	judgeMost   = 5 * time.Second
)

// A replacement is the wish to put another Envoy in the place of the one that serves.
//
//	tried (--version, --mode validate) ──► handover ──► started ──► judged ──► done
//	    │ refused: nothing happens             it ended, or has fewer listeners │ the one from before is started again, from the file that it ran
//	    └──────────────────────────────────────────────────────────────────────►┴ refused
type replacement struct {
	running string              // only an Envoy of this program, and only where another file lies there now; empty: any
	result  chan<- replaced     // gets one
	begun   bool                // the one from before was told to go
	before  chan envoy.Overview // holds one, of the one from before
}

// replaced is what became of a replacement.
type replaced struct {
	said string
	err  error
}

var errStopped = errors.New("wingman proxy ends")

// consider begins a replacement, or says why there is none.
func (s *Supervisor) consider(ctx context.Context, m machine, r *replacement) {
	state := s.State()
	leave := func(said string, err error) { r.result <- replaced{said, err} }
	switch {
	case s.next != nil:
		leave("", errors.New("a replacement is under way"))
		return
	case r.running != "" && s.envoy == nil:
		leave("no Envoy runs; the next start takes what is there then", nil)
		return
	case r.running != "" && state.Program != r.running:
		leave(fmt.Sprintf("the Envoy that runs is %s: it is left alone", state.Program), nil)
		return
	case r.running != "" && outdated(state.PID, r.running) == "":
		leave("Envoy runs from that file already", nil)
		return
	case m.phase != PhaseLive:
		leave("", fmt.Errorf("there is no Envoy that serves (phase %s)", m.phase))
		return
	}
	p, err := s.plan(ctx, s.wanted)
	if err != nil {
		s.refuse(err)
		leave("", err)
		return
	}
	r.before = make(chan envoy.Overview, 1)
	s.next = r
	s.log.Info("Envoy is to be replaced; the next one is tried first", "pid", state.PID, "program", p.program)
	s.assist(ctx, func(ctx context.Context, admin *envoy.Admin) {
		o, err := admin.Overview(ctx)
		if err == nil {
			err = p.try(ctx)
		}
		r.before <- o
		s.judged <- err // it holds one, and there is one replacement
	})
}

// decide takes in what is to be said against the next Envoy, of its trial or of its start, and reports whether the one that serves is to be
// replaced.
func (s *Supervisor) decide(m machine, err error) bool {
	switch {
	case s.next == nil:
		return false
	case s.next.begun && err == nil:
		state := s.State()
		s.settle(fmt.Sprintf("replaced: Envoy %s runs as process %d", state.Version, state.PID), nil)
		return false
	case s.next.begun:
		s.revert(err)
		return s.spare.used
	case err == nil && m.phase != PhaseLive:
		err = fmt.Errorf("the present one does not serve (phase %s)", m.phase)
	}
	if err != nil {
		s.settle("", fmt.Errorf("the next Envoy is refused, and the one that runs stays: %w", err))
		return false
	}
	state := s.State()
	if err := s.spare.keep(state.PID, state.Program); err != nil {
		s.spare.drop()
		s.log.Warn("there will be no way back to the Envoy from before", "cause", err)
	}
	s.next.begun = true
	return true
}

// judge has a look at an Envoy that took another's place: one that refuses listeners that the one before it had does not do.
func (s *Supervisor) judge() {
	if s.next == nil || !s.next.begun {
		return
	}
	before := s.next.before
	s.assist(context.Background(), func(ctx context.Context, admin *envoy.Admin) {
		ctx, cancel := context.WithTimeout(ctx, judgeMost)
		defer cancel()
		was := <-before
		tick := time.NewTicker(drainPoll)
		defer tick.Stop()
		for {
			now, err := admin.Overview(ctx)
			switch {
			case err == nil && now.LDSRejected+now.CDSRejected > 0 && now.Listeners < was.Listeners:
				s.judged <- fmt.Errorf("it refuses configuration of istiod: it has %d listeners, the one from before had %d", now.Listeners, was.Listeners)
				return
			case err == nil && now.Configured() && now.Listeners >= was.Listeners:
				s.judged <- nil
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done(): // not so yet; the one from before would have to begin as this one does
				s.judged <- nil
				return
			}
		}
	})
}

// mourn takes in that there is no Envoy, or cannot be one now.
func (s *Supervisor) mourn(m machine, err error) {
	switch {
	case s.next == nil || m.replace && s.envoy == nil && (m.phase == PhaseHandover || m.phase == PhaseStopping):
	case s.next.begun:
		s.revert(err)
	default:
		s.settle("", errors.New("the Envoy that runs ended before it could be replaced"))
	}
}

// revert goes back to the Envoy from before.
func (s *Supervisor) revert(err error) {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	if s.spare.used = s.spare.file != nil; s.spare.used {
		err = fmt.Errorf("the next Envoy does not do, and the one from before is started again: %w", err)
	}
	s.settle("", err)
}

// settle ends the replacement under way, if there is one.
func (s *Supervisor) settle(said string, err error) {
	if s.next == nil {
		return
	}
	r := s.next
	s.next = nil
	if err == nil {
		s.spare.drop()
		s.log.Info("Envoy is replaced", "pid", s.State().PID, "version", s.State().Version)
	}
	if !errors.Is(err, errStopped) {
		s.refuse(err)
	}
	r.result <- replaced{said, err}
}

// refuse notes why there was no replacement; nil: there was.
func (s *Supervisor) refuse(err error) {
	text := ""
	if err != nil {
		text = err.Error()
		s.log.Error("Envoy is not replaced", "cause", err)
	}
	s.mu.Lock()
	changed := s.state.Refused != text
	s.state.Refused = text
	s.mu.Unlock()
	if changed {
		s.tell()
	}
}

// assist runs something for the present Envoy, whose end cuts it short and waits for it.
func (s *Supervisor) assist(ctx context.Context, do func(context.Context, *envoy.Admin)) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	end := s.cancel
	s.cancel = func() { cancel(); end() }
	admin := s.admin
	s.helpers.Go(func() { do(ctx, admin) })
}

// shed has the present Envoy get rid of what it serves, and tells when that is done.
func (s *Supervisor) shed(ctx context.Context, how func(context.Context, *envoy.Admin, *slog.Logger)) {
	s.assist(ctx, func(ctx context.Context, admin *envoy.Admin) {
		how(ctx, admin, s.log)
		s.drained <- struct{}{} // it holds one, and each Envoy sheds once
	})
}
