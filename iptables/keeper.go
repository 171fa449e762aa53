package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"
)

// KeeperConfig is what a Keeper needs.
type KeeperConfig struct {
	Applier *Applier
	// Plan says what should be in the kernel. It is called from Run's goroutine: at the start, after Refresh, and when Files, the
	// machine's addresses or the ports that root listens on (an sshd may have moved) change. On an error the last plan stays.
	Plan func(ctx context.Context) (Rules, error)
	// Files are watched: their change asks for a new plan (resolv.conf).
	Files []string
	// MaxRepairs is how often a minute rules that somebody else took out are put back; zero means 6.
	MaxRepairs int
	Log        *slog.Logger // nil discards
	// OnChange is told of every change of State, from Run's goroutine; it must not block. May be nil.
	OnChange func(KeeperState)
}

// KeeperState is what the Keeper is doing, for status.
type KeeperState struct {
	Level     Level        `json:"level"`
	InPlace   bool         `json:"inPlace"`   // the kernel is as planned
	Trial     bool         `json:"trial"`     // other rules are on trial: nothing is changed meanwhile
	Contested bool         `json:"contested"` // somebody keeps taking rules out: left alone until RetryAt
	RetryAt   time.Time    `json:"retryAt,omitzero"`
	Repairs   int          `json:"repairs"` // since the start
	RepairAt  time.Time    `json:"repairAt,omitzero"`
	Lost      []Difference `json:"lost,omitempty"`   // what was missing at the last repair, at most 5
	LostBy    string       `json:"lostBy,omitempty"` // who changed nf_tables before it
	Open      []string     `json:"open,omitempty"`   // directions that go past a proxy that is down
	Error     string       `json:"error,omitempty"`  // why the kernel is not as planned
}

// A Keeper keeps the kernel to the plan: it applies it, notices when somebody else changes our rules (nf_tables tells, legacy
// is polled), and puts them back.
//
//	          plan differs                 rules vanish, budget left
//	planned ───────────────► in place ◄──────────────────────────────┐
//	   ▲  apply fails: retry    │  rules vanish, budget spent        │
//	   └────────────────────────┴──────────► contested ──── a minute ┘
//
// It runs in the network namespace of the goroutine that calls Run. Ending Run leaves the rules as they are.
type Keeper struct {
	applier  *Applier
	plan     func(ctx context.Context) (Rules, error)
	files    []string
	log      *slog.Logger
	onChange func(KeeperState)
	limit    repairLimit

	refresh chan struct{}
	ready   chan struct{}

	mu    sync.Mutex // guards state
	state KeeperState

	// Only Run's goroutine uses these.
	rules   Rules
	planned bool          // rules holds a plan
	stale   bool          // the plan may have to change
	pending bool          // the plan is still to be put in
	legacy  bool          // the rules are with iptables-legacy
	sum     uint64        // fingerprint of the kernel when it was last as planned
	lostBy  string        // who changed nf_tables since then
	asked   bool          // whose loss this is: the kernel's word of it may be on its way
	retry   time.Duration // wait after the last failure, zero after a success

	listeners  uint64        // where root listened when the plan was made (listenersOfRoot)
	sshPoll    time.Duration // how often that is looked at
	generation uint32        // of nf_tables after our own last change
}

// Times of the Keeper.
const (
	settle     = 50 * time.Millisecond  // changes come in bursts: look when they are over
	legacyPoll = 500 * time.Millisecond // legacy tells nobody
	slowPoll   = 30 * time.Second       // in case that a notification was lost
	trialPoll  = time.Second
	sshPoll    = 2 * time.Second // an sshd that moves: one list of listening sockets
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// NewKeeper checks the configuration; nothing is touched before Run.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Applier == nil || cfg.Plan == nil {
		return nil, errors.New("keeper of the capture rules: an Applier and a Plan are needed")
	}
	if cfg.MaxRepairs < 0 {
		return nil, fmt.Errorf("keeper of the capture rules: %d repairs a minute: expected 1 or more", cfg.MaxRepairs)
	}
	k := &Keeper{
		applier: cfg.Applier, plan: cfg.Plan, files: cfg.Files, log: cfg.Log, onChange: cfg.OnChange,
		limit: repairLimit{max: cfg.MaxRepairs}, refresh: make(chan struct{}, 1), ready: make(chan struct{}),
	}
	if k.limit.max == 0 {
		k.limit.max = 6
	}
	k.sshPoll = sshPoll
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	return k, nil
}

