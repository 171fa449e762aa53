package resolved

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Names on the bus: org.freedesktop.resolve1(5).
const (
	busName   = "org.freedesktop.resolve1"
	managerAt = dbus.ObjectPath("/org/freedesktop/resolve1")
	manager   = busName + ".Manager."
	linkIface = busName + ".Link"
)

// server is one DNS server as on the bus: family, address, port (0: 53) and the name for TLS.
type server struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// busDomain is one domain as on the bus.
type busDomain struct {
	Name      string
	RouteOnly bool
}

// settings are what systemd-resolved holds for a link, as far as it concerns us. Words are those of systemd.network(5).
type settings struct {
	servers                         []server
	domains                         []busDomain
	defaultRoute                    bool
	llmnr, mdns, dnssec, dnsOverTLS string
}

// settingsFor is what the link should have.
func settingsFor(at netip.AddrPort, d Domains) settings {
	family := int32(unix.AF_INET6)
	if at.Addr().Unmap().Is4() {
		family = unix.AF_INET
	}
	s := settings{
		servers: []server{{family, at.Addr().Unmap().AsSlice(), at.Port(), ""}},
		domains: []busDomain{},
		llmnr:   "no", mdns: "no", dnssec: "no", dnsOverTLS: "no",
	}
	for _, x := range d.List {
		s.domains = append(s.domains, busDomain{x.Name, !x.Search})
	}
	return s
}

// call is one method of the manager that changes a link; the link's index comes before args.
type call struct {
	method string
	args   []any
}

// changes are the calls that make have what want is, in an order in which no name goes astray on the way: the link is no default route before
// it has a server. It is pure.
func changes(have, want settings) (calls []call) {
	add := func(method string, same bool, args ...any) {
		if !same {
			calls = append(calls, call{method, args})
		}
	}
	add("SetLinkDefaultRoute", have.defaultRoute == want.defaultRoute, want.defaultRoute)
	add("SetLinkLLMNR", have.llmnr == want.llmnr, want.llmnr)
	add("SetLinkMulticastDNS", have.mdns == want.mdns, want.mdns)
	add("SetLinkDNSOverTLS", have.dnsOverTLS == want.dnsOverTLS, want.dnsOverTLS)
	add("SetLinkDNSSEC", have.dnssec == want.dnssec, want.dnssec)
	if kept := common(have.domains, want.domains); len(have.domains)+len(want.domains)-len(kept) > MaxDomains {
		// It counts the old and the new together, and forgets all when they are too many.
		add("SetLinkDomains", false, kept)
	}
	add("SetLinkDomains", slices.Equal(have.domains, want.domains), want.domains)
	add("SetLinkDNSEx", slices.EqualFunc(have.servers, want.servers, server.same), want.servers)
	return calls
}

func (s server) same(o server) bool {
	return s.Family == o.Family && slices.Equal(s.Address, o.Address) && s.port() == o.port() && s.Name == o.Name
}

func (s server) port() uint16 { return cmp.Or(s.Port, 53) }

// common are the domains of have that are in want too, in have's order; never nil.
func common(have, want []busDomain) []busDomain {
	out := []busDomain{}
	for _, d := range have {
		if slices.Contains(want, d) {
			out = append(out, d)
		}
	}
	return out
}

// bus is a connection to the system bus.
type bus struct {
	conn *dbus.Conn
	end  context.CancelFunc
}

// dial connects within ctx, and from then on sends news each time systemd-resolved comes or goes, and when the bus itself goes.
func dial(ctx context.Context, news chan<- struct{}) (*bus, error) {
	life, end := context.WithCancel(context.Background()) // the connection closes with it
	settled := context.AfterFunc(ctx, end)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(life))
	if err != nil {
		end()
		return nil, fmt.Errorf("connect to the system bus: %w", err)
	}
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, busName)); err != nil {
		end()
		return nil, fmt.Errorf("watch for systemd-resolved: %w", err)
	}
	go func() { // ends with the connection
		for range signals {
			poke(news)
		}
		poke(news)
	}()
	settled()
	return &bus{conn, end}, nil
}

