package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"google.golang.org/protobuf/types/known/structpb"

	"wingman/agent/xds"
	"wingman/agent/xds/discovery"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/health"
)

// Timings of a member.
const (
	// addressCheck is how often the machine's address is looked at: a DHCP lease that changed it wants a new WorkloadEntry.
	addressCheck = 10 * time.Second
	addressRetry = time.Second // while there is none yet: early at boot
	// farewell bounds how long a stop waits for istiod to hear that this workload is unhealthy.
	farewell = 2 * time.Second
	// renewPause is the least time between two requests for a certificate because istiod may have refused the one in hand.
	renewPause   = 5 * time.Second
	renewTimeout = 20 * time.Second
	stopWait     = 5 * time.Second
)

// errAddressChanged ends a member whose node is out of date: istiod reads the node once a stream, and registers by its address.
var errAddressChanged = errors.New("address of this machine changed")

// member is this machine's membership under one configuration: identity, stream, health. A reload and a changed address make a
// new one; DNS and rules stay.
type member struct {
	cfg       *bootstrap.Config
	hostname  string
	log       *slog.Logger
	logs      *logs
	metrics   *prometheus.Registry
	dialer    *dialer
	identity  *identity.Manager
	envoy     bool        // Envoy takes this machine's traffic
	entry     *entryFacts // what a WorkloadEntry of this member is made with
	side      *envoySide
	take      func(xds.Push) error
	changed   func()                  // something that status shows changed
	record    func(health.Report)     // takes what istiod is told, again and again
	onAnswer  func(*member)           // istiod has answered on a stream: the WorkloadEntry is there
	visit     bool                    // it comes only to leave, so that istiod sees that
	answered  bool                    // by istiod; guarded by Agent.mu
	refused   chan struct{}           // buffered 1: istiod may have refused the certificate
	certified chan struct{}           // buffered 1: there is another certificate
	replace   context.CancelCauseFunc // ends run, for another member to take its place; set before run
	term      context.Context         // run's: over when another member takes its place; set before run

	telling sync.Mutex // held while istiod is told of health: the last word must be the latest; taken before mu

	mu     sync.Mutex // guards everything below, verdict's fields too
	parts  *group     // nil before run
	addrs  []netip.Addr
	nodeID string
	xds    *xds.Client     // nil until there is an address
	health *health.Checker // nil until there is an address
	verdict
}

// memberConfig is what newMember needs beside the configuration.
type memberConfig struct {
	hostname  string
	envoy     *envoySide
	drained   string               // reason to be unhealthy, by the operator
	announce  bool                 // tell the mesh that Envoy takes this machine's traffic
	takeNames func(xds.Push) error // handler of the NameTable
	onChange  func()
	record    func(health.Report)
	onAnswer  func(*member)
	visit     bool
	logs      *logs
	getenv    func(string) string
}

func newMember(cfg *bootstrap.Config, mc memberConfig) (*member, error) {
	m := &member{
		cfg:       cfg,
		hostname:  mc.hostname,
		log:       mc.logs.part("member"),
		logs:      mc.logs,
		metrics:   prometheus.NewRegistry(),
		dialer:    newDialer(cfg.Hosts),
		envoy:     mc.announce,
		entry:     entryFor(cfg, mc.hostname, mc.announce),
		side:      mc.envoy,
		take:      mc.takeNames,
		changed:   mc.onChange,
		onAnswer:  mc.onAnswer,
		record:    mc.record,
		visit:     mc.visit,
		refused:   make(chan struct{}, 1),
		certified: make(chan struct{}, 1),
		verdict:   verdict{drained: mc.drained},
	}
	if m.visit {
		m.leaving = "this machine joins again, with other labels"
	}
	ic := identityConfig(cfg, mc.getenv)
	ic.Machine = identity.ReadMachine(cfg.Root)
	ic.Dial = m.dialer.Dial
	ic.Log = mc.logs.part("identity")
	ic.Metrics = m.metrics
	ic.OnChange = func(c *identity.Certificate) {
		m.side.take(c)
		if c := m.client(); c != nil {
			c.Retry() // what istiod refused with the old certificate may pass with the new one
		}
		select {
		case m.certified <- struct{}{}:
		default:
		}
		m.changed()
	}
	var err error
	if m.identity, err = identity.New(ic); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	return m, nil
}

// entryFor are the facts of an entry under these settings, whatever the address.
func entryFor(cfg *bootstrap.Config, hostname string, announce bool) *entryFacts {
	return entryOf(cfg.Node(bootstrap.NodeFacts{Hostname: hostname, Envoy: announce}))
}

// run keeps the membership until ctx ends (nil) or the machine's address changes (errAddressChanged).
func (m *member) run(ctx context.Context) error {
	g := newGroup(ctx, m.log)
	m.mu.Lock()
	m.parts = g
	m.mu.Unlock()
	defer func() {
		if err := g.stop(stopWait); err != nil {
			m.log.Warn("membership does not end cleanly", "cause", err)
		}
	}()
	g.start(task{name: "identity", run: m.identity.Run})
	g.start(task{name: "renewal", run: m.renewRefused})

	addrs, err := m.waitAddrs(ctx)
	if err != nil {
		return nil // only ctx ends the wait
	}
	if err := m.prepare(addrs); err != nil {
		return err
	}
	g.start(task{name: "health", run: m.health.Run})
	g.start(task{name: "identity's end", run: m.watchIdentity})
	// Neither stream has a chance without a certificate.
	identified := func(run func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-m.identity.Ready():
				return run(ctx)
			case <-ctx.Done():
				return nil
			}
		}
	}
	if m.visit {
		m.tellHealth() // that it leaves is all that istiod is to hear
	}
	g.start(task{name: "xds", run: identified(m.xds.Run)})
	if m.visit {
		return m.watchAddrs(ctx, addrs)
	}
	g.start(task{name: "envoy stream", run: identified(func(ctx context.Context) error { return m.side.gate.Attach(ctx, m.xds) })})
	return m.watchAddrs(ctx, addrs)
}