// Refresh asks for a new plan, soon. It never blocks.
func (k *Keeper) Refresh() {
	select {
	case k.refresh <- struct{}{}:
	default:
	}
}

// Ready is closed when the rules are in place for the first time.
func (k *Keeper) Ready() <-chan struct{} { return k.ready }

// State returns what the Keeper is doing.
func (k *Keeper) State() KeeperState {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// Run keeps the rules until ctx ends, and returns nil then. It fails only when it cannot watch the machine at all.
func (k *Keeper) Run(ctx context.Context) error {
	events, stop, err := k.listen(ctx)
	if err != nil {
		return err
	}
	defer stop()
	look := time.NewTimer(0)
	defer look.Stop()
	poll := time.NewTicker(slowPoll)
	defer poll.Stop()
	ssh := time.NewTicker(k.sshPoll)
	defer ssh.Stop()
	k.stale = true
	soon := true // a look is due already: further events must not put it off
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			k.stale = k.stale || e.facts
			if e.by != "" && e.generation > k.generation {
				k.lostBy = e.by
			}
			if !soon {
				soon = true
				look.Reset(settle)
			}
		case <-k.refresh:
			k.stale, soon = true, true
			look.Reset(0)
		case <-ssh.C:
			if !soon && k.listenersMoved() {
				soon = true
				look.Reset(0)
			}
		case <-poll.C:
			soon = true
			look.Reset(0)
		case <-look.C:
			soon = false
			if next := k.look(ctx, time.Now()); next > 0 {
				look.Reset(next)
			}
			poll.Reset(k.pollEvery())
		}
	}
}

// onTrial reports whether somebody tries other rules out now. What comes after that is planned anew: they may have been
// confirmed, and their configuration is then the one to keep. A guardian that does not answer is taking them back, or has just ended: the next look tells.
func (k *Keeper) onTrial(ctx context.Context) bool {
	_, err := TrialUntil(ctx)
	trial := !errors.Is(err, ErrNoTrial)
	if was := k.State().Trial; was != trial {
		k.update(func(s *KeeperState) { s.Trial, s.InPlace = trial, false })
		if was {
			k.afterTrial()
		}
	}
	return trial
}

// listenersMoved reports whether root listens elsewhere than when it was last asked, and has the plan made anew then: an sshd
// may have come, gone or moved. Sessions need no watch of their own: as long as their port is listened on it is guarded, and
// when that ends, the new plan finds those that go on.
func (k *Keeper) listenersMoved() bool {
	sum, err := listenersOfRoot()
	if err != nil || sum == k.listeners {
		return false
	}
	k.listeners = sum
	k.stale = true
	return true
}

// afterTrial has the plan made and put in again, which is also what helps a machine whose trial nobody guards any more.
func (k *Keeper) afterTrial() {
	k.stale, k.pending = true, true
	if s, err := k.applier.host.look(); err == nil && s.trialMarked() {
		k.log.Warn("the guardian of the rules on trial is gone without taking them back: the planned rules are put in")
	}
}

// pollEvery is how often to look though nothing was heard: often where nothing can be.
func (k *Keeper) pollEvery() time.Duration {
	if k.legacy {
		return legacyPoll
	}
	return slowPoll
}

// look plans again if the plan is stale, puts it in if it is not, compares the kernel with it and repairs what others did.
// It returns when to look again though nothing tells to, zero for never.
func (k *Keeper) look(ctx context.Context, now time.Time) time.Duration {
	if k.onTrial(ctx) {
		return trialPoll
	}
	if k.stale {
		k.listenersMoved() // what this plan sees is not news later on
		rules, err := k.plan(ctx)
		if err != nil {
			return k.failed(ctx, "plan", err)
		}
		k.stale = false
		if !k.planned || !reflect.DeepEqual(rules, k.rules) {
			k.rules, k.planned, k.pending = rules, true, true
		}
	}
	if k.pending {
		return k.put(ctx, slog.LevelInfo, "capture rules applied")
	}
	lost, err := k.compare(ctx)
	if err != nil {
		return k.failed(ctx, "compare", err)
	}
	if len(lost) == 0 {
		k.settled()
		return 0
	}
	if k.onTrial(ctx) { // it began since: what is lost gave way to what is tried
		return trialPoll
	}
	if k.lostBy == "" && !k.asked { // the next look repairs it, whoever did it
		k.asked = true
		return settle
	}
	k.asked = false
	if wait := k.limit.take(now); wait > 0 {
		k.contested(lost, now.Add(wait))
		return wait
	}
	by := k.lostBy
	k.update(func(s *KeeperState) {
		s.InPlace = false
		s.Repairs++
		s.RepairAt, s.Lost, s.LostBy = now, lost[:min(len(lost), 5)], by
	})
	k.applier.metrics.repaired()
	return k.put(ctx, slog.LevelWarn, "capture rules had vanished and were put back", "lost", len(lost), "first", lost[0].String(), "by", by)
}

