package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/envoy"
	"wingman/agent/envoy/proxy"
	"wingman/agent/xds"
	"wingman/agent/xds/discovery"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
	"wingman/dnsproxy"
	"wingman/internal/plainfile"
)

// Trial is this agent beside another that serves the machine: it gets a certificate, istiod's configuration and the names, has Envoy judge its bootstrap file,
// and then answers DNS on a port of its own until it is ended. It takes nothing over: no rule, no WorkloadEntry, no port of the mesh, no file but those
// below the state folder and Dir.
//
// It runs as the agent's user, so that what that one may read and where its queries go is tried as well. To istiod it is a proxy that registers nothing: a
// second stream of the machine's own would end before the other agent's, and take the entry along (ISTIO's autoregistration).
type Trial struct {
	Root string
	Dir  string // for what it writes beside the state: report.json, Envoy's bootstrap file
	Port uint16 // where it answers DNS, at the addresses of dns.listen
	// NamesOnly leaves everything out but DNS, from the table on disk.
	NamesOnly bool
	Stderr    *os.File
	Getenv    func(string) string
}

// TrialReport is what a trial found; the content of report.json.
type TrialReport struct {
	Error string `json:"error,omitempty"` // why this agent could not take over; empty: it could

	Port      uint16    `json:"port"` // where it answers DNS
	NodeID    string    `json:"nodeId,omitempty"`
	SPIFFEID  string    `json:"spiffeId,omitempty"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Names     int       `json:"names"`
	Clusters  int       `json:"clusters"`
	Listeners int       `json:"listeners"`
	Envoy     string    `json:"envoy,omitempty"`   // its program; empty: there is none, and why
	NoEnvoy   string    `json:"noEnvoy,omitempty"` // why traffic is not captured
	Notes     []string  `json:"notes,omitempty"`
}

// Types that a trial asks for beside the names.
const (
	typeCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

const (
	// trialPatience bounds each of a trial's steps.
	trialPatience = 20 * time.Second
	// triesForCertificate is after how many refusals there is none.
	triesForCertificate = 2
)

// ReadTrialReport reads what a trial left in its folder, which is the agent's user's.
func ReadTrialReport(dir string) (r TrialReport, err error) {
	path := filepath.Join(dir, trialReport)
	b, _, err := plainfile.Read(path, mostTrialReport)
	if err != nil {
		return r, fmt.Errorf("report of the trial: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("report of the trial: %s: %w", path, err)
	}
	return r, nil
}

const (
	trialReport     = "report.json"
	mostTrialReport = 1 << 20 // bytes; the notes are as many as what Envoy is not given
)

// Run tries, writes the report, calls ready if all was well, and answers DNS until ctx ends.
func (t *Trial) Run(ctx context.Context, ready func() error) error {
	cfg, problems := bootstrap.Load(t.Root)
	if err := problems.Err(); err != nil {
		return t.report(TrialReport{}, err)
	}
	logs, err := newLogs(cfg.Log, t.Stderr, t.Getenv)
	if err != nil {
		return t.report(TrialReport{}, err)
	}
	g := newGroup(ctx, logs.part("agent"))
	defer g.stop(stopWait)
	r, err := t.prove(ctx, cfg, logs, g)
	if err := t.report(r, err); err != nil {
		return err
	}
	if err := ready(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-g.fatal:
		return err
	}
}

// report writes what was found, and returns the error that it was given, or its own.
func (t *Trial) report(r TrialReport, found error) error {
	if found != nil {
		r.Error = found.Error()
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = writeFile(filepath.Join(t.Dir, trialReport), b, 0o644)
	}
	return errors.Join(found, err)
}

// prove goes through everything that can be known before the other agent is stopped. Tasks that are to go on are left in g.
func (t *Trial) prove(ctx context.Context, cfg *bootstrap.Config, logs *logs, g *group) (r TrialReport, err error) {
	r.Port = t.Port
	tables, err := t.serveDNS(cfg, logs, g)
	if err != nil {
		return r, err
	}
	if t.NamesOnly {
		tables.restore()
		_, _, r.Names, _ = tables.snapshot()
		return r, nil
	}
	metrics := prometheus.NewRegistry()
	dialer := newDialer(cfg.Hosts)
	ic := identityConfig(cfg, t.Getenv)
	ic.OtherDir, ic.OutputDir = ic.OutputDir, "" // the other agent's: its pair is used, as the daemon would, and left there
	ic.Machine, ic.Dial, ic.Log, ic.Metrics = identity.ReadMachine(cfg.Root), dialer.Dial, logs.part("identity"), metrics
	ids, err := identity.New(ic)
	if err != nil {
		return r, fmt.Errorf("identity: %w", err)
	}
	g.start(task{name: "identity", run: ids.Run})
	if err := await(ctx, ids.Ready(), func() (string, bool) { return ids.State().LastError, ids.State().Attempts >= triesForCertificate }); err != nil {
		return r, fmt.Errorf("no certificate: %w", err)
	}
	r.SPIFFEID, r.NotAfter = ids.State().SPIFFEID, ids.State().NotAfter

	hostname, err := os.Hostname()
	if err != nil {
		return r, fmt.Errorf("host name: %w", err)
	}
	m := &member{cfg: cfg, hostname: hostname, log: logs.part("member"), dialer: dialer, identity: ids, envoy: true}
	addrs, err := m.addresses(ctx)
	if err != nil {
		return r, fmt.Errorf("this machine's address: %w", err)
	}
	node, err := m.node(addrs)
	if err != nil {
		return r, err
	}
	r.NodeID = node.GetId()
	delete(node.GetMetadata().GetFields(), "AUTO_REGISTER_GROUP")
	if err := t.askIstiod(ctx, cfg, logs, g, metrics, m, node, tables, &r); err != nil {
		return r, err
	}
	return r, t.tryEnvoy(ctx, cfg, hostname, addrs, &r)
}

// serveDNS answers from the table that istiod will send; other names go upstream.
func (t *Trial) serveDNS(cfg *bootstrap.Config, logs *logs, g *group) (*tables, error) {
	var s sockets
	for _, a := range listenAddrs(cfg) {
		udp, tcp, err := dnsproxy.Listen(netip.AddrPortFrom(a.Addr(), t.Port))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("DNS port: %w", err)
		}
		s.udp, s.tcp = append(s.udp, udp), append(s.tcp, tcp)
	}
	server, err := dnsproxy.New(dnsproxy.Config{
		UDP: s.udp, TCP: s.tcp,
		ResolvConf: cfg.Paths.ResolvConf, UplinkConf: filepath.Join(cfg.Root, "run/systemd/resolve/resolv.conf"),
		Forward: cfg.DNS.Forward, ForwardTimeout: cfg.DNS.ForwardTimeout, CacheBytes: zeroMeansNone(cfg.DNS.CacheSize), MaxStale: zeroMeansNone(cfg.DNS.MaxStale),
		Log: logs.part("dns"),
	})
	if err != nil {
		s.close()
		return nil, fmt.Errorf("DNS proxy: %w", err)
	}
	tables := newTables(filepath.Join(cfg.Paths.StateDir, tableName), logs.part("dns"), server.Replace)
	tables.configure(tableConfig(cfg))
	g.start(task{name: "dns", run: func(ctx context.Context) error {
		defer s.close()
		return server.Run(ctx)
	}, essential: true})
	g.start(task{name: "tables", run: tables.run})
	return tables, nil
}

// askIstiod opens a stream and waits for names, clusters and listeners.
func (t *Trial) askIstiod(ctx context.Context, cfg *bootstrap.Config, logs *logs, g *group, metrics *prometheus.Registry, m *member, node *discovery.Node, tables *tables, r *TrialReport) error {
	var (
		mu   sync.Mutex // guards left and r
		left = map[string]bool{xds.TypeNameTable: true, typeCluster: true, typeListener: true}
		all  = make(chan struct{})
	)
	got := func(p xds.Push, n *int) {
		mu.Lock()
		defer mu.Unlock()
		if n != nil {
			*n = len(p.Resources)
		}
		if left[p.TypeURL] {
			if delete(left, p.TypeURL); len(left) == 0 {
				close(all)
			}
		}
	}
	client, err := xds.New(xds.Config{
		Address: cfg.Discovery.Address, ClusterID: cfg.ClusterID, Delta: cfg.XDS.Delta,
		Node:  func(context.Context) (*discovery.Node, error) { return node, nil },
		TLS:   func() *tls.Config { return m.identity.ClientTLSFor(cfg.Discovery.ServerName) },
		Token: m.token, Dial: m.dialer.Dial,
		Subscriptions: []xds.Subscription{
			{TypeURL: xds.TypeNameTable, Handle: func(p xds.Push) error {
				err := tables.take(p)
				if err == nil {
					got(p, nil)
				}
				return err
			}},
			{TypeURL: typeCluster, Handle: func(p xds.Push) error { got(p, &r.Clusters); return nil }},
			{TypeURL: typeListener, Handle: func(p xds.Push) error { got(p, &r.Listeners); return nil }},
		},
		Log: logs.part("xds"), Metrics: metrics,
	})
	if err != nil {
		return fmt.Errorf("stream to istiod: %w", err)
	}
	streams := newGroup(g.ctx, logs.part("agent"))
	defer streams.stop(stopWait) // what it was opened for is known; names do not change much in a minute
	streams.start(task{name: "xds", run: client.Run})
	if err := await(ctx, all, func() (string, bool) { return client.State().LastError, false }); err != nil {
		return fmt.Errorf("no configuration from istiod at %s: %w", cfg.Discovery.Address, err)
	}
	mu.Lock()
	defer mu.Unlock()
	_, _, r.Names, _ = tables.snapshot()
	return nil
}

// tryEnvoy has Envoy judge the bootstrap file that it will be started with.
func (t *Trial) tryEnvoy(ctx context.Context, cfg *bootstrap.Config, hostname string, addrs []netip.Addr, r *TrialReport) error {
	program, err := envoy.Find(cfg.Envoy)
	if err != nil {
		r.NoEnvoy = err.Error()
		if errors.Is(err, envoy.ErrDisabled) {
			return nil
		}
		return err // pilot-agent's took traffic: without one this machine would be less than it was
	}
	r.Envoy = program
	f, err := envoy.Bootstrap(envoy.InputOf(cfg, cfg.Node(bootstrap.NodeFacts{Hostname: hostname, Addrs: addrs, Envoy: true}), addrs))
	if err != nil {
		return fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	r.Notes = f.Notes
	file := filepath.Join(t.Dir, "bootstrap.json")
	if err := writeFile(file, f.JSON, 0o600); err != nil {
		return err
	}
	if err := proxy.Try(ctx, cfg, program, file); err != nil {
		return fmt.Errorf("this machine's Envoy would not start: %w", err)
	}
	return nil
}

// await waits for something, and says why it does not come: after a while, or when why says that it will not.
func await(ctx context.Context, done <-chan struct{}, why func() (said string, never bool)) error {
	ctx, cancel := context.WithTimeout(ctx, trialPatience)
	defer cancel()
	for {
		select {
		case <-done:
			return nil
		case <-time.After(100 * time.Millisecond):
			if said, never := why(); never {
				return errors.New(said)
			}
		case <-ctx.Done():
			if said, _ := why(); said != "" {
				return errors.New(said)
			}
			return fmt.Errorf("no answer within %s", trialPatience)
		}
	}
}

// NoteTakenOver makes this machine one that has joined, by the membership of the agent whose place this one takes: its rules go in before anything else at the next
// start, at their full level. What istiod made the WorkloadEntry of is not known: it stays as it is. Run as the agent's user.
func NoteTakenOver(root string, r TrialReport) error {
	stateDir := bootstrap.DefaultPaths(root).StateDir
	if j, err := readJoined(stateDir); err == nil && j != nil {
		return nil
	}
	return writeJoined(stateDir, joinState{At: time.Now(), NodeID: r.NodeID, Served: r.Envoy != ""})
}
