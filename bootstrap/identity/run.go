package identity

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"
)

const (
	// longestSleep bounds every wait: dates are wall clock, and a timer does not notice a suspend or a clock that was set.
	longestSleep = 30 * time.Second
	// jumpSize is how far wall clock and timers may drift apart between two turns before that is called a jump.
	jumpSize = 5 * time.Second
)

var errStopped = errors.New("the identity manager stopped")

// A runner is one Run of a Manager: all that only its goroutine touches.
type runner struct {
	*Manager
	machine machine
	roots   anchors // all that we were told of; what is trusted now is a part of it (live.roots)
	store   store
	output  output
	watch   watch

	key       crypto.Signer // of a round that failed, for the next one
	outcomes  chan outcome  // holds one: a request never waits for us
	waiting   []renewal
	answered  func()    // tells those who waited for the last request; nil: nobody
	untold    bool      // OnChange does not know yet what is in use
	lastWall  time.Time // the wall clock at the last turn
	lastTimer time.Time // the same moment as timers see it
	lastSlept time.Duration
	unsaved   bool      // what is in use is not what is on disk
	followAt  time.Time // when OutputDir must be looked at again; zero: at the next change
	shareAt   time.Time // likewise the copies of groups

	offers      []offer // the sources of tokens, in order, and what they gave last
	clear       *store  // for OutputDir, when the store is sealed; else nil
	shown       string  // what it holds
	purge       bool    // the store may hold keys of the other form (sealed, or not) that must go
	stuck       bool    // and they did not, which is said
	copied      bool    // the identity came with a disk from another machine
	wantOwn     bool    // and has that one's key, or was given a token since: to be asked for
	copyProblem string  // why the copy of the token file does not follow
	root        rootInput
	said        State // what is told of it and cannot be derived
}

// Run loads the certificate that is on disk, asks for one when there is none, and renews it until ctx ends; then it returns nil. Nothing
// makes it give up: a missing root, a dead token, a full disk are said in State and the log, and tried again. Call it once.
func (m *Manager) Run(ctx context.Context) error {
	dir := filepath.Join(m.cfg.StateDir, storeName)
	r := &runner{
		Manager: m, machine: machine{phase: None}, outcomes: make(chan outcome, 1),
		store:  store{dir: dir, disk: m.disk, log: m.cfg.Log, sealer: m.sealer},
		output: output{dir: m.cfg.OutputDir, store: dir, disk: m.disk},
		watch:  m.newWatch(m.cfg.Log),
		offers: offersOf(m.sources),
		said:   *m.state.Load(),
	}
	r.said.Sealed = m.cfg.Seal
	if m.cfg.Seal && m.cfg.OutputDir != "" {
		r.clear = &store{dir: filepath.Join(m.cfg.RunDir, storeName), disk: m.disk, log: m.cfg.Log}
		r.output.store = r.clear.dir
	}
	defer r.watch.Stop()

	ctx, cancel := context.WithCancel(ctx)
	var deliveries, delivered = chan delivery(nil), chan struct{}(nil)
	if m.cfg.WorkloadSocket != "" {
		deliveries, delivered = m.followSocket(ctx)
	}
	defer func() {
		cancel()
		switch {
		case delivered != nil:
			<-delivered
		case r.machine.asking:
			<-r.outcomes
		}
		for _, w := range r.waiting {
			w.done <- errStopped
		}
	}()

	clock := m.newClock(m.cfg.Log)
	defer clock.stop()
	r.lastWall, r.lastTimer, r.lastSlept = m.now(), time.Now(), m.asleep()
	r.watch.Arm(r.inputs())
	ev := r.load(m.now())
	for {
		r.turn(ctx, m.now(), ev)
		timer := time.NewTimer(r.sleep(m.now()))
		ev = event{kind: evTick}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-r.watch.Changed():
		case <-clock.changed():
		case w := <-m.renewals:
			if deliveries != nil {
				w.done <- errSourceRenews
				break
			}
			r.waiting = append(r.waiting, w)
			ev.kind = evRenew
		case d := <-deliveries:
			ev = r.deliver(d, m.now())
		case out := <-r.outcomes:
			ev = r.settle(out, m.now())
		case certs := <-m.bundles:
			ev = r.takeBundle(certs, m.now())
		}
		timer.Stop()
	}
}

