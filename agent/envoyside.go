package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/envoy"
	"wingman/agent/envoy/peer"
	"wingman/agent/envoy/proxy"
	"wingman/agent/envoy/sds"
	"wingman/agent/status"
	"wingman/agent/xds"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// How often the supervisor's state is looked at: one small file.
const (
	lookCalmly  = time.Second
	lookEagerly = 200 * time.Millisecond // while an Envoy that is announced does not serve
	// overviewWait bounds the one question to Envoy after each of its starts.
	overviewWait = 2 * time.Second
	// hearWait bounds the question of each look to an Envoy that is live.
	hearWait = time.Second
	// refusedPatience is how long an Envoy's port may be closed while its supervisor calls it live.
	refusedPatience = 2 * time.Second
)

// envoySide is what the agent does for Envoy, and what it knows of it. Envoy itself is the supervisor's (package proxy), mostly in another process:
// the two meet in files and sockets of the run folders.
type envoySide struct {
	log     *slog.Logger
	cfg     func() *bootstrap.Config
	changed func(from, to presence) // from watch's goroutine
	gate    *xds.Gate
	secrets *sds.Server
	held    heldIdentity
	fitting *fitting

	mu         sync.Mutex // guards everything below
	presence   presence
	seen       sighting
	blind      string // why the supervisor's state could not be read last
	configured int    // pid of the Envoy that was found to have its configuration
	silence    silence
	// What the supervisor of that pid, the last one seen, was started with, as far as it is known: its start may have been before this process's.
	supervisor int
	startedBy  *bootstrap.Config
}

// heldIdentity is the newest certificate of whichever member there is.
type heldIdentity struct {
	atomic.Pointer[identity.Certificate]
}

// Current is for sds.Source.
func (h *heldIdentity) Current() *identity.Certificate { return h.Load() }

func newEnvoySide(cfg *bootstrap.Config, logs *logs, metrics prometheus.Registerer, current func() *bootstrap.Config, changed func(from, to presence)) (*envoySide, error) {
	e := &envoySide{
		log:     logs.part("envoy"),
		cfg:     current,
		changed: changed,
		gate:    xds.NewGate(),
		fitting: newFitting(logs.part("envoy"), metrics),
	}
	var err error
	e.secrets, err = sds.New(sds.Config{
		Socket: envoy.SDSSocket(cfg), Owner: envoy.Owner(cfg), Root: cfg.Root, Source: &e.held, Log: e.log, Metrics: metrics,
	})
	if err != nil {
		return nil, err
	}
	metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: metricEnvoyLive,
		Help: "1 while this machine's Envoy serves with istiod's configuration, else 0."}, func() float64 {
		if e.now().live {
			return 1
		}
		return 0
	}))
	metrics.MustRegister(proxy.NewCollector(proxy.RunDir(cfg)))
	return e, nil
}

// metricEnvoyLive is whether Envoy serves.
const metricEnvoyLive = "wingman_envoy_live"

// serveADS opens the socket for Envoy's configuration and serves it until ctx ends.
func (e *envoySide) serveADS(ctx context.Context) error {
	cfg := e.cfg()
	l, err := peer.Listen(peer.Config{Path: envoy.XDSSocket(cfg), Owner: envoy.Owner(cfg), Log: e.log})
	if err != nil {
		return fmt.Errorf("ADS: %w", err)
	}
	return e.gate.Serve(ctx, l)
}

// take makes c what Envoy gets as its own certificate.
func (e *envoySide) take(c *identity.Certificate) {
	e.held.Store(c)
	e.secrets.Refresh()
}

