package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wingman/agent/envoy"
	"wingman/bootstrap"
)

// What the agent keeps below the state folder: the settings' files as they last worked, and that this machine has joined.
const (
	lastGoodFile = "last-good.json"
	joinedFile   = "joined.json"
)

// loadSettings reads the settings of a machine. Where the files cannot be used it takes those that the agent used last, as the agent
// does: a file that was broken last must not take Envoy from a machine whose traffic goes through it. warning then says why.
func loadSettings(root string) (cfg *bootstrap.Config, warning error, err error) {
	cfg, problems := bootstrap.Load(root)
	if cfg != nil {
		return cfg, nil, nil // an unusable root certificate is the agent's business
	}
	b, readErr := os.ReadFile(filepath.Join(bootstrap.DefaultPaths(root).StateDir, lastGoodFile))
	var files bootstrap.Snapshot
	if readErr != nil || json.Unmarshal(b, &files) != nil {
		return nil, nil, problems.Err()
	}
	cfg, _ = bootstrap.LoadSnapshot(root, files)
	if cfg == nil {
		return nil, nil, problems.Err()
	}
	return cfg, problems.Err(), nil
}

// source finds the bootstrap file, or makes it.
type source struct {
	cfg      *bootstrap.Config
	hostname string
	patience time.Duration // how long the agent's file is waited for
	began    time.Time     // when it was first missed; zero: not yet
	log      *slog.Logger
	noted    bool
}

// agentPatience is how long the agent has to write its file: it starts with this process, and needs the machine's address.
const agentPatience = 5 * time.Second

// path returns the agent's file. Where the agent has not written one, this process makes its own after a while: Envoy then runs,
// and waits for the agent's sockets.
func (s *source) path(ctx context.Context) (string, error) {
	ours := envoy.BootstrapPath(s.cfg)
	if _, err := os.Stat(ours); err == nil {
		s.began = time.Time{}
		return ours, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	if s.began.IsZero() {
		s.began = time.Now()
	}
	if time.Since(s.began) < s.patience {
		return "", fmt.Errorf("the agent has not written %s: %w", ours, errExpected)
	}
	f, err := Make(ctx, s.cfg, s.hostname)
	if err != nil {
		return "", fmt.Errorf("the agent has not written %s, and without it: %w", ours, err)
	}
	path := filepath.Join(RunDir(s.cfg), filepath.Base(ours))
	if _, err := envoy.Write(path, f, envoy.Owner(s.cfg)); err != nil {
		return "", err
	}
	if !s.noted {
		s.noted = true
		s.log.Warn("the agent has not written Envoy's bootstrap file; one is made from the settings", "missing", ours, "made", path)
		for _, note := range f.Notes {
			s.log.Warn("Envoy's bootstrap file", "note", note)
		}
	}
	return path, nil
}

// Make makes the bootstrap file of this machine, as the agent does, without the agent: `wingman envoy bootstrap`. The machine's
// address is that of the route to istiod, where istioctl's hosts file or the settings have an address of it, else the default route's.
func Make(ctx context.Context, cfg *bootstrap.Config, hostname string) (envoy.File, error) {
	targets := istiodAddrs(cfg)
	addrs, err := bootstrap.InstanceAddrs(ctx, cfg, targets)
	if err != nil && !errors.Is(err, bootstrap.ErrNoInstanceAddr) {
		// The supervisor's unit closes netlink to it. The routes can be asked in another way, if with less care.
		if addrs = routeSources(targets, cfg.DualStack); len(addrs) > 0 {
			err = nil
		}
	}
	if err != nil {
		return envoy.File{}, err
	}
	node := cfg.Node(bootstrap.NodeFacts{Hostname: hostname, Addrs: addrs, Envoy: true})
	return envoy.Bootstrap(envoy.InputOf(cfg, node, addrs))
}

// istiodAddrs are the addresses of istiod that the files know.
func istiodAddrs(cfg *bootstrap.Config) []netip.Addr {
	host, _, err := net.SplitHostPort(cfg.Discovery.Address)
	if err != nil {
		return nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}
	}
	return cfg.Hosts[strings.ToLower(host)]
}

