package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"wingman/agent/envoy/proxy"
	"wingman/agent/status"
	"wingman/agent/xds"
	"wingman/bootstrap"
	"wingman/dnsproxy"
	"wingman/iptables"
	"wingman/systemd"
)

// Options are what cmd hands in.
type Options struct {
	Root     string // folder that stands for "/"
	Version  string
	Getenv   func(string) string
	Unsetenv func(string) error
	Stderr   *os.File
	Reload   <-chan os.Signal // SIGHUP; may be nil
	// WithProxy runs Envoy's supervisor in this process, where no other unit does. Envoy's access logs go to Stdout.
	WithProxy bool
	Stdout    *os.File
}

// Agent is the daemon. Run is its only way in.
type Agent struct {
	opts     Options
	started  time.Time
	loop     guardNote // of the crash loop that this start ends
	log      *slog.Logger
	logs     *logs
	notify   *systemd.Notifier
	metrics  *prometheus.Registry
	hostname string
	tables   *tables
	sockets  sockets
	dns      *dnsproxy.Server
	bridges  *bridges
	capture  *capture
	resolved *registration // nil unless dns.mode is resolved
	envoy    *envoySide
	verdicts *verdicts
	services *group
	// The members' and, with run --with-proxy, the supervisor's; nil before live.
	members, supervisors *group
	news                 chan struct{} // buffered 1: status text may have changed
	filesChanged         chan struct{} // buffered 1: the settings' files did, before the first join
	filesRead            string        // fingerprint of the settings' files at their usual places, right before they were read first

	mu       sync.Mutex // guards everything below
	cfg      *bootstrap.Config
	source   string    // of cfg: "files" or "last good"
	loaded   time.Time // when the files were read last, whether or not they could be used
	problems bootstrap.Problems
	waiting  []string // settings of the files that wait for a restart
	member   *member  // nil before the first; the last one, between two
	// nextMember is closed and replaced when another member takes member's place.
	nextMember chan struct{}
	joined     *joinState
	drained    *drained // nil: the machine takes part in load balancing
	leaving    bool
	shutdownAt time.Time // when peers were told that the machine shuts down; zero: it does not
	// What the member was told last about Envoy, and whether the rules know it to be down.
	unfit     string
	envoyDown bool
	// entryLeft is when istiod saw the last stream end; zero: it did not in this run, or there is one.
	entryLeft time.Time
	rejoining bool // the WorkloadEntry is to be made anew

	remembering sync.Mutex // held while the join state changes, in memory and on disk; taken before mu
}