// compare returns in what the kernel is not as planned. It reads the rules only when their fingerprint has changed.
func (k *Keeper) compare(ctx context.Context) ([]Difference, error) {
	s, err := k.applier.host.look()
	if err != nil {
		return nil, err
	}
	sum, err := fingerprint(&k.rules, s)
	if err != nil {
		return nil, err
	}
	if sum == k.sum {
		return nil, nil
	}
	lost, err := k.applier.Diff(ctx, k.rules) // after the sum: what changes from here on shows in the next one
	if err == nil && len(lost) == 0 {
		k.sum = sum
		k.legacy = s.ours(BackendLegacy, IPv4) || s.ours(BackendLegacy, IPv6)
	}
	return lost, err
}

// put applies the plan and checks that it is in.
func (k *Keeper) put(ctx context.Context, level slog.Level, message string, args ...any) time.Duration {
	start := time.Now()
	k.pending = true
	err := k.applier.Apply(ctx, k.rules)
	if errors.Is(err, ErrOnTrial) && k.onTrial(ctx) { // it began since the look did
		return trialPoll
	}
	if err != nil {
		return k.failed(ctx, "apply", err)
	}
	k.sum = 0
	k.generation = nftGeneration()
	lost, err := k.compare(ctx)
	if err != nil {
		return k.failed(ctx, "compare", err)
	}
	k.pending = false
	k.log.Log(ctx, level, message, append(args, "capture", k.rules.Level.String(), "seconds", time.Since(start).Seconds())...)
	k.applier.metrics.open(&k.rules)
	if len(lost) > 0 { // somebody was there at once
		return settle
	}
	k.settled()
	return 0
}

// settled records that the kernel is as planned.
func (k *Keeper) settled() {
	k.retry, k.lostBy, k.asked = 0, "", false
	select {
	case <-k.ready:
	default:
		close(k.ready)
	}
	k.update(func(s *KeeperState) {
		s.Level, s.Open, s.InPlace, s.Contested, s.RetryAt, s.Error = k.rules.Level, k.rules.Open, true, false, time.Time{}, ""
	})
	k.applier.metrics.contested(false)
}

// contested records that somebody else wins for now.
func (k *Keeper) contested(lost []Difference, until time.Time) {
	if !k.State().Contested {
		k.log.Error("capture rules keep vanishing: left alone for a while", "lost", len(lost), "first", lost[0].String(), "by", k.lostBy,
			"repairs_a_minute", k.limit.max, "retry_at", until)
	}
	k.update(func(s *KeeperState) {
		s.InPlace, s.Contested, s.RetryAt = false, true, until
		s.Lost, s.LostBy = lost[:min(len(lost), 5)], k.lostBy
	})
	k.applier.metrics.contested(true)
}

// failed records an error and says when to try again.
func (k *Keeper) failed(ctx context.Context, what string, err error) time.Duration {
	if ctx.Err() != nil {
		return 0
	}
	if k.State().Error != err.Error() {
		k.log.Error("capture rules are not as planned", "step", what, "cause", err)
	}
	k.update(func(s *KeeperState) { s.InPlace, s.Error = false, err.Error() })
	k.retry = min(max(2*k.retry, firstRetry), lastRetry)
	return k.retry
}

// update changes the state and tells who wants to know.
func (k *Keeper) update(change func(*KeeperState)) {
	k.mu.Lock()
	before := k.state
	change(&k.state)
	after := k.state
	k.mu.Unlock()
	if k.onChange != nil && !reflect.DeepEqual(before, after) {
		k.onChange(after)
	}
}

// repairLimit allows max repairs in any minute.
type repairLimit struct {
	max   int
	times []time.Time // of the repairs in the last minute
}

// take uses up one repair, or says how long there is none.
func (l *repairLimit) take(now time.Time) (wait time.Duration) {
	l.times = slices.DeleteFunc(l.times, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(l.times) >= l.max {
		return time.Minute - now.Sub(l.times[0])
	}
	l.times = append(l.times, now)
	return 0
}
