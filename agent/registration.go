package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/agent/status"
	"wingman/bootstrap"
	"wingman/dnsproxy"
	"wingman/systemd/resolved"
)

// registrationLimit bounds how long a start and a stop wait for systemd-resolved.
const registrationLimit = 5 * time.Second

// registration keeps systemd-resolved told of the mesh's names, where dns.mode says so.
type registration struct {
	keeper *resolved.Registration
	wish   func() captureWish
	table  func() *dnsproxy.Table

	mu      sync.Mutex // guards everything below
	of      resolved.Names
	built   *dnsproxy.Table // the table that domains are of
	domains resolved.Domains
}

// newRegistration makes the keeper where the settings want one, and returns nil elsewhere.
func newRegistration(cfg *bootstrap.Config, log *slog.Logger, metrics prometheus.Registerer, wish func() captureWish, table func() *dnsproxy.Table, changed func()) (r *registration, err error) {
	if cfg.DNS.Mode != bootstrap.DNSResolved {
		return nil, nil
	}
	r = &registration{wish: wish, table: table}
	r.keeper, err = resolved.New(resolved.Config{Wish: r.wanted, Changed: changed, Log: log, Metrics: metrics})
	return r, err
}

// takeNamesBack takes away what an earlier run with another dns.mode told systemd-resolved.
func takeNamesBack(log *slog.Logger) {
	removed, err := resolved.Remove()
	switch {
	case err != nil:
		log.Warn("what an earlier run told systemd-resolved stays", "cause", err)
	case removed:
		log.Info("mesh names are taken back from systemd-resolved: dns.mode is another one now", "link", resolved.LinkName)
	}
}

// wanted is what should be registered now.
func (r *registration) wanted() resolved.Wish {
	w := r.wish()
	if !w.names {
		return resolved.Wish{}
	}
	return resolved.Wish{Registered: true, Server: reachable(w.cfg.DNS.Listen), Domains: r.domainsOf(w.cfg)}
}

// reachable is how a program of this machine reaches a listening socket.
func reachable(at netip.AddrPort) netip.AddrPort {
	switch {
	case !at.Addr().IsUnspecified():
		return at
	case at.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
}

// domainsOf are those of the table in use. They are derived once for each.
func (r *registration) domainsOf(cfg *bootstrap.Config) resolved.Domains {
	t := r.table()
	r.mu.Lock()
	defer r.mu.Unlock()
	if t == r.built && r.of.Domain == cfg.Domain && r.of.Namespace == cfg.Namespace {
		return r.domains
	}
	names := resolved.Names{Domain: cfg.Domain, Namespace: cfg.Namespace}
	for host := range t.Hosts() {
		names.Hosts = append(names.Hosts, host)
	}
	r.domains = resolved.DomainsOf(names)
	names.Hosts = nil
	r.of, r.built = names, t
	return r.domains
}

// run keeps systemd-resolved told until ctx ends.
func (r *registration) run(ctx context.Context) error { return r.keeper.Run(ctx) }

// poke says that the table, the settings or the join may have changed.
func (r *registration) poke() {
	if r != nil {
		r.keeper.Poke()
	}
}

// look has systemd-resolved told now and waits, within limits, for the attempt.
func (r *registration) look(ctx context.Context) {
	if r == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, registrationLimit)
	defer cancel()
	r.keeper.Look(ctx)
}

// report fills in the part of the status, and says what is degraded.
func (r *registration) report(cfg *bootstrap.Config, d *status.DNSReport) (degraded []string) {
	d.Mode = cfg.DNS.Mode
	if r == nil {
		return nil
	}
	s := r.keeper.State()
	d.Resolved = &s
	if !r.wish().names {
		return nil
	}
	if s.Error != "" {
		degraded = append(degraded, "dns.mode resolved: programs do not find mesh names: "+s.Error)
	}
	if s.LeftOut > 0 {
		degraded = append(degraded, fmt.Sprintf("dns.mode resolved: %d suffixes of the mesh are not registered, such as %s (systemd-resolved takes %d, of letters, digits, - and _): "+
			"programs do not find these names; dns.mode: redirect knows no such limit", s.LeftOut, strings.Join(s.Missing, ", "), resolved.MaxDomains))
	}
	if why := unasked(cfg); why != "" {
		degraded = append(degraded, "dns.mode resolved: "+why)
	}
	return degraded
}

// covered says how systemd-resolved treats a question of programs for a name: for `dns query --explain`.
func (r *registration) covered(name string) string {
	w := r.wanted()
	return coveredBy(w.Domains, w.Registered && r.keeper.State().Registered, name)
}

// coveredBy is covered for what is registered. It is pure.
func coveredBy(d resolved.Domains, registered bool, name string) string {
	if !registered {
		return "systemd-resolved sends no name here"
	}
	if x, ok := d.Covers(name); ok {
		return "systemd-resolved sends it here by domain " + x.String()
	}
	if label := strings.TrimSuffix(name, "."); !strings.Contains(label, ".") {
		for _, x := range d.List {
			if x.Search {
				return "systemd-resolved sends it here only as " + label + "." + x.Name + ", completed by a search domain"
			}
		}
	}
	return "systemd-resolved does not send it here: programs get the answer of the machine's other resolvers"
}

// unasked says which programs of the machine do not ask systemd-resolved; empty when all do.
func unasked(cfg *bootstrap.Config) string {
	resolvConf, err := os.ReadFile(cfg.Paths.ResolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	nsswitch, _ := os.ReadFile(filepath.Join(cmp.Or(cfg.Root, "/"), "etc/nsswitch.conf")) // without one glibc asks DNS
	return resolved.Unasked(string(resolvConf), string(nsswitch))
}

// checkResolved warns of a machine whose programs would not ask systemd-resolved.
func checkResolved(cfg *bootstrap.Config) bootstrap.Problems {
	if !cfg.Capture.DNSByResolved {
		return nil
	}
	why := unasked(cfg)
	if why == "" {
		return nil
	}
	return bootstrap.Problems{{
		Severity: bootstrap.Warning,
		File:     cfg.Paths.ResolvConf,
		Key:      "dns.mode",
		Found:    bootstrap.DNSResolved,
		Expected: "a machine whose programs ask systemd-resolved",
		Hint:     why,
	}}
}