// turn looks at everything once: what the files say, what ev and the clock make of it, and what follows from that.
func (r *runner) turn(ctx context.Context, now time.Time, ev event) {
	r.watch.Arm(r.inputs())
	jumped := r.clockJumped(now)
	newToken, newRoots := r.readTokens(now), r.readRootFile(now)
	r.keepToken(now)
	if r.unsaved || !r.roots.pruned(now).equal(r.live.Load().roots) {
		r.use(r.Current(), r.roots, now)
	}
	r.removeOthers()
	if !r.followAt.IsZero() && !now.Before(r.followAt) {
		r.follow(now)
	}
	if !r.shareAt.IsZero() && !now.Before(r.shareAt) {
		r.share(now)
	}
	if jumped || newToken || newRoots {
		wake := event{kind: evWake}
		if c := r.Current(); c != nil {
			wake.life = c.lifeAt(now)
		}
		r.step(ctx, now, wake)
	}
	r.step(ctx, now, ev)
	r.wantOwn = r.copied && (r.wantOwn || newToken)
	if r.wantOwn && !r.machine.asking { // a request under way does not know a token that is new
		r.wantOwn = false
		r.step(ctx, now, event{kind: evRenew})
	}
	r.publishState(now)
	r.tell(now)
}

// tell lets others know what this turn has changed, when State knows it too.
func (r *runner) tell(now time.Time) {
	if c := r.Current(); c.usable(now) {
		r.readyOnce.Do(func() { close(r.ready) })
		if r.untold {
			r.untold = false
			r.cfg.OnChange(c)
		}
	}
	if r.answered != nil {
		r.answered()
		r.answered = nil
	}
}

// inputs are the files that others write.
func (r *runner) inputs() []string {
	files := []string{r.cfg.RootFile}
	for _, s := range r.sources {
		if s.Local() && s.Name() != SourceCopy { // we write that one ourselves
			files = append(files, s.Where())
		}
	}
	return files
}

// step moves the machine, says so, and starts a request when the machine wants one.
func (r *runner) step(ctx context.Context, now time.Time, ev event) {
	ev.random = rand.Float64()
	next, ask := r.policy.step(r.machine, now, ev)
	if next.phase != r.machine.phase {
		r.logPhase(r.machine.phase, next.phase)
	}
	r.machine = next
	if !ask || r.cfg.WorkloadSocket != "" { // there the answer comes by itself
		return
	}
	req := request{key: r.key, offers: slices.Clone(r.offers), roots: r.live.Load().roots, copied: r.copied}
	if c := r.Current(); c.usable(now) {
		req.inHand, req.left = c, c.NotAfter.Sub(now)
	} else if c != nil {
		req.over = c.NotAfter
	}
	go func() { r.outcomes <- r.ask(ctx, req) }() // Run waits for it
}

