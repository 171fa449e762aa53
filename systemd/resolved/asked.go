package resolved

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// stubs are where systemd-resolved answers programs by DNS: DNSStubListener= in resolved.conf(5).
var stubs = []netip.Addr{netip.MustParseAddr("127.0.0.53"), netip.MustParseAddr("127.0.0.54")}

// Unasked says which of a machine's programs do not ask systemd-resolved, as one sentence with what to do about it; empty when all do. It is pure and goes
// by the content of /etc/resolv.conf and /etc/nsswitch.conf.
func Unasked(resolvConf, nsswitch string) string {
	first := firstServer(resolvConf)
	if addr, err := netip.ParseAddr(first); err == nil && slices.Contains(stubs, addr.Unmap()) {
		return ""
	}
	names := "names no server"
	if first != "" {
		names = "names " + first
	}
	who := "programs of this machine do not ask it and do not find mesh names"
	if byNSS(nsswitch) {
		who = "only programs that look names up by glibc (nss-resolve) ask it; those that read resolv.conf themselves, as in Go or with musl, do not find mesh names"
	}
	return fmt.Sprintf("resolv.conf %s, not systemd-resolved (127.0.0.53): %s: ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf, or dns.mode: redirect", names, who)
}

// firstServer is the server of a resolv.conf that programs ask first; "" for none.
func firstServer(resolvConf string) string {
	for line := range strings.Lines(resolvConf) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			return fields[1]
		}
	}
	return ""
}

// byNSS reports whether glibc asks systemd-resolved itself, before DNS: nss-resolve(8).
func byNSS(nsswitch string) bool {
	for line := range strings.Lines(nsswitch) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "hosts:" {
			continue
		}
		resolve, dns := slices.Index(fields, "resolve"), slices.Index(fields, "dns")
		return resolve > 0 && (dns < 0 || resolve < dns)
	}
	return false
}
