package agent

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"

	"wingman/bootstrap"
	"wingman/dnsproxy"
)

// fdStore is what keeps descriptors while this process is away; systemd.Notifier is one.
type fdStore interface {
	StoreFDs(name string, files ...*os.File) error
	RemoveFDs(name string) error
}

// sockets are the DNS listeners: one UDP and one TCP for each address.
type sockets struct {
	udp       []*net.UDPConn
	tcp       []*net.TCPListener
	inherited bool // at least one was handed in: systemd kept it, or a socket unit gave it
}

// fdName names a socket in the FD store. systemd allows no colon there.
func fdName(network string, a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "dns-" + network + "4"
	}
	return "dns-" + network + "6"
}

// openSockets returns listeners for the wanted addresses: handed-in ones that cover them, new ones otherwise. New ones go into the
// store, so that queries wait in the kernel while this process restarts. Handed-in sockets that serve nobody (the address
// changed) are closed and leave the store. On error nothing stays open.
func openSockets(want []netip.AddrPort, handed map[string][]*os.File, store fdStore, log *slog.Logger) (s sockets, err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s = adopt(want, handed, store, log)
	for _, a := range want {
		if s.cover(a) {
			s.inherited = true
			continue
		}
		u, t, err := dnsproxy.Listen(a)
		if err != nil {
			return s, fmt.Errorf("DNS port: %w", err)
		}
		s.udp, s.tcp = append(s.udp, u), append(s.tcp, t)
		keep(store, fdName("udp", a), u, log)
		keep(store, fdName("tcp", a), t, log)
	}
	return s, nil
}

// cover reports whether both transports of a are among s.
func (s sockets) cover(a netip.AddrPort) bool {
	return slices.ContainsFunc(s.udp, func(c *net.UDPConn) bool { return covers(addrPort(c.LocalAddr()), a) }) &&
		slices.ContainsFunc(s.tcp, func(l *net.TCPListener) bool { return covers(addrPort(l.Addr()), a) })
}

// covers reports whether a socket bound to that address gets what is sent to want.
func covers(bound, want netip.AddrPort) bool {
	return bound == want || bound.Port() == want.Port() && bound.Addr().IsUnspecified()
}

func (s sockets) close() {
	for _, c := range s.udp {
		c.Close()
	}
	for _, l := range s.tcp {
		l.Close()
	}
}

// keep puts a socket into the store. Without it a restart loses queries; that is worth a line, not a failure.
func keep(store fdStore, name string, c interface{ File() (*os.File, error) }, log *slog.Logger) {
	f, err := c.File()
	if err == nil {
		defer f.Close()
		err = store.StoreFDs(name, f)
	}
	if err != nil {
		log.Warn("DNS socket is not kept over restarts", "socket", name, "cause", err)
	}
}

// adopt turns handed-in descriptors into listeners. Only pairs are kept: half of a pair would be in the way of a new one.
func adopt(want []netip.AddrPort, handed map[string][]*os.File, store fdStore, log *slog.Logger) sockets {
	type socket struct {
		name string
		udp  *net.UDPConn
		tcp  *net.TCPListener
	}
	var all []socket
	for name, files := range handed {
		for _, f := range files {
			s := socket{name: name}
			// Both functions duplicate the descriptor, so f closes in any case.
			if c, err := net.FilePacketConn(f); err == nil {
				s.udp, _ = c.(*net.UDPConn)
				if s.udp == nil {
					c.Close()
				}
			} else if l, err := net.FileListener(f); err == nil {
				s.tcp, _ = l.(*net.TCPListener)
				if s.tcp == nil {
					l.Close()
				}
			}
			f.Close()
			all = append(all, s)
		}
	}
	var found sockets
	for _, s := range all {
		if s.udp != nil {
			found.udp = append(found.udp, s.udp)
		}
		if s.tcp != nil {
			found.tcp = append(found.tcp, s.tcp)
		}
	}
	var kept sockets
	for _, s := range all {
		useful := slices.ContainsFunc(want, func(a netip.AddrPort) bool {
			return found.cover(a) &&
				(s.udp != nil && covers(addrPort(s.udp.LocalAddr()), a) || s.tcp != nil && covers(addrPort(s.tcp.Addr()), a))
		})
		switch {
		case useful && s.udp != nil:
			kept.udp = append(kept.udp, s.udp)
		case useful:
			kept.tcp = append(kept.tcp, s.tcp)
		default:
			if s.udp != nil {
				s.udp.Close()
			}
			if s.tcp != nil {
				s.tcp.Close()
			}
			log.Info("socket handed in is not used", "socket", s.name)
			if err := store.RemoveFDs(s.name); err != nil {
				log.Debug("socket stays in systemd's store", "socket", s.name, "cause", err)
			}
		}
	}
	return kept
}

// addrPort returns the address of a UDP or TCP socket, IPv4 in its own form; zero for others.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.UDPAddr:
		ap = a.AddrPort()
	case *net.TCPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// listenAddrs are the addresses DNS is served at. Redirected IPv6 queries arrive at ::1.
func listenAddrs(cfg *bootstrap.Config) []netip.AddrPort {
	addrs := []netip.AddrPort{cfg.DNS.Listen}
	if cfg.Capture.DualStack && cfg.DNS.Listen.Addr() == netip.AddrFrom4([4]byte{127, 0, 0, 1}) {
		addrs = append(addrs, netip.AddrPortFrom(netip.IPv6Loopback(), cfg.DNS.Listen.Port()))
	}
	return addrs
}