// settle takes in the outcome of a request.
func (r *runner) settle(out outcome, now time.Time) event {
	waiting := r.waiting
	r.waiting = nil
	r.answered = func() {
		for _, w := range waiting {
			w.done <- out.err
		}
	}
	r.key = out.key
	r.takeOffers(out.offers, now)
	if out.err != nil {
		r.requestFailed(out.err, now)
		return event{kind: evFailed, failure: out.failure}
	}
	r.said.LastError, r.said.LastErrorAt, r.said.Credential, r.said.Source, r.said.Clock = "", time.Time{}, out.credential, out.source, ""
	if r.said.Clock = clockOff(out.cert.chain[0], r.cfg.TTL, out.cert.ReceivedAt); r.said.Clock != "" {
		r.cfg.Log.Warn("clock is wrong: set it", "problem", r.said.Clock)
	}
	if out.credential == "token" {
		r.origin(r.cfg.Machine)
	}
	before := r.said.LifeProblem
	if r.said.LifeProblem = shortLife(out.cert.lifeAt(now).length(), r.cfg.TTL); r.said.LifeProblem != "" && !sameCause(r.said.LifeProblem, before) {
		r.cfg.Log.Warn("certificates live too short", "problem", r.said.LifeProblem)
	}
	r.metrics.seconds.Observe(out.took.Seconds())
	// The check of istiod's certificate has just passed, so the clock can be believed: what has expired may be forgotten.
	r.use(out.cert, r.roots.withAnswer(out.roots, now.Add(out.cert.lifeAt(now).length())).pruned(now), now)
	r.cfg.Log.Info("certificate received", "certificate", out.cert, "credential", out.credential, "source", out.source, "seconds", out.took.Seconds())
	return event{kind: evIssued, life: out.cert.lifeAt(now)}
}

// requestFailed says why there is no new certificate: one cause, one line.
func (r *runner) requestFailed(err error, now time.Time) {
	log := r.cfg.Log.Debug
	if !sameCause(oneLine(err), r.said.LastError) {
		log = r.cfg.Log.Warn
	}
	log("certificate request failed", "cause", oneLine(err), "attempt", r.machine.failures+1)
	r.said.LastError, r.said.LastErrorAt = oneLine(err), now
}

// load takes what the disk has: the newest good generation and its roots, else the certificate of the agent that ran here before.
func (r *runner) load(now time.Time) event {
	g, err := r.store.load(r.cfg.SPIFFEID, now)
	if err != nil {
		r.storeFailed(err)
	}
	r.followAt, r.shareAt = now, now
	r.dropGroups()
	r.store.origin, r.purge = r.cfg.Machine, true
	if g != nil {
		r.cfg.Log.Info("certificate loaded", "certificate", g.cert, "generation", g.number)
		r.checkOrigin(g)
		r.rewrite(g)
		roots := g.roots
		if r.cfg.WorkloadSocket == "" { // it was the source once: its bundles go with the last certificate that it gave
			roots = roots.retire(fromSPIFFE, g.cert.NotAfter).retire(fromFederated, g.cert.NotAfter)
		}
		r.publish(g.cert, roots, now)
	}
	if g == nil {
		r.freeRootFile()
	}
	r.readTokens(now)
	r.readRootFile(now)
	if g != nil {
		return event{kind: evLoaded, life: g.cert.lifeAt(now)}
	}
	dir := cmp.Or(r.cfg.OtherDir, r.cfg.OutputDir)
	c, err := readForeign(dir, r.cfg.SPIFFEID, r.roots, now)
	if c == nil {
		r.cfg.Log.Debug("no certificate on disk", "cause", err)
		return event{kind: evTick}
	}
	r.cfg.Log.Info("certificate of another agent taken over", "certificate", c, "dir", dir)
	r.use(c, r.roots, now)
	return event{kind: evLoaded, life: c.lifeAt(now)}
}

// use writes c (nil: none yet) and roots to disk and puts them into use, in this order. When the disk does not take them they are
// used all the same, and every further turn tries again.
func (r *runner) use(c *Certificate, roots anchors, now time.Time) {
	r.unsaved = false
	if c != nil {
		c = c.withRoots(encodeCertificates(roots.pruned(now).certs()))
		err := r.store.save(c, roots)
		r.unsaved = err != nil && !errors.Is(err, errUnpruned) // another generation would be one more that stays
		if err != nil {
			r.storeFailed(err)
		} else {
			r.said.StoreProblem = ""
		}
		r.purge, r.stuck = true, false
		r.removeOthers()
	}
	r.publish(c, roots, now)
	r.follow(now)
	r.share(now)
}

