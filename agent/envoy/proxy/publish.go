package proxy

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"wingman/agent/envoy"
)

// moved notes that the machine went from one state to the next, and says what is worth saying.
func (s *Supervisor) moved(from, to machine) machine {
	if from.phase == to.phase && from.deadline.Equal(to.deadline) {
		return to
	}
	if from.phase != to.phase {
		s.sayPhase(from, to)
		if to.phase == PhaseLive {
			s.serves()
			s.judge()
		}
	}
	s.publish(to)
	return to
}

// sayPhase logs a transition once.
func (s *Supervisor) sayPhase(from, to machine) {
	log := s.log.With("from", from.phase, "to", to.phase)
	if s.envoy != nil {
		log = log.With("pid", s.envoy.pid)
	}
	switch to.phase {
	case PhaseStarting:
		log.Info("Envoy runs", "program", s.State().Program)
	case PhaseLive:
		log.Info("Envoy is live", "seconds", to.since.Sub(from.since).Seconds())
	case PhaseHanging:
		log.Error("Envoy does not answer; it is aborted", "seconds", to.hang.Seconds())
	case PhaseBackoff:
		log.Info("Envoy is started again soon", "next", time.Until(to.deadline).Round(time.Millisecond))
	case PhaseHandover:
		log.Info("Envoy is about to be replaced; what comes now waits for the next one", "at_most", to.deadline.Sub(to.since))
	case PhaseDraining:
		log.Info("Envoy drains", "at_most", to.deadline.Sub(to.since))
	case PhaseStopping:
		log.Info("Envoy is told to end")
	default: // waiting was said with its cause, stopped with Envoy's end
		log.Debug("no Envoy runs")
	}
}

// errExpected is wrapped by causes that are no fault: what a start needs is on its way, or is not wanted.
var errExpected = errors.New("it is waited for")

// sayCannotStart logs why Envoy cannot be started, each cause once.
func (s *Supervisor) sayCannotStart(err error) {
	if err.Error() == s.said {
		return
	}
	s.said = err.Error()
	level := slog.LevelWarn
	if errors.Is(err, errExpected) || errors.Is(err, envoy.ErrDisabled) || errors.Is(err, envoy.ErrNoProgram) && !s.cfg.Required {
		level = slog.LevelInfo
	}
	s.log.Log(context.Background(), level, "Envoy is not started", "cause", err)
}

// publish makes the machine's state known.
func (s *Supervisor) publish(m machine) {
	s.mu.Lock()
	was := s.state
	s.state.Phase, s.state.Since, s.state.NextStart = m.phase, m.since, time.Time{}
	switch m.phase {
	case PhaseBackoff:
		s.state.NextStart = m.deadline
	case PhaseLive:
		s.state.Cause = ""
	}
	changed := s.state != was
	s.mu.Unlock()
	if changed {
		s.tell()
	}
}

// publishCause notes why Envoy cannot be started.
func (s *Supervisor) publishCause(cause string) {
	s.mu.Lock()
	changed := s.state.Cause != cause
	s.state.Cause = cause
	s.mu.Unlock()
	if changed {
		s.tell()
	}
}

// noteWord notes what Envoy says of itself, and what is to be seen of it.
func (s *Supervisor) noteWord(a answer) {
	s.mu.Lock()
	was := s.state
	s.state.EnvoyState, s.state.Version = cmp.Or(a.state, was.EnvoyState), cmp.Or(a.version, was.Version)
	s.state.Outdated = outdated(was.PID, was.Program)
	changed := s.state != was
	s.mu.Unlock()
	if changed {
		s.tell()
	}
}

func (s *Supervisor) tell() {
	state := s.State()
	writeState(s.cfg.RunDir, state, s.log)
	if s.cfg.OnState != nil {
		s.cfg.OnState(state)
	}
}