// Addresses for documentation (RFC 5737, RFC 3849): the way to them is the default route.
var elsewhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// routeSources returns the source address of the way to the first target that there is a way to, and with dualStack one of the other
// family too. Connecting a UDP socket asks the kernel for the route and sends nothing.
func routeSources(targets []netip.Addr, dualStack bool) []netip.Addr {
	var found []netip.Addr
	for _, target := range slices.Concat(targets, elsewhere) {
		if len(found) > 0 && (!dualStack || found[0].Is4() == target.Unmap().Is4()) {
			continue
		}
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, 9)))
		if err != nil {
			continue
		}
		source := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		c.Close()
		if source.IsGlobalUnicast() {
			found = append(found, source)
		}
		if len(found) == 2 {
			break
		}
	}
	return found
}

// portsOf lists what Envoy will listen on: the ports of the bootstrap file, and those that istiod's listeners get.
func portsOf(cfg *bootstrap.Config, facts envoy.Facts) []Port {
	ports := []Port{{Addr: facts.Admin, Purpose: "its admin interface", Setting: "envoy.adminPort"}}
	for _, l := range facts.Listeners {
		p := Port{Addr: l, Purpose: "a listener of its bootstrap file"}
		switch l.Port() {
		case cfg.Status.ReadinessPort:
			p.Purpose, p.Setting = "readiness", "status.readinessPort"
		case cfg.Status.PrometheusPort:
			p.Purpose, p.Setting = "metrics", "status.prometheusPort"
		}
		ports = append(ports, p)
	}
	everywhere := netip.IPv6Unspecified()
	if facts.IPv4 {
		everywhere = netip.IPv4Unspecified()
	}
	add := func(port uint16, purpose string) {
		ports = append(ports, Port{Addr: netip.AddrPortFrom(everywhere, port), Purpose: purpose, Mesh: true})
	}
	add(cfg.Capture.ProxyPort, "outbound traffic")
	add(cfg.Capture.InboundPort, "inbound traffic")
	if cfg.Envoy.HBONE {
		add(cfg.Capture.TunnelPort, "HBONE")
	}
	return ports
}

// override is the variable whose file is merged into the bootstrap file (Istio: pkg/envoy/proxy.go).
const override = "ISTIO_BOOTSTRAP_OVERRIDE"

// argumentsOf are the flags for one machine.
func argumentsOf(cfg *bootstrap.Config, facts envoy.Facts) ([]string, error) {
	args := arguments(cfg.Envoy, facts.IPv4)
	for _, s := range cfg.Settings() {
		if s.Key == override && s.Value != "" {
			b, err := os.ReadFile(filepath.Join(cfg.Root, filepath.Join("/", s.Value)))
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", override, s.File, err)
			}
			args = append(args, "--config-yaml", string(b))
		}
	}
	return args, nil
}

// ConfigOf is the configuration of the supervisor of one machine. The caller adds outputs and logs.
func ConfigOf(cfg *bootstrap.Config, hostname string, log *slog.Logger) Config {
	files := &source{cfg: cfg, hostname: hostname, patience: agentPatience, log: log}
	c := Config{
		Program:     func() (string, error) { return envoy.Find(cfg.Envoy) },
		Required:    cfg.Envoy.Enabled == "true",
		Bootstrap:   files.path,
		Args:        func(f envoy.Facts) ([]string, error) { return argumentsOf(cfg, f) },
		Ports:       func(f envoy.Facts) []Port { return portsOf(cfg, f) },
		Worker:      func(f envoy.Facts) netip.AddrPort { return workerOf(cfg, f) },
		Dir:         cfg.Root,
		RunDir:      RunDir(cfg),
		Env:         os.Environ(),
		Drain:       cfg.Envoy.TerminationDrain,
		HangTimeout: cfg.Envoy.HangTimeout,
		Log:         log,
	}
	// Root's traffic is not exempt from capture: an Envoy of root would get back what it sends.
	if os.Geteuid() == 0 && cfg.Capture.UserKnown && cfg.Capture.ProxyUID != 0 {
		c.User = &User{UID: cfg.Capture.ProxyUID, GID: cfg.Capture.ProxyGID}
	}
	return c
}
