package agent

import (
	"os"
	"slices"
	"strings"
	"time"

	"wingman/agent/status"
	"wingman/bootstrap/identity"
)

// adminSocket is the admin socket's name below the run folder.
const adminSocket = "admin.sock"

// Phases of the daemon.
const (
	phaseWaiting = "waiting" // for the files to join with
	phaseJoining = "joining"
	phaseJoined  = "joined"
	phaseLeaving = "leaving"
)

// streamPatience is how long the stream may be away before that counts as degraded: a restart of istiod is none. A refusal counts at once.
const streamPatience = 30 * time.Second

// report gathers the state of all parts. It takes each part's own lock one after the other, never two.
func (a *Agent) report() status.Report {
	a.mu.Lock()
	m, joined, leaving, cfg := a.member, a.joined, a.leaving, a.cfg
	r := status.Report{
		Version:   a.opts.Version,
		PID:       os.Getpid(),
		StartedAt: a.started,
		Time:      time.Now(),
		Config:    status.ConfigReport{Source: a.source, Loaded: a.loaded},
	}
	for _, p := range a.problems {
		r.Config.Problems = append(r.Config.Problems, p.Severity.String()+": "+p.String())
	}
	broken := a.problems.Err() != nil
	waiting, rejoining := a.waiting, a.rejoining
	a.mu.Unlock()

	if cfg.AutoRegisterGroup != "" {
		r.Instance.Group = cfg.Namespace + "/" + cfg.AutoRegisterGroup
	}
	r.DNS = a.dnsReport()
	r.Capture = a.capture.report()
	var degraded []string
	r.Envoy, degraded = a.envoy.report()
	if a.loop.said() && r.Time.Sub(a.started) < guardNews {
		degraded = append(degraded, a.loop.over(a.started))
	}
	degraded = append(degraded, a.tables.troubles()...)
	degraded = append(degraded, a.resolved.report(cfg, &r.DNS)...)
	if broken {
		degraded = append(degraded, "the settings as they are now cannot be used (wingman config check); those that were good last are in force")
	}
	if len(waiting) > 0 {
		degraded = append(degraded, "settings that wait for systemctl restart wingman: "+strings.Join(waiting, ", "))
	}
	if waiting := a.envoy.waiting(); len(waiting) > 0 {
		degraded = append(degraded, "settings that wait for systemctl restart wingman-proxy: "+strings.Join(waiting, ", "))
	}
	if m != nil {
		degraded = append(degraded, m.report(&r)...)
	}
	for _, g := range a.groups() {
		for name, cause := range g.troubles() {
			degraded = append(degraded, name+": "+cause)
		}
	}
	if r.Rejoining = rejoining; rejoining {
		degraded = append(degraded, "out of the mesh for another WorkloadEntry: its labels, or whether it can take mutual TLS, are to change")
	}
	if r.Capture.Why != "" && joined != nil {
		degraded = append(degraded, "capture: "+r.Capture.Why)
	}
	slices.Sort(degraded)
	r.Degraded = degraded

	r.Phase = phaseJoining
	if joined != nil {
		r.Phase = phaseJoined
		if !joined.At.IsZero() {
			r.Instance.JoinedAt = &joined.At
		}
	}
	if leaving {
		r.Phase = phaseLeaving
	}
	r.Drained = a.drainedNow().verdict()
	r.NotReady = a.notReady()
	r.Ready = len(r.NotReady) == 0
	return r
}

// groups are all whose tasks may be in trouble.
func (a *Agent) groups() []*group {
	a.mu.Lock()
	groups, m := []*group{a.services, a.members, a.supervisors}, a.member
	a.mu.Unlock()
	if m != nil {
		m.mu.Lock()
		groups = append(groups, m.parts)
		m.mu.Unlock()
	}
	return slices.DeleteFunc(groups, func(g *group) bool { return g == nil })
}

func (a *Agent) dnsReport() status.DNSReport {
	source, version, names, received := a.tables.snapshot()
	d := status.DNSReport{Source: source, Version: version, Names: names, Inherited: a.sockets.inherited}
	if source != tableNone {
		d.Received = &received
	}
	for _, c := range a.sockets.udp {
		d.Listen = append(d.Listen, addrPort(c.LocalAddr()).String())
	}
	stats := a.dns.Stats()
	d.LeftOut = stats.TableLeftOut
	for _, u := range stats.Upstreams {
		d.Upstreams = append(d.Upstreams, u.Address)
	}
	return d
}