// write puts the bootstrap file where the supervisor finds it. A failure is told and not fatal: the supervisor then makes its own.
func (e *envoySide) write(cfg *bootstrap.Config, hostname string, addrs []netip.Addr) {
	if cfg.Envoy.Enabled == "false" {
		return
	}
	node := cfg.Node(bootstrap.NodeFacts{Hostname: hostname, Addrs: addrs, Envoy: true})
	f, err := envoy.Bootstrap(envoy.InputOf(cfg, node, addrs))
	var changed bool
	if err == nil {
		changed, err = envoy.Write(envoy.BootstrapPath(cfg), f, envoy.Owner(cfg))
	}
	if err != nil {
		e.log.Error("Envoy's bootstrap file is not written", "cause", err)
		return
	}
	if !changed {
		return
	}
	for _, note := range f.Notes {
		e.log.Warn("left out of Envoy's bootstrap file", "cause", note)
	}
	e.mu.Lock()
	running := e.seen.proxy.PID
	e.mu.Unlock()
	if running != 0 {
		e.log.Info("Envoy's bootstrap file changed; the Envoy that runs gets its node from here and keeps the rest until systemctl restart wingman-proxy", "pid", running)
	}
}

// begin takes the first look. served tells whether Envoy took this machine's traffic before this start.
func (e *envoySide) begin(ctx context.Context, served bool) {
	s := e.look(ctx)
	p := firstPresence(s, served, time.Now())
	e.mu.Lock()
	e.seen, e.presence = s, p
	e.noteSupervisorLocked()
	e.mu.Unlock()
	switch {
	case s.program == nil:
		e.log.Info("Envoy is here", "announced", p.announced, "live", p.live, "served_before", served)
	case errors.Is(s.program, envoy.ErrDisabled):
		e.log.Info("Envoy is switched off; the mesh is told that this machine takes no mutual TLS")
	default:
		e.log.Info("no Envoy here; the mesh is told that this machine takes no mutual TLS", "cause", s.program)
	}
}

