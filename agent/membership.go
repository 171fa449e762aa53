package agent

import (
	"context"
	"errors"
	"time"

	"wingman/bootstrap"
)

// This file says when a membership (member.go) ends and the next one begins.

// keepMember keeps a membership for the settings in force; a change of them, of the address, or of what Envoy can take makes a new one.
//
// Some of what the node says counts only when istiod makes the WorkloadEntry (entryFacts). So when that changes, because of the settings or because Envoy
// came or has gone for good, the machine leaves, waits until istiod has removed the entry, and joins again.
func (a *Agent) keepMember(ctx context.Context) error {
	for ctx.Err() == nil {
		cfg, announce := a.config(), a.envoy.now().announced
		if !a.awaitEntryGone(ctx, cfg, entryFor(cfg, a.hostname, announce)) {
			return nil
		}
		m, err := newMember(cfg, memberConfig{
			hostname:  a.hostname,
			envoy:     a.envoy,
			drained:   a.drainedNow().verdict(),
			announce:  announce,
			takeNames: a.takeNames,
			onChange:  a.poke,
			onAnswer:  a.noteEntry,
			logs:      a.logs,
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
		superseded := a.cfg != cfg
		a.mu.Unlock()
		if superseded || a.envoy.now().announced != announce {
			cancel(errReloaded)
		}
		err = m.run(memberCtx)
		a.noteEntryGoing()
		cancel(nil)
		if err != nil && !errors.Is(err, errAddressChanged) {
			return err
		}
	}
	return nil
}

// Reasons for another member to take a member's place.
var (
	errReloaded     = errors.New("settings were reloaded")
	errEnvoyChanged = errors.New("an Envoy came, or has gone for good")
)

// envoyChanged follows Envoy's presence.
func (a *Agent) envoyChanged(from, to presence) {
	a.mu.Lock()
	m := a.member
	unfit, down := a.envoy.unfit(), to.down(time.Now())
	fitChanged, downChanged := unfit != a.unfit, down != a.envoyDown
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

// noteEntryGoing notes that the stream which held the WorkloadEntry has ended.
func (a *Agent) noteEntryGoing() {
	a.mu.Lock()
	a.entryLeft = time.Now()
	a.mu.Unlock()
}

// awaitEntryGone waits until istiod has removed an entry of other facts; false when ctx ends first. istiod tells nobody when it
// does so: it waits for its grace period from the end of the stream. An entry of before this start is given the whole of it.
func (a *Agent) awaitEntryGone(ctx context.Context, cfg *bootstrap.Config, entry *entryFacts) bool {
	a.mu.Lock()
	left := a.entryLeft
	other := a.joined != nil && a.joined.Entry != nil && !a.joined.Entry.same(entry)
	a.mu.Unlock()
	if !other || cfg.AutoRegisterGroup == "" {
		return true
	}
	if left.IsZero() {
		left = a.started
	}
	wait := cfg.EntryGrace - time.Since(left)
	if wait <= 0 {
		return true
	}
	a.log.Info("waiting until istiod has removed this machine's WorkloadEntry: labels count only when it is made", "seconds", wait.Seconds())
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}