// Run is the daemon's life: it returns nil when it was asked to stop, and an error when it cannot work.
//
// Under systemd a machine that never joined first waits for the files to join with (waiting.go).
//
// In: lock, DNS sockets, saved table, rules of a machine that joined before, DNS and admin socket (READY), then the membership,
// which may take as long as it takes. Out, when asked to stop: unhealthy at istiod, rules out, stream closed, DNS last. When systemd
// asks for a restart the rules, the sockets and the entry stay for the next process.
func Run(ctx context.Context, o Options) error {
	if ok, err := awaitFiles(ctx, o); err != nil || !ok {
		return err
	}
	a, err := newAgent(o)
	if err != nil {
		return err
	}
	if err := Beside(ctx, o.Root); err != nil {
		return err
	}
	lock, err := takeLock(a.cfg.Paths.RunDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := os.MkdirAll(a.cfg.Paths.StateDir, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	a.noteElsewhere(a.cfg)
	// What systemd keeps stays open; these are this process's copies.
	defer func() { a.sockets.close() }()
	if err := a.open(); err != nil {
		return err
	}
	return a.live(ctx)
}

// newAgent reads the settings and makes the logger. It opens nothing.
func newAgent(o Options) (*Agent, error) {
	filesRead := fingerprint(settingsFiles(o.Root, nil))
	cfg, source, problems, err := loadConfig(o.Root)
	if err != nil {
		return nil, err
	}
	logs, err := newLogs(cfg.Log, o.Stderr, o.Getenv)
	if err != nil {
		return nil, err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("host name: %w", err)
	}
	notify, err := systemd.NewNotifier(o.Getenv)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		opts:     o,
		started:  time.Now(),
		loop:     readGuard(cfg.Root),
		log:      logs.part("agent"),
		logs:     logs,
		notify:   notify,
		metrics:  prometheus.NewRegistry(),
		hostname: hostname,
		news:     make(chan struct{}, 1),

		filesChanged: make(chan struct{}, 1),
		filesRead:    filesRead,

		cfg:      cfg,
		source:   source,
		loaded:   time.Now(),
		problems: problems,

		nextMember: make(chan struct{}),
	}
	a.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a.metrics.MustRegister(newBuildInfo(o.Version))
	applier, err := iptables.NewApplier(iptables.ApplierConfig{Log: logs.part("capture"), Metrics: a.metrics})
	if err != nil {
		return nil, err
	}
	if a.envoy, err = newEnvoySide(cfg, logs, a.metrics, a.config, a.envoyChanged); err != nil {
		return nil, err
	}
	a.capture = newCapture(logs.part("capture"), applier, a.metrics, a.captureWish, a.poke)
	a.services = newGroup(context.Background(), a.log)
	for _, p := range problems {
		a.log.Warn("settings", "problem", p.String())
	}
	return a, nil
}

// open takes the DNS sockets and what an earlier run left on disk.
func (a *Agent) open() error {
	handed, err := systemd.Inherited(a.opts.Getenv, a.opts.Unsetenv)
	if err != nil {
		a.log.Warn("sockets handed in cannot be used", "cause", err)
	}
	handed, ofBridges := splitBridges(handed)
	if a.sockets, err = openSockets(listenAddrs(a.cfg), handed, a.notify, a.log); err != nil {
		return err
	}
	if a.joined, err = readJoined(a.cfg.Paths.StateDir); err != nil {
		a.log.Warn("whether this machine joined before is not known", "cause", err)
	}
	if a.drained, err = readDrained(a.cfg.Paths.StateDir); err != nil {
		a.log.Error("taken for drained", "cause", err)
	}
	a.dns, err = dnsproxy.New(dnsproxy.Config{
		UDP:            a.sockets.udp,
		TCP:            a.sockets.tcp,
		ResolvConf:     a.cfg.Paths.ResolvConf,
		UplinkConf:     filepath.Join(a.cfg.Root, "run/systemd/resolve/resolv.conf"),
		BehindResolved: a.cfg.DNS.Mode == bootstrap.DNSResolved,
		Forward:        a.cfg.DNS.Forward,
		ForwardTimeout: a.cfg.DNS.ForwardTimeout,
		CacheBytes:     zeroMeansNone(a.cfg.DNS.CacheSize),
		MaxStale:       zeroMeansNone(a.cfg.DNS.MaxStale),
		Log:            a.logs.part("dns"),
		Metrics:        a.metrics,
	})
	if err != nil {
		return fmt.Errorf("DNS proxy: %w", err)
	}
	a.bridges = &bridges{log: a.logs.part("dns"), store: a.notify, handed: ofBridges, wish: a.capture.wished, serve: a.dns.Serve}
	a.tables = newTables(filepath.Join(a.cfg.Paths.StateDir, tableName), a.logs.part("dns"), a.dns.Replace)
	a.tables.configure(tableConfig(a.cfg))
	a.tables.restore()
	a.verdicts = newVerdicts(a.cfg.Paths.StateDir, a.logs.part("health"))
	a.resolved, err = newRegistration(a.cfg, a.logs.part("dns"), a.metrics, a.captureWish, a.dns.Table, a.poke)
	return err
}

// live runs everything until ctx ends or something essential fails.
func (a *Agent) live(ctx context.Context) error {
	supervise, err := a.supervisor()
	if err != nil {
		return err
	}
	members, supervisors := newGroup(context.Background(), a.log), newGroup(context.Background(), a.log)
	a.mu.Lock()
	a.members, a.supervisors = members, supervisors
	a.mu.Unlock()
	admin := status.NewAdmin(filepath.Join(a.cfg.Paths.RunDir, adminSocket), a.operations(), a.log)
	if err := admin.Listen(); err != nil {
		return err
	}
	a.services.start(task{name: "dns", run: a.dns.Run, essential: true})
	a.services.start(task{name: "admin", run: admin.Run, essential: true})
	a.services.start(task{name: "tables", run: a.tables.run})
	a.services.start(task{name: "verdicts", run: a.verdicts.run})
	a.services.start(task{name: "container bridges", run: a.bridges.run})
	public := status.NewPublic(fmt.Sprintf(":%d", a.cfg.Status.Port), a.notReady, a.gatherer(), a.merged())
	a.services.start(task{name: "status", run: public.Run})
	if a.joined != nil {
		a.keepSettings()
	}
	a.envoy.begin(ctx, a.joined != nil && a.joined.Served)
	a.services.start(task{name: "secrets", run: a.envoy.secrets.Run})
	a.services.start(task{name: "envoy's configuration", run: a.envoy.serveADS})
	a.services.start(task{name: "envoy", run: a.envoy.watch})
	a.services.start(task{name: "capture", run: a.capture.run})
	if a.resolved != nil {
		a.services.start(task{name: "systemd-resolved", run: a.resolved.run})
	}
	if a.joined != nil {
		// Rules first: a machine that joined before must have no moment of plaintext, nor of names that do not resolve.
		a.capture.look(ctx)
		a.capture.ready(ctx)
		a.resolved.look(ctx)
	}
	if a.resolved == nil { // now that the rules are in
		takeNamesBack(a.logs.part("dns"))
	}

	if a.loop.said() {
		a.log.Warn("up again after a crash loop; rules that the guard took out are back", "cause", a.loop.Why, "at", a.loop.At, "capture", a.capture.report().Level)
	}

	if a.joined == nil {
		a.services.start(task{name: "files", run: a.followFiles})
	}
	members.start(task{name: "member", run: a.keepMember})
	if supervise != nil {
		supervisors.start(task{name: "proxy", run: supervise})
	}
	if a.opts.Getenv("NOTIFY_SOCKET") != "" {
		a.services.start(task{name: "shutdown", run: a.delayShutdowns})
	}
	a.services.start(task{name: "notify", run: func(ctx context.Context) error {
		return a.announce(ctx, a.dns.Ready(), admin.Ready())
	}})

	var failed error
	for ctx.Err() == nil && failed == nil {
		select {
		case <-ctx.Done():
		case failed = <-a.services.fatal:
		case <-a.opts.Reload:
			a.reload()
		case <-a.filesChanged:
			a.reload()
		}
	}
	return errors.Join(failed, a.shutDown(members, supervisors, failed != nil))
}

// supervisor makes what keeps Envoy running as `wingman proxy` does; nil where another process does.
func (a *Agent) supervisor() (run func(context.Context) error, err error) {
	if !a.opts.WithProxy {
		return nil, nil
	}
	c := proxy.ConfigOf(a.config(), a.hostname, a.logs.part("proxy"))
	c.EnvoyLog, c.Stdout = a.logs.part("envoy"), a.opts.Stdout
	s, err := proxy.New(c)
	if err != nil {
		return nil, err
	}
	return s.Run, nil
}

// shutDown ends the daemon: politely when it leaves, quickly when the next process is about to take over.
func (a *Agent) shutDown(members, supervisors *group, failed bool) error {
	if err := a.notify.Stopping(); err != nil {
		a.log.Debug("systemd was not told", "cause", err)
	}
	if a.leaves(failed) {
		a.mu.Lock()
		a.leaving = true
		m := a.member
		a.mu.Unlock()
		a.log.Info("leaving the mesh")
		if m != nil {
			m.leave(context.Background(), a.farewellReason())
		}
		if a.envoy.now().live {
			cfg := a.config()
			spread, shed := stopTimes(cfg.DrainPropagation, cfg.Envoy.TerminationDrain, a.stopLimit())
			a.spread(m, spread-a.heardSince())
			a.envoy.drain(context.Background(), shed)
		}
		a.capture.look(context.Background())
		a.resolved.look(context.Background())
	} else {
		a.log.Info("making way for the next process; rules and sockets stay")
	}
	// The supervisor drains what came since, and ends Envoy.
	proxyWait := stopWait + a.config().Envoy.TerminationDrain
	return errors.Join(members.stop(stopWait), supervisors.stop(proxyWait), a.services.stop(stopWait))
}

// leaves tells a stop from a restart. Under systemd only a stop job is a stop; what cannot be told counts as restart, and so does a
// failure, because systemd starts the daemon again. Without systemd nobody comes after this process.
func (a *Agent) leaves(failed bool) bool {
	if handedOver(a.config()) {
		return false
	}
	if a.opts.Getenv("NOTIFY_SOCKET") == "" {
		return true
	}
	if failed {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	stop, err := systemd.StopRequested(ctx)
	if err != nil {
		a.log.Warn("stop or restart? systemd does not say; taken for a restart", "cause", err)
		return false
	}
	return stop
}

// reload reads the settings again. Bad files change nothing.
func (a *Agent) reload() {
	if err := a.notify.Reloading(); err != nil {
		a.log.Debug("systemd was not told", "cause", err)
	}
	defer func() {
		if err := a.notify.Ready(); err != nil {
			a.log.Debug("systemd was not told", "cause", err)
		}
		a.poke()
	}()
	cfg, problems := bootstrap.Load(a.opts.Root)
	if err := problems.Err(); err != nil {
		a.log.Error("reload refused; the running settings stay", "cause", err)
		a.mu.Lock()
		a.problems, a.loaded = problems, time.Now()
		a.mu.Unlock()
		return
	}
	a.mu.Lock()
	m := a.member
	cfg, need := bootstrap.KeepUntilRestart(a.cfg, cfg)
	a.cfg, a.source, a.problems, a.waiting, a.loaded = cfg, sourceFiles, problems, need, time.Now()
	a.mu.Unlock()
	a.noteElsewhere(cfg)
	ofEnvoy := a.envoy.waiting()
	a.logs.configure(cfg.Log)
	a.tables.configure(tableConfig(cfg))
	if len(need)+len(ofEnvoy) > 0 {
		a.log.Warn("reloaded, but some settings wait for a restart", "wingman", need, "wingman-proxy", ofEnvoy)
	} else {
		a.log.Info("reloaded")
	}
	a.keepSettings()
	if m != nil {
		if !m.entry.same(entryFor(cfg, a.hostname, m.envoy)) {
			// Before the rules change: peers may send what is not captured any more.
			m.leave(context.Background(), "this machine joins again, with other labels")
		}
		m.replace(errReloaded)
	}
	a.capture.look(context.Background())
	a.resolved.poke()
}

// takeNames takes a NameTable in; see xds.Subscription.
func (a *Agent) takeNames(p xds.Push) error {
	if err := a.tables.take(p); err != nil {
		return err
	}
	a.noteJoined()
	a.resolved.poke()
	a.poke()
	return nil
}

// keepSettings notes that the settings in force work: they are what a later start falls back to when the files are broken then.
func (a *Agent) keepSettings() {
	a.mu.Lock()
	cfg, fromFiles := a.cfg, a.source == sourceFiles
	a.mu.Unlock()
	if !fromFiles {
		return
	}
	if err := saveLastGood(cfg.Paths.StateDir, cfg.Snapshot()); err != nil {
		a.log.Warn("settings are not kept for a start with broken files", "cause", err)
	}
}

// poke says that the status text may have changed.
func (a *Agent) poke() {
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// zeroMeansNone turns a setting whose zero is "none" into one of dnsproxy's, where zero is the default and less than zero none.
func zeroMeansNone[T int | time.Duration](v T) T {
	if v == 0 {
		return -1
	}
	return v
}
