package agent

import (
	"context"
	"time"

	"wingman/systemd"
)

// This file is about orderly shutdowns and reboots of the machine: the mesh hears of them before systemd stops anything. Its stop jobs come to the agent and
// to the applications at the same time, and peers would meet a closed application until they have heard.

const (
	// shutdownReason is what istiod is told.
	shutdownReason = "this machine shuts down"
	// delayRetry is how long to wait before systemd-logind is asked again for what it refused, or a lost bus is dialled.
	delayRetry = time.Minute
)

// delayShutdowns keeps systemd-logind's word that it waits for goodbye.
func (a *Agent) delayShutdowns(ctx context.Context) error {
	said := ""
	for {
		err := systemd.DelayShutdowns(ctx, "Wingman", "peers are told before applications stop", systemd.Shutdown{Begins: a.goodbye, CalledOff: a.hereAgain})
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			a.log.Info("shutdowns are not delayed: peers may meet applications that have stopped until they have heard", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delayRetry):
		}
	}
}

// goodbye takes this machine out of load balancing, and returns when peers have heard or ctx ends. The stop that follows waits for what is left of
// drain.propagation.
func (a *Agent) goodbye(ctx context.Context) {
	a.mu.Lock()
	if a.leaving { // a stop does it already
		a.mu.Unlock()
		return
	}
	a.shutdownAt = time.Now()
	m := a.member
	a.mu.Unlock()
	a.log.Info("the machine is about to shut down: peers are told first")
	defer a.poke()
	if m == nil || m.visit {
		return
	}
	m.leave(ctx, shutdownReason)
	if !m.wasHealthy() {
		return
	}
	select {
	case <-time.After(a.config().DrainPropagation):
	case <-ctx.Done():
	}
}

// hereAgain takes goodbye back.
func (a *Agent) hereAgain() {
	a.mu.Lock()
	a.shutdownAt = time.Time{}
	m, leaving := a.member, a.leaving
	a.mu.Unlock()
	if m == nil || leaving {
		return
	}
	a.log.Info("the shutdown was called off")
	m.stay()
	a.poke()
}

// farewellReason is what istiod is told at a stop. The reason of a shutdown stays, as another is no news.
func (a *Agent) farewellReason() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.shutdownAt.IsZero() {
		return shutdownReason
	}
	return "wingman on this machine stops"
}

// heardSince is how long peers have had already to hear of a stop.
func (a *Agent) heardSince() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shutdownAt.IsZero() {
		return 0
	}
	return time.Since(a.shutdownAt)
}
