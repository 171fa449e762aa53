package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"wingman/agent/envoy"
)

// Config is what a Supervisor is made from. Functions are called from Run's goroutine before each start; their errors are told and
// the start tried again.
type Config struct {
	// Program finds Envoy.
	Program func() (string, error)
	// Bootstrap returns the path of the bootstrap file.
	Bootstrap func(ctx context.Context) (string, error)
	// Args returns the flags for an Envoy of these facts, but for the bootstrap file.
	Args func(envoy.Facts) ([]string, error)
	// Ports are those that Envoy will listen on, with these facts.
	Ports func(envoy.Facts) []Port
	// Worker is the listener that workers answer HTTP on, with these facts; nil, or a zero value: none is known.
	Worker func(envoy.Facts) netip.AddrPort

	Required bool // a missing program is a fault, not a choice

	Dir    string   // Envoy's working folder, where relative paths of istiod's configuration begin
	RunDir string   // lock and state
	Env    []string // this process's environment
	User   *User    // whom Envoy runs as; nil: this process's user

	Drain       time.Duration // most that a stop waits for connections; zero: not at all. Istio: terminationDrainDuration
	HangTimeout time.Duration // an Envoy that does not answer for so long is ended; zero means 60 s
	Stdout      io.Writer     // takes Envoy's access logs; nil discards
	OnState     func(State)   // told of every change, from Run's goroutine; nil: nobody
	BeatEvery   time.Duration // how often Beat is called, from Run's goroutine; zero: never
	Beat        func()        // says that this supervisor does its work
	Log         *slog.Logger  // nil discards
	EnvoyLog    *slog.Logger  // takes Envoy's own log; nil means Log
}

// Numbers of a supervisor; drain and hang time are settings.
const (
	firstWait   = 50 * time.Millisecond // so that the first restart comes within 100 ms
	mostWait    = 30 * time.Second
	mostRetry   = time.Second      // for a program, a bootstrap file, a port: a file or two are looked at
	wellAfter   = 10 * time.Second // a restart as often as that costs less than a longer wait
	endGrace    = 5 * time.Second
	defaultHang = time.Minute // a push of 50 MB keeps Envoy's main thread busy for seconds
	deafAfter   = 3
	freezeAfter = 5 * time.Second // three questions that no thread answers take six
	askEagerly  = 50 * time.Millisecond
	askCalmly   = time.Second
)

// Supervisor keeps an Envoy running. Make it with New.
type Supervisor struct {
	cfg     Config
	log     *slog.Logger
	timings timings
	orphan  bool // tests only: Envoy outlives this process

	// Run's goroutine alone uses these.
	lock    *lock
	envoy   *running       // nil: none
	admin   *envoy.Admin   // of the present Envoy
	cancel  func()         // ends what asks and drains the present Envoy
	helpers sync.WaitGroup // what asks and drains
	heard   chan answer    // what Envoy said
	drained chan struct{}
	wishes  chan *replacement // to put another Envoy in the place of this one
	next    *replacement      // the one under way; nil: none
	judged  chan error        // of next: what is to be said against it
	spare   spare             // the program that was replaced last, should the next one not do
	served  []netip.AddrPort  // ports of the mesh's traffic that the present or last Envoy has
	held    *hold             // of those ports; nil: nothing is held
	// Whether held stands by while Envoy serves; else, whether the ports take a socket of ours when it ended.
	standsBy, shared bool
	killed           bool // by this supervisor
	said             string

	mu    sync.Mutex // guards everything below
	state State
}

// drainingWord is what Envoy says of itself while it drains (Admin.Ready).
const drainingWord = "DRAINING"

// answer is the outcome of one question to an admin port.
type answer struct {
	pid     int // of the Envoy that was asked
	event   event
	state   string
	version string // once it is live
}

// New checks cfg. It opens and starts nothing.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Program == nil || cfg.Bootstrap == nil || cfg.Args == nil || cfg.Ports == nil || cfg.RunDir == "" || cfg.Dir == "" {
		return nil, errors.New("a supervisor needs a program, a bootstrap file, flags, ports and folders")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.EnvoyLog == nil {
		cfg.EnvoyLog = cfg.Log
	}
	if cfg.Stdout == nil {
		cfg.Stdout = io.Discard
	}
	if cfg.HangTimeout <= 0 {
		cfg.HangTimeout = defaultHang
	}
	return &Supervisor{
		cfg: cfg, log: cfg.Log,
		timings: timings{first: firstWait, most: mostWait, retry: mostRetry, well: wellAfter, hang: cfg.HangTimeout, deaf: deafAfter, freeze: min(freezeAfter, cfg.HangTimeout), drain: cfg.Drain, handover: handoverFor, grace: endGrace},
		heard:   make(chan answer), drained: make(chan struct{}, 1), wishes: make(chan *replacement), judged: make(chan error, 1),
		state: State{Phase: PhaseStopped, Supervisor: os.Getpid(), Since: time.Now()},
	}, nil
}

