package resolved

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

func TestSettingsFor(t *testing.T) {
	got := settingsFor(netip.MustParseAddrPort("127.0.0.1:15053"), Domains{List: []Domain{{"svc.cluster.local", true}, {"db.example", false}}})
	want := settings{
		servers: []server{{2, []byte{127, 0, 0, 1}, 15053, ""}},
		domains: []busDomain{{"svc.cluster.local", false}, {"db.example", true}},
		llmnr:   "no", mdns: "no", dnssec: "no", dnsOverTLS: "no",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("settingsFor = %+v, want %+v", got, want)
	}
	if six := settingsFor(netip.MustParseAddrPort("[::1]:15053"), Domains{}).servers[0]; six.Family != 10 || len(six.Address) != 16 {
		t.Errorf("server of ::1 is %+v", six)
	}
}

func TestChanges(t *testing.T) {
	want := settingsFor(netip.MustParseAddrPort("127.0.0.1:15053"), Domains{List: []Domain{{"a.example", false}}})
	with := func(change func(*settings)) settings { s := want; change(&s); return s }
	many := func(first, n int) (d []busDomain) {
		for _, host := range numbered(first+n, "h%04d.example")[first:] {
			d = append(d, busDomain{host, true})
		}
		return d
	}
	fresh := settings{defaultRoute: true, llmnr: "yes", mdns: "no", dnssec: "allow-downgrade", dnsOverTLS: "opportunistic"}
	for _, tc := range []struct {
		name       string
		have, want settings
		calls      string
	}{
		{"what is right stays", want, want, ""},
		{"no name goes astray on the way of a fresh link", fresh, want, "SetLinkDefaultRoute SetLinkLLMNR SetLinkDNSOverTLS SetLinkDNSSEC SetLinkDomains SetLinkDNSEx"},
		{"other domains", with(func(s *settings) { s.domains = []busDomain{{"b.example", true}} }), want, "SetLinkDomains"},
		{"a search domain is not a routing domain", with(func(s *settings) { s.domains = []busDomain{{"a.example", false}} }), want, "SetLinkDomains"},
		{"another port", with(func(s *settings) { s.servers = []server{{2, []byte{127, 0, 0, 1}, 53, ""}} }), want, "SetLinkDNSEx"},
		{"port 53 may be told as none", with(func(s *settings) { s.servers = []server{{2, []byte{127, 0, 0, 1}, 0, ""}} }),
			with(func(s *settings) { s.servers = []server{{2, []byte{127, 0, 0, 1}, 53, ""}} }), ""},
		{"old and new count together", with(func(s *settings) { s.domains = many(0, 200) }), with(func(s *settings) { s.domains = many(100, 200) }), "SetLinkDomains SetLinkDomains"},
		{"as long as both have room they go at once", with(func(s *settings) { s.domains = many(0, 200) }), with(func(s *settings) { s.domains = many(56, 200) }), "SetLinkDomains"},
	} {
		var got []string
		held := len(tc.have.domains)
		for _, c := range changes(tc.have, tc.want) {
			got = append(got, c.method)
			if c.method == "SetLinkDomains" {
				next := c.args[0].([]busDomain)
				if total := held + len(next) - len(common(tc.have.domains, next)); total > MaxDomains {
					t.Errorf("%s: systemd-resolved would have %d domains for a moment", tc.name, total)
				}
				held = len(common(tc.have.domains, next))
			}
		}
		if strings.Join(got, " ") != tc.calls {
			t.Errorf("%s: calls %v, want %s", tc.name, got, tc.calls)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	for name, want := range map[string]string{
		"org.freedesktop.DBus.Error.NameHasNoOwner":                   "systemctl enable --now systemd-resolved",
		"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": "install polkit",
		"org.freedesktop.resolve1.LinkBusy":                           ".network file",
	} {
		err := explain("SetLinkDomains", dbus.Error{Name: name, Body: []any{"no"}})
		if !strings.Contains(err.Error(), want) || !errors.As(err, &dbus.Error{}) {
			t.Errorf("%s: %v, want %q in it", name, err, want)
		}
	}
}
