package agent

import (
	"cmp"
	"errors"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/proxy"
)

// Patience with Envoy.
const (
	// crashGrace is how long a served Envoy may be away before the workload counts as unhealthy: the supervisor starts a crashed one again
	// within 100 ms, and taking the endpoint out of every peer for that would cost more than it saves. One that hangs gets none.
	crashGrace = 3 * time.Second
	// goneAfter is how long program or supervisor must be missing before Envoy counts as gone for good: an upgrade of its package and a
	// restart of its unit take less.
	goneAfter = 30 * time.Second
)

// sighting is what one look at Envoy saw.
type sighting struct {
	program    error       // why there is no program to run; nil: there is one
	supervisor error       // why there is no supervisor; nil: one runs
	proxy      proxy.State // the supervisor's
	configured bool        // Envoy has clusters and listeners of istiod
	deaf       string      // why Envoy does not serve whatever its supervisor says, which may be the one that hangs; empty: it answers
}

// live reports whether Envoy serves.
func (s sighting) live() bool {
	return s.supervisor == nil && s.proxy.Phase == proxy.PhaseLive && s.configured && s.deaf == ""
}

// missing reports whether nobody could start an Envoy. One that crashes in a loop is not missing.
func (s sighting) missing() bool { return s.program != nil || s.supervisor != nil }

// presence is what the agent makes of its sightings of Envoy: what the mesh is told, and how much may be captured.
//
//	            program is there, or Envoy is live                          live, joined
//	absent ────────────────────────────────────────► announced ────────────────────────────► announced and proven
//	   ▲                                                 │                                              │
//	   └──── switched off, or nobody to start it for goneAfter ◄────────────────────────────────────────┘
//
// A crash changes none of this: traffic of a machine whose Envoy is proven goes through Envoy or nowhere.
type presence struct {
	announced bool      // the mesh is told that this machine takes mutual TLS
	proven    bool      // it was live since it was announced: traffic may be captured
	live      bool      // it serves now
	lost      time.Time // since when a proven Envoy is not live; zero: it is live, or not proven
	hung      bool      // it was found to hang since it was lost
	missed    time.Time // since when nobody could start it; zero: somebody can
	cause     string    // why it is not live
}

// firstPresence is what a starting agent takes for granted: an Envoy that can be started will be, and one that served before this start
// serves again.
func firstPresence(s sighting, proven bool, now time.Time) presence {
	p := presence{announced: s.program == nil, proven: proven && s.program == nil}
	if p.proven {
		p.lost = now
	}
	return p.next(s, now)
}

// next takes a sighting in. It is pure.
func (p presence) next(s sighting, now time.Time) presence {
	p.live, p.cause = s.live(), ""
	if p.live {
		p.announced, p.proven = true, true
		p.lost, p.missed, p.hung = time.Time{}, time.Time{}, false
		return p
	}
	p.cause, p.hung = s.why(), p.hung || s.hangs()
	if p.proven && p.lost.IsZero() {
		p.lost = now
	}
	switch {
	case !s.missing():
		p.missed = time.Time{}
	case p.missed.IsZero():
		p.missed = now
	}
	if errors.Is(s.program, envoy.ErrDisabled) || !p.missed.IsZero() && now.Sub(p.missed) >= goneAfter {
		p.announced, p.proven, p.lost, p.hung = false, false, time.Time{}, false
	}
	return p
}

// why says why Envoy does not serve.
func (s sighting) why() string {
	switch {
	case s.program != nil:
		return s.program.Error()
	case s.supervisor != nil:
		return s.supervisor.Error() + ": start wingman-proxy.service, or wingman run --with-proxy"
	case s.deaf != "":
		return s.deaf
	case s.proxy.Phase == proxy.PhaseLive:
		return "it waits for its first configuration"
	}
	return cmp.Or(s.proxy.Cause, "it is "+string(s.proxy.Phase))
}

// openAfter is how long an Envoy must be away before traffic may go past it, where the settings say so.
const openAfter = time.Second

// down reports whether an Envoy that traffic is captured for is away for longer than a restart takes.
func (p presence) down(now time.Time) bool {
	return p.proven && !p.live && now.Sub(p.lost) >= openAfter
}

// hangs reports whether the supervisor is about to end an Envoy that does not answer: it has been given time already.
func (s sighting) hangs() bool { return s.supervisor == nil && s.proxy.Phase == proxy.PhaseHanging }

// unfit says why this machine must not be sent traffic whatever its workload says; empty when it may. The mesh was told that Envoy takes the
// traffic: while none does, there is nobody there.
func (p presence) unfit(now time.Time) string {
	if !p.announced || p.live || p.proven && !p.hung && now.Sub(p.lost) < crashGrace {
		return ""
	}
	return "Envoy does not serve: " + p.cause
}