// State returns a snapshot; safe at any time.
func (s *Supervisor) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Run keeps Envoy running until ctx ends, drains it then and returns nil. Its errors are what only a person can mend: another
// supervisor runs, or the run folder cannot be used. Call it once.
func (s *Supervisor) Run(ctx context.Context) error {
	l, err := takeLock(ctx, s.cfg.RunDir, s.log)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	s.lock = l
	defer l.close()
	defer func() { s.held.release() }()
	defer s.listen()()
	defer func() { s.settle("", errStopped) }()
	if n, err := raiseFileLimit(); err != nil {
		s.log.Warn("Envoy gets no more open files than this process had", "cause", err)
	} else {
		s.log.Debug("limit of open files", "files", n)
	}
	m := newMachine(s.timings, time.Now())
	s.publish(m)
	stop := ctx.Done()
	var beat <-chan time.Time
	if s.cfg.BeatEvery > 0 {
		tick := time.NewTicker(s.cfg.BeatEvery)
		defer tick.Stop()
		beat = tick.C
	}
	for {
		var due <-chan time.Time
		if !m.deadline.IsZero() {
			due = time.After(time.Until(m.deadline))
		}
		var ended chan error
		if s.envoy != nil {
			ended = s.envoy.ended
		}
		var ev event
		select {
		case <-stop:
			stop, ev = nil, evStop
		case <-due:
			ev = evDeadline
		case err := <-ended:
			s.holdConnections(m)
			s.gone(err, m)
			s.mourn(m, err)
			ev = evEnded
		case a := <-s.heard:
			if s.envoy == nil || a.pid != s.envoy.pid {
				continue
			}
			s.noteWord(a)
			ev = a.event
		case <-s.drained:
			ev = evDrained
		case r := <-s.wishes:
			s.consider(ctx, m, r)
			continue
		case err := <-s.judged:
			if !s.decide(m, err) {
				continue
			}
			ev = evReplace
		case <-beat:
			s.cfg.Beat()
			continue
		}
		next, act := m.step(ev, time.Now())
		if m = s.moved(m, next); act == actDone {
			return nil
		}
		if m = s.act(ctx, m, act); m.phase == PhaseStopped {
			return nil
		}
	}
}

// act does what the machine wants, and returns the machine as it is then.
func (s *Supervisor) act(ctx context.Context, m machine, act action) machine {
	switch act {
	case actStart:
		ev := evStarted
		if err := s.start(ctx); err != nil {
			ev = evCannotStart
			s.publishCause(err.Error())
			s.sayCannotStart(err)
			s.mourn(m, err)
		}
		next, _ := m.step(ev, time.Now())
		return s.moved(m, next)
	case actAbort:
		s.envoy.signal(syscall.SIGABRT)
		s.envoy.signal(syscall.SIGCONT) // one that was stopped aborts only then
	case actKill:
		s.log.Warn("Envoy does not end when told to; it is killed", "pid", s.envoy.pid)
		s.killed = true
		s.envoy.signal(syscall.SIGKILL)
	case actTerminate:
		s.envoy.signal(syscall.SIGTERM)
	case actDrain:
		s.shed(ctx, Drain)
	case actHandOver:
		if s.standsBy {
			ports, owner := s.served, s.cfg.User
			s.shed(ctx, func(ctx context.Context, admin *envoy.Admin, log *slog.Logger) {
				handOver(ctx, admin, ports, owner, log)
			})
		} else {
			s.drained <- struct{}{} // nobody would hold what comes once Envoy accepts nothing more
		}
	}
	return m
}

