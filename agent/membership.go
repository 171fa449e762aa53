package agent

import (
	"context"
	"errors"
	"time"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// This file says when a membership (member.go) ends and the next one begins.

// keepMember keeps a membership for the settings in force; a change of them, of the address, or of what Envoy can take makes a new one.
//
// Some of what the node says counts only when istiod makes the WorkloadEntry (entryFacts). When that changes, because of the settings or because Envoy came
// or has gone for good, the machine leaves, waits until istiod has removed the entry, and joins again.
func (a *Agent) keepMember(ctx context.Context) error {
	for ctx.Err() == nil {
		cfg, announce := a.config(), a.envoy.now().announced
		visit, wait := a.wayToEntry(cfg, entryFor(cfg, a.hostname, announce))
		if wait > 0 {
			a.log.Info("waiting until istiod has removed this machine's WorkloadEntry: labels count only when it is made", "seconds", wait.Seconds())
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue // settings and Envoy may be others by now
		}
		m, err := newMember(cfg, memberConfig{
			hostname:  a.hostname,
			envoy:     a.envoy,
			drained:   a.drainedNow().verdict(),
			announce:  announce,
			visit:     visit,
			takeNames: a.takeNames,
			onChange:  a.poke,
			record:    a.verdicts.add,
			onAnswer:  a.noteAnswer,
			logs:      a.logs,
			getenv:    a.opts.Getenv,
		})
		if err != nil {
			return err
		}
		memberCtx, cancel := context.WithCancelCause(ctx)
		a.mu.Lock()
		a.member = m
		m.replace, m.term = cancel, memberCtx
		close(a.nextMember)
		a.nextMember = make(chan struct{})
		m.drained = a.drained.verdict() // it may have changed meanwhile
		if !a.shutdownAt.IsZero() && !m.visit {
			m.leaving = shutdownReason
		}
		superseded := a.cfg != cfg
		a.mu.Unlock()
		if superseded || a.envoy.now().announced != announce {
			cancel(errReloaded)
		}
		err = m.run(memberCtx)
		a.noteEnd(m)
		cancel(nil)
		if dir := cfg.Paths.OutputCerts; a.config().Paths.OutputCerts != dir {
			a.giveBackOutput(dir)
		}
		if err != nil && !errors.Is(err, errAddressChanged) {
			return err
		}
	}
	return nil
}

// giveBackOutput leaves a folder that applications are no longer to read from as it was before. Its member has ended.
func (a *Agent) giveBackOutput(dir string) {
	changed, err := identity.RemoveOutput(dir)
	if err != nil {
		a.log.Warn("folder of certificates is not as it was before", "dir", dir, "cause", err)
		return
	}
	a.log.Info("folder of certificates given back", "dir", dir, "files", changed)
}

// Reasons for another member to take a member's place.
var (
	errReloaded     = errors.New("settings were reloaded")
	errEnvoyChanged = errors.New("an Envoy came, or has gone for good")
	errVisited      = errors.New("istiod has seen this machine leave")
)

// envoyChanged follows Envoy's presence.
func (a *Agent) envoyChanged(from, to presence) {
	a.mu.Lock()
	m := a.member
	unfit, down := a.envoy.unfit(), to.down(time.Now())
	// Another reason while it stays unfit is no news: each report rewrites the entry in the API server.
	fitChanged, downChanged := (unfit == "") != (a.unfit == ""), down != a.envoyDown
	a.unfit, a.envoyDown = unfit, down
	remember := a.joined != nil && a.joined.Served != to.proven
	a.mu.Unlock()
	if remember {
		a.remember(func(j *joinState) { j.Served = to.proven })
	}
	if from.announced != to.announced && m != nil && m.envoy != to.announced {
		m.leave(context.Background(), "this machine joins again, with another answer to mutual TLS")
		m.replace(errEnvoyChanged)
	}
	if from.announced != to.announced || from.proven != to.proven || downChanged {
		a.capture.look(context.Background())
	}
	if fitChanged && m != nil {
		m.tellHealth()
	}
	if from != to {
		a.poke()
	}
}

// wayToEntry decides for this machine as it is now, and notes it for the status.
func (a *Agent) wayToEntry(cfg *bootstrap.Config, wanted *entryFacts) (visit bool, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var known *entryFacts
	if a.joined != nil && cfg.AutoRegisterGroup != "" {
		known = a.joined.Entry
	}
	visit, wait = wayToEntry(known, wanted, a.entryLeft, cfg.EntryGrace, time.Now())
	a.rejoining = visit || wait > 0
	return visit, wait
}

// wayToEntry decides how to come to a WorkloadEntry of the wanted facts where istiod made the last one with those known (nil: not known). It is pure.
//
// istiod removes an entry a grace period after it saw the machine's last stream end, and tells nobody. So the time counts from an end that istiod is
// known to have seen (left); without one, as when istiod was away, the machine first has to come by and leave for it to see.
func wayToEntry(known, wanted *entryFacts, left time.Time, grace time.Duration, now time.Time) (visit bool, wait time.Duration) {
	switch {
	case known == nil || known.same(wanted):
		return false, 0
	case left.IsZero():
		return true, 0
	}
	return false, max(0, grace-now.Sub(left))
}

// noteAnswer marks that istiod has answered a member: there is a WorkloadEntry, and of a member that did not come to leave it has that one's facts.
func (a *Agent) noteAnswer(m *member) {
	if m.visit {
		m.replace(errVisited)
		return
	}
	a.mu.Lock()
	a.entryLeft, a.rejoining = time.Time{}, false
	m.answered = true
	other := a.joined != nil && !a.joined.Entry.same(m.entry)
	a.mu.Unlock()
	if other {
		a.remember(func(j *joinState) { j.Entry = m.entry })
	}
}

// noteEnd marks the end of a member, and whether istiod saw it. One that istiod never answered changes nothing.
func (a *Agent) noteEnd(m *member) {
	client := m.client()
	parted := client != nil && client.Parted()
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case parted:
		a.entryLeft = time.Now()
	case m.answered:
		a.entryLeft = time.Time{}
	}
}