// publish shows c and roots to the rest of the program.
func (r *runner) publish(c *Certificate, roots anchors, now time.Time) {
	r.roots = roots
	trusted := roots.pruned(now)
	before := r.Current()
	if c != nil {
		c = c.withRoots(encodeCertificates(trusted.certs()))
	}
	r.live.Store(&live{cert: c, roots: trusted, pool: trusted.pool()})
	if c != nil && (before == nil || before.pair.reveal() != c.pair.reveal() || !bytes.Equal(before.rootsPEM, c.rootsPEM)) {
		r.untold = true
	}
}

// follow puts OutputDir's links in place, now or when whoever writes there is done.
func (r *runner) follow(now time.Time) {
	r.followAt = time.Time{}
	c := r.Current()
	if r.cfg.OutputDir == "" || r.clear == nil && r.store.current == 0 || r.clear != nil && c == nil {
		return
	}
	err := r.show(c, r.roots)
	if err == nil {
		err = r.output.ensure(r.cfg.RootFile, r.root.taken, now)
	}
	if err == nil {
		err = r.unshow()
	}
	if errors.Is(err, errUnsettled) {
		r.followAt = now.Add(settleTime)
		return
	}
	problem := oneLine(err)
	if problem != "" && problem != r.said.OutputProblem {
		r.cfg.Log.Warn("output folder does not follow", "cause", problem)
	}
	r.said.OutputProblem = problem
}

func (r *runner) storeFailed(err error) {
	r.metrics.storeFails.Inc()
	if r.said.StoreProblem != oneLine(err) {
		r.cfg.Log.Error("identity store cannot be used", "cause", oneLine(err))
	}
	r.said.StoreProblem = oneLine(err)
}

// clockJumped reports whether the wall clock has done something else than run since the last turn, and says what.
func (r *runner) clockJumped(now time.Time) bool {
	slept := r.asleep()
	j, jumped := jumpOf(now.Sub(r.lastWall), time.Since(r.lastTimer), slept-r.lastSlept)
	r.lastWall, r.lastTimer, r.lastSlept = now, time.Now(), slept
	if !jumped {
		return false
	}
	if j.slept > 0 {
		r.cfg.Log.Info("machine was suspended; everything that was due meanwhile is looked at now", "slept", span(j.slept))
	}
	if j.set != 0 {
		direction := "forward"
		if j.set < 0 {
			direction = "back"
		}
		r.said.Clock = "" // it may be right now; the next answer tells
		r.cfg.Log.Warn("clock was set", "direction", direction, "by", span(j.set))
	}
	r.followAt = now // a date of before would be off by as much
	return true
}

// sleep is how long nothing will happen by itself.
func (r *runner) sleep(now time.Time) time.Duration {
	d := longestSleep
	for _, at := range []time.Time{r.policy.wakeAt(r.machine, now), r.followAt, r.shareAt, r.root.sayAt} {
		if !at.IsZero() {
			d = min(d, max(at.Sub(now), 0))
		}
	}
	return d
}

func (r *runner) logPhase(from, to Phase) {
	log := r.cfg.Log.Info
	if to == Expiring || to == Expired {
		log = r.cfg.Log.With("cause", r.said.LastError).Warn
	}
	log("identity phase", "from", from, "to", to)
}

func (r *runner) publishState(now time.Time) {
	s := r.said
	s.Phase, s.Attempts, s.Roots = r.machine.phase, r.machine.failures, rootStates(r.live.Load().roots)
	s.Health = r.policy.health(r.machine.life, now)
	if c := r.Current(); c != nil {
		s.Serial, s.NotBefore, s.NotAfter, s.ReceivedAt, s.RenewAt = c.Serial, c.NotBefore, c.NotAfter, c.ReceivedAt.UTC(), r.machine.renewAt
	}
	if !r.machine.asking && s.Phase != Valid {
		s.NextAttempt = r.machine.nextAsk()
	}
	r.state.Store(&s)
	r.metrics.show(s)
}