// start starts an Envoy.
func (s *Supervisor) start(ctx context.Context) error {
	p, err := s.plan(ctx, s.program)
	if err != nil {
		return err
	}
	if err := checkPorts(p.ports, s.held.inodes()); err != nil {
		return err
	}
	if s.envoy, err = p.command.start(); err != nil {
		return err
	}
	clear := s.said != "" // what kept it from starting is over
	s.said, s.killed = "", false
	s.served = nil
	for _, port := range p.ports {
		if port.Mesh {
			s.served = append(s.served, port.Addr)
		}
	}
	if own, err := processOf(s.envoy.pid); err == nil { // else it ended already
		if err := s.lock.note(own); err != nil {
			s.log.Warn("an Envoy left over would not be known", "cause", err)
		}
	}
	s.admin = envoy.NewAdmin(p.facts.Admin, p.facts.OwnPorts()...)
	askCtx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	admin, pid, worker := s.admin, s.envoy.pid, netip.AddrPort{}
	if s.cfg.Worker != nil {
		worker = s.cfg.Worker(p.facts)
	}
	s.helpers.Go(func() { s.ask(askCtx, admin, worker, pid) })

	s.mu.Lock()
	s.state.Starts++
	s.state.PID, s.state.Program, s.state.Version, s.state.EnvoyState = pid, p.program, "", ""
	if clear {
		s.state.Cause = ""
	}
	if !s.spare.used && s.next == nil {
		s.state.Refused = "" // what lies there now runs
	}
	s.mu.Unlock()
	return nil
}

// ask asks Envoy how it is, until ctx ends: often until it is live and while it does not answer, else now and then.
func (s *Supervisor) ask(ctx context.Context, admin *envoy.Admin, worker netip.AddrPort, pid int) {
	limit := max(min(s.cfg.HangTimeout/4, 2*time.Second), 50*time.Millisecond)
	calmly, version := askEagerly, ""
	for {
		pause := calmly
		one, cancel := context.WithTimeout(ctx, limit)
		live, word, err := admin.Ready(one)
		cancel()
		a := answer{pid: pid, event: evNotLive, state: word}
		switch {
		case err != nil:
			if a.event, pause = evSilent, askEagerly; frozen(ctx, worker) {
				a.event = evFrozen
			}
		case live:
			if a.version = version; version == "" {
				one, cancel := context.WithTimeout(ctx, limit)
				version, _ = admin.Version(one) // asked again
				cancel()
				a.version = version
			}
			calmly = min(askCalmly, limit)
			a.event, pause = evLive, calmly
		case word == drainingWord:
			a.event = evShedding
		}
		select {
		case s.heard <- a:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// serves prepares for the end of an Envoy that has begun to serve.
func (s *Supervisor) serves() {
	if s.standsBy && s.held.keep() {
		return
	}
	s.held.release()
	var err error
	if s.held, err = standBy(s.served, s.cfg.User); err == nil {
		s.standsBy = true
		return
	}
	s.standsBy, s.shared = false, shared(s.served, s.cfg.User)
	s.log.Debug("connections that begin right when Envoy ends will be refused", "cause", err)
}

// holdConnections has new connections wait for the next Envoy, after the end of one that served, and else lets go of them.
func (s *Supervisor) holdConnections(m machine) {
	switch {
	case !m.holds(time.Now()):
		s.held.release()
		s.held = nil
		return
	case s.held == nil && s.shared:
		held, err := holdPorts(s.served, s.cfg.User)
		if err != nil {
			s.log.Warn("new connections are refused until Envoy is back", "cause", err)
			return
		}
		s.held = held
	}
	if s.held != nil {
		s.held.releaseAfter(holdFor)
	}
}

// gone takes the end of Envoy in.
func (s *Supervisor) gone(err error, m machine) {
	s.cancel()
	s.helpers.Wait()
	select {
	case <-s.drained: // a drain that the end cut short
	default:
	}
	select {
	case <-s.judged:
	default:
	}
	pid := s.envoy.pid
	s.envoy, s.admin, s.cancel = nil, nil, nil
	if noteErr := s.lock.note(process{}); noteErr != nil {
		s.log.Warn("an Envoy left over would not be known", "cause", noteErr)
	}
	cause := "it ended by itself, with exit status 0"
	if err != nil {
		cause = err.Error()
	}
	if strings.HasPrefix(cause, killedBy+"SIGKILL") && !s.killed {
		cause += " (not by this process: the kernel does that when memory runs out)"
	}
	s.mu.Lock()
	s.state.PID, s.state.EnvoyState, s.state.Outdated, s.state.Cause = 0, "", "", cause
	s.mu.Unlock()
	if m.stop || m.replace {
		s.log.Info("Envoy has ended", "pid", pid, "with", cause)
		return
	}
	s.log.Error("Envoy ended; it will be started again", "pid", pid, "cause", cause)
}