// identityTroubles is what of an identity somebody should look at: each sentence that `wingman cert show` calls a problem. A certificate of which a quarter is
// left is only noted, in the status itself; at a tenth the machine is degraded, whatever the last request said.
func identityTroubles(id identity.State) (degraded []string) {
	problems := []string{id.LastError, id.Copied, id.Clock, id.LifeProblem, id.RootProblem, id.StoreProblem, id.OutputProblem}
	if id.LastError == "" && id.Serial != "" && id.Health == identity.Degraded {
		problems[0] = "the certificate is not renewed and ends at " + id.NotAfter.UTC().Format(time.RFC3339)
	}
	for _, g := range id.Groups {
		problems = append(problems, g.Problem)
	}
	for _, problem := range problems {
		if problem != "" {
			degraded = append(degraded, "identity: "+problem)
		}
	}
	return degraded
}

// report adds the membership's part to r and returns what is degraded about it.
func (m *member) report(r *status.Report) (degraded []string) {
	id := m.identity.State()
	r.Identity = &id
	degraded = identityTroubles(id)
	m.mu.Lock()
	r.Instance.NodeID = m.nodeID
	for _, addr := range m.addrs {
		r.Instance.Addresses = append(r.Instance.Addresses, addr.String())
	}
	client, workload := m.xds, m.workload
	m.mu.Unlock()
	if workload != nil {
		healthy, since := workload.Healthy, workload.At
		r.Health = status.HealthReport{Healthy: &healthy, Reason: workload.Reason, Since: &since}
	}
	if client == nil {
		return append(degraded, "no address to register with yet")
	}
	s := client.State()
	r.XDS = &s
	r.Envoy.Stream = s.Envoy
	if s.LastError != "" && (s.Rejected || time.Since(s.DownSince) > streamPatience) {
		degraded = append(degraded, "no stream to istiod since "+s.DownSince.Format(time.RFC3339)+": "+s.LastError)
	}
	for typ, reason := range s.EnvoyNACK {
		degraded = append(degraded, "Envoy refused istiod's last push of "+typ+" and keeps what it had: "+reason)
	}
	if s.LastNACK != "" {
		degraded = append(degraded, "istiod's last push was refused: "+s.LastNACK)
	}
	return degraded
}

// notReadyBecause decides what /healthz/ready answers: ready needs a certificate, a configuration of istiod, by this run's stream or by an
// earlier one's that is in hand, where Envoy is to take the traffic, one that does, and the rules that bring it the traffic: uncaptured says what they lack.
func notReadyBecause(m *member, joined *joinState, e presence, uncaptured string, required, leaving bool) (why []string) {
	if leaving {
		return []string{"leaving the mesh"}
	}
	switch c := certificateOf(m); {
	case c == nil:
		why = append(why, "no certificate yet")
	case time.Now().After(c.NotAfter):
		why = append(why, "the certificate ended at "+c.NotAfter.Format(time.RFC3339))
	}
	if joined == nil {
		why = append(why, "no configuration from istiod yet")
	}
	if (e.announced || required) && !e.live {
		why = append(why, "Envoy does not serve: "+e.cause)
	}
	if uncaptured != "" {
		why = append(why, uncaptured)
	}
	return why
}

// certificateOf is the one in use; nil: none.
func certificateOf(m *member) *identity.Certificate {
	if m == nil {
		return nil
	}
	return m.identity.Current()
}

// notReady is report's answer alone, for the port that load balancers ask often.
func (a *Agent) notReady() []string {
	a.mu.Lock()
	m, joined, leaving, required := a.member, a.joined, a.leaving, a.cfg.Envoy.Enabled == "true"
	a.mu.Unlock()
	e := a.envoy.now() // before the rules are looked at: an Envoy that came since may want others
	return notReadyBecause(m, joined, e, uncaptured(a.captureWish(), a.capture.kernel()), required, leaving)
}