func (b *bus) close() {
	if b != nil {
		b.end()
	}
}

// errUnknownLink means that systemd-resolved has not heard of the link.
var errUnknownLink = errors.New("it does not know the interface")

// read asks what systemd-resolved has for a link.
func (b *bus) read(ctx context.Context, index int) (settings, error) {
	var path dbus.ObjectPath
	// No auto-start: who stopped systemd-resolved wants it stopped.
	if err := b.conn.Object(busName, managerAt).CallWithContext(ctx, manager+"GetLink", dbus.FlagNoAutoStart, int32(index)).Store(&path); err != nil {
		if e := (dbus.Error{}); errors.As(err, &e) && e.Name == busName+".NoSuchLink" {
			err = errUnknownLink
		}
		return settings{}, explain("ask systemd-resolved for interface "+LinkName, err)
	}
	var all map[string]dbus.Variant
	if err := b.conn.Object(busName, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", dbus.FlagNoAutoStart, linkIface).Store(&all); err != nil {
		return settings{}, explain("ask systemd-resolved for interface "+LinkName, err)
	}
	var (
		s      settings
		errs   []error
		decode = func(property string, into any) {
			v, ok := all[property]
			if !ok {
				errs = append(errs, fmt.Errorf("it has no property %s: it is too old, 246 or later is needed", property))
			} else if err := v.Store(into); err != nil {
				errs = append(errs, fmt.Errorf("property %s: %w", property, err))
			}
		}
	)
	decode("DNSEx", &s.servers)
	decode("Domains", &s.domains)
	decode("DefaultRoute", &s.defaultRoute)
	decode("LLMNR", &s.llmnr)
	decode("MulticastDNS", &s.mdns)
	decode("DNSSEC", &s.dnssec)
	decode("DNSOverTLS", &s.dnsOverTLS)
	if err := errors.Join(errs...); err != nil {
		return settings{}, fmt.Errorf("ask systemd-resolved for interface %s: %w", LinkName, err)
	}
	return s, nil
}

// apply makes the calls, in their order.
func (b *bus) apply(ctx context.Context, index int, calls []call) error {
	for _, c := range calls {
		args := append([]any{int32(index)}, c.args...)
		if err := b.conn.Object(busName, managerAt).CallWithContext(ctx, manager+c.method, dbus.FlagNoAutoStart, args...).Err; err != nil {
			return explain(c.method+" of systemd-resolved", err)
		}
	}
	return nil
}

// explain says what a person can do about an error of the bus.
func explain(what string, err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", what, err)
	}
	hint := hints[e.Name]
	if hint == "" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w (%s)", what, err, hint)
}

// hints belong to errors by which systemd-resolved, or the bus in its stead, refuses.
var hints = map[string]string{
	"org.freedesktop.DBus.Error.NameHasNoOwner":                   "systemd-resolved does not run: systemctl enable --now systemd-resolved, or dns.mode: redirect",
	"org.freedesktop.DBus.Error.ServiceUnknown":                   "systemd-resolved does not run: systemctl enable --now systemd-resolved, or dns.mode: redirect",
	"org.freedesktop.DBus.Error.AccessDenied":                     hintPolkit,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": hintPolkit,
	"org.freedesktop.DBus.Error.UnknownMethod":                    "systemd-resolved is too old: 246 or later is needed, or dns.mode: redirect",
	"org.freedesktop.resolve1.LinkBusy":                           "systemd-networkd manages the interface: some .network file matches it before wingman's own, 00-wingman-dns.network",
}

const hintPolkit = "the agent's user needs polkit and wingman's rule in /usr/share/polkit-1/rules.d for it: install polkit, or dns.mode: redirect"