// prepare makes the parts that need to know the address.
func (m *member) prepare(addrs []netip.Addr) error {
	checker, err := health.New(health.Config{
		Probe:           probeOf(m.cfg.Probe),
		Damping:         dampingOf(m.cfg.Probe),
		InstanceIP:      addrs[0],
		LegacyLocalhost: m.cfg.ProbeLocalhost,
		OnReport:        m.onHealth,
		Log:             m.logs.part("health"),
		Metrics:         m.metrics,
	})
	if err != nil {
		return fmt.Errorf("readiness probe: %w", err)
	}
	node, err := m.node(addrs)
	if err != nil {
		return err
	}
	m.side.write(m.cfg, m.hostname, addrs)
	client, err := xds.New(xds.Config{
		Address:       m.cfg.Discovery.Address,
		ClusterID:     m.cfg.ClusterID,
		Delta:         m.cfg.XDS.Delta,
		Node:          func(context.Context) (*discovery.Node, error) { return node, nil },
		TLS:           func() *tls.Config { return m.identity.ClientTLSFor(m.cfg.Discovery.ServerName) },
		Token:         m.token,
		Dial:          m.dialer.Dial,
		Subscriptions: []xds.Subscription{{TypeURL: xds.TypeNameTable, Handle: m.take}, {TypeURL: xds.TypeProxyConfig, Handle: m.takeBundle}},
		OnState: func(s xds.State) {
			if s.Answered {
				m.onAnswer(m)
			}
			m.changed()
		},
		Fit:       m.side.fitting.fit,
		OnRefused: m.noteRefused,
		Log:       m.logs.part("xds"),
		Metrics:   m.metrics,
	})
	if err != nil {
		return fmt.Errorf("stream to istiod: %w", err)
	}
	m.mu.Lock()
	m.addrs, m.nodeID, m.health, m.xds = addrs, node.GetId(), checker, client
	m.mu.Unlock()
	m.log.Info("instance known", "node", node.GetId(), "addresses", addrs)
	return nil
}

func (m *member) noteRefused() {
	select {
	case m.refused <- struct{}{}:
	default:
	}
}

// renewRefused asks for another certificate when istiod may have refused the one in hand: it is of a CA that was replaced, say. The token, or what a
// new root file brings, may make the difference; if not, asking now and then costs little.
func (m *member) renewRefused(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.refused:
		}
		if m.identity.Current() != nil {
			once, cancel := context.WithTimeout(ctx, renewTimeout)
			if err := m.identity.Renew(once); err != nil && ctx.Err() == nil {
				m.log.Debug("no other certificate to try", "cause", err)
			}
			cancel()
		}
		select {
		case <-ctx.Done():
		case <-time.After(renewPause):
		}
	}
}

// node is what istiod is told of this machine.
func (m *member) node(addrs []netip.Addr) (*discovery.Node, error) {
	n := m.cfg.Node(bootstrap.NodeFacts{Hostname: m.hostname, Addrs: addrs, Envoy: m.envoy})
	md, err := structpb.NewStruct(n.Metadata)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &discovery.Node{
		Id:       n.ID,
		Cluster:  n.Cluster,
		Locality: &discovery.Locality{Region: n.Locality.Region, Zone: n.Locality.Zone, SubZone: n.Locality.SubZone},
		Metadata: md,
	}, nil
}

// addresses asks for the instance's addresses as they are now.
func (m *member) addresses(ctx context.Context) ([]netip.Addr, error) {
	var targets []netip.Addr
	if len(m.cfg.InstanceIPs) == 0 {
		host, _, err := net.SplitHostPort(m.cfg.Discovery.Address)
		if err != nil {
			return nil, err
		}
		// Without an answer the default route still says which address it is.
		targets, _ = m.dialer.resolve(ctx, host)
	}
	return bootstrap.InstanceAddrs(ctx, m.cfg, targets)
}

// waitAddrs waits until the machine has an address: early at boot there may be none. Its error is ctx's.
func (m *member) waitAddrs(ctx context.Context) ([]netip.Addr, error) {
	said := ""
	for {
		addrs, err := m.addresses(ctx)
		if err == nil && len(addrs) > 0 {
			return addrs, nil
		}
		if err != nil && err.Error() != said {
			said = err.Error()
			m.log.Warn("no address to register with yet", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(addressRetry):
		}
	}
}

// watchAddrs returns errAddressChanged once the machine has other addresses than known. Having none for a while changes nothing:
// a link that is down comes back, mostly with the same address.
func (m *member) watchAddrs(ctx context.Context, known []netip.Addr) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(addressCheck):
		}
		now, err := m.addresses(ctx)
		if err != nil || len(now) == 0 || slices.Equal(now, known) {
			continue
		}
		m.log.Info("address changed", "from", known, "to", now)
		return errAddressChanged
	}
}

// id is the node's, empty before there is an address.
func (m *member) id() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodeID
}

func (m *member) client() *xds.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.xds
}

// takeBundle is the handler of PCDS pushes.
func (m *member) takeBundle(p xds.Push) error {
	pems, err := xds.TrustBundle(p)
	if err != nil {
		return err
	}
	return m.identity.TakeBundle(pems)
}

// token is the bearer token worth sending: none when there is none, or when it cannot pass any more.
func (m *member) token() string {
	t, err := m.identity.Token()
	if err != nil {
		return ""
	}
	if _, err := identity.InspectToken([]byte(t), time.Now()); err != nil {
		return ""
	}
	return t
}