// watch follows Envoy until ctx ends.
func (e *envoySide) watch(ctx context.Context) error {
	for {
		pause := lookCalmly
		if p := e.now(); p.announced && !p.live {
			pause = lookEagerly
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		s, now := e.look(ctx), time.Now()
		e.mu.Lock()
		from := e.presence
		to := from.next(s, now)
		e.seen, e.presence = s, to
		e.noteSupervisorLocked()
		e.mu.Unlock()
		e.say(from, to, s)
		e.changed(from, to)
	}
}

// noteSupervisorLocked notes what settings a supervisor started with, when it is seen first.
func (e *envoySide) noteSupervisorLocked() {
	if pid := e.seen.proxy.Supervisor; e.seen.supervisor == nil && pid != e.supervisor {
		e.supervisor, e.startedBy = pid, e.cfg()
	}
}

// waiting names the settings that the supervisor, and Envoy with it, has to be started again for.
func (e *envoySide) waiting() []string {
	cfg := e.cfg()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.startedBy == nil || e.seen.supervisor != nil {
		return nil
	}
	return bootstrap.Changed(e.startedBy, cfg, bootstrap.OnProxyRestart)
}

// say logs transitions.
func (e *envoySide) say(from, to presence, s sighting) {
	switch {
	case to.live && !from.live:
		e.log.Info("Envoy serves", "pid", s.proxy.PID, "away", away(from))
	case from.live && !to.live:
		e.log.Warn("Envoy does not serve", "cause", to.cause)
	}
	if from.announced != to.announced {
		e.log.Info("Envoy came, or has gone for good: this machine joins again", "takes_mutual_tls", to.announced, "cause", to.cause)
	}
}

func away(p presence) time.Duration {
	if p.lost.IsZero() {
		return 0
	}
	return time.Since(p.lost).Round(time.Millisecond)
}

// look reads what there is to see of Envoy.
func (e *envoySide) look(ctx context.Context) (s sighting) {
	cfg := e.cfg()
	_, s.program = envoy.Find(cfg.Envoy)
	s.proxy, s.supervisor = proxy.ReadState(proxy.RunDir(cfg))
	if s.supervisor != nil && !errors.Is(s.supervisor, proxy.ErrNoProxy) {
		// Not being able to read is no sign that Envoy is gone: what was seen last holds.
		return e.unseen(s)
	}
	if s.supervisor != nil || s.proxy.Phase != proxy.PhaseLive {
		return s
	}
	e.mu.Lock()
	known := e.configured == s.proxy.PID
	e.mu.Unlock()
	if s.configured = known; known {
		s.deaf = e.hear(ctx, cfg, s.proxy.PID)
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, overviewWait)
	defer cancel()
	o, err := e.admin(cfg).Overview(ctx)
	if err != nil {
		e.log.Debug("Envoy does not say what configuration it has", "cause", err)
	}
	if s.configured = o.Configured(); s.configured {
		e.mu.Lock()
		e.configured = s.proxy.PID
		e.mu.Unlock()
	}
	return s
}

// silence is an Envoy that was live and does not answer any more.
type silence struct {
	pid   int
	since time.Time // zero: it answers
}

// next takes one question in. deaf says why Envoy does not serve whatever its supervisor says of it: whoever watches over Envoy must notice sooner. It is pure.
func (q silence) next(pid int, err error, hang time.Duration, now time.Time) (_ silence, deaf string) {
	if err == nil || pid != q.pid {
		q = silence{pid: pid}
	}
	if err == nil {
		return q, ""
	}
	if q.since.IsZero() {
		q.since = now
	}
	patience := hang + refusedPatience // the supervisor's hang check is first
	if errors.Is(err, syscall.ECONNREFUSED) {
		patience = refusedPatience // nobody is there, and the supervisor is told of that at once
	}
	if now.Sub(q.since) < patience {
		return q, ""
	}
	return q, "its supervisor says it is live, and it does not answer: " + err.Error()
}

// hear asks an Envoy that is said to be live whether it is there.
func (e *envoySide) hear(ctx context.Context, cfg *bootstrap.Config, pid int) (deaf string) {
	ctx, cancel := context.WithTimeout(ctx, hearWait)
	defer cancel()
	_, _, err := e.admin(cfg).Ready(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.silence, deaf = e.silence.next(pid, err, cfg.Envoy.HangTimeout, time.Now())
	return deaf
}

// unseen is what a look counts for that could not read the supervisor's state.
func (e *envoySide) unseen(s sighting) sighting {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cause := s.supervisor.Error(); e.blind != cause {
		e.blind = cause
		e.log.Error("the state of Envoy's supervisor cannot be read; what was known of it holds", "cause", cause)
	}
	last := e.seen
	last.program, last.supervisor = s.program, nil
	return last
}

// admin is the way to the Envoy of the bootstrap file.
func (e *envoySide) admin(cfg *bootstrap.Config) *envoy.Admin {
	b, err := os.ReadFile(envoy.BootstrapPath(cfg))
	if err == nil {
		if facts, err := envoy.FactsOf(b); err == nil {
			return envoy.NewAdmin(facts.Admin, facts.OwnPorts()...)
		}
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), cfg.Envoy.AdminPort)
	return envoy.NewAdmin(at, cfg.Status.ReadinessPort, cfg.Status.PrometheusPort)
}

// now is the presence in force.
func (e *envoySide) now() presence {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.presence
}

// unfit says why this machine must not be sent traffic, whatever its workload says.
func (e *envoySide) unfit() string { return e.now().unfit(time.Now()) }

// drain has Envoy shed its connections and gives them so long to end.
func (e *envoySide) drain(ctx context.Context, most time.Duration) {
	if !e.now().live || most <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	proxy.Drain(ctx, e.admin(e.cfg()), e.log)
}

// report is Envoy's part of the status, and what of it is degraded.
func (e *envoySide) report() (r status.EnvoyReport, degraded []string) {
	e.mu.Lock()
	p, s := e.presence, e.seen
	e.mu.Unlock()
	r = status.EnvoyReport{
		Announced: p.announced, Live: p.live, Phase: string(s.proxy.Phase), PID: s.proxy.PID, Starts: s.proxy.Starts,
		Program: s.proxy.Program, Version: s.proxy.Version, Cause: cmp.Or(p.cause, s.proxy.Cause),
	}
	if s.supervisor != nil {
		r.Phase, s.proxy.Outdated, s.proxy.Refused = "", "", ""
	}
	why := p.unfit(time.Now())
	if why == "" && errors.Is(s.program, envoy.ErrNoProgram) && e.cfg().Envoy.Enabled == "true" {
		why = s.program.Error()
	}
	for _, why := range []string{why, s.proxy.Outdated, s.proxy.Refused} {
		if why != "" {
			degraded = append(degraded, why)
		}
	}
	return r, degraded
}
