package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"wingman/bootstrap"
	"wingman/dnsproxy"
	"wingman/iptables"
)

// bridgeCheck is how often the addresses of container bridges are looked at: they come and go with docker, not with us.
const bridgeCheck = 2 * time.Second

// bridgePrefix begins the names of bridges' sockets in the FD store.
const bridgePrefix = "bridge-"

// bridges keeps the DNS proxy listening on the bridges that rules.virtualInterfaces names: queries of containers are redirected to the address of the
// bridge that they come in by, not to loopback.
type bridges struct {
	log    *slog.Logger
	store  fdStore
	handed map[string][]*os.File // kept by systemd; taken over by the first look
	wish   func() captureWish
	serve  func(context.Context, *net.UDPConn, *net.TCPListener) error // dnsproxy.Server.Serve

	serving map[netip.AddrPort]func() // address → end it and wait
	said    map[netip.AddrPort]string // why an address cannot be listened on
}

// splitBridges takes bridges' sockets out of what systemd handed in.
func splitBridges(handed map[string][]*os.File) (own, ofBridges map[string][]*os.File) {
	own, ofBridges = map[string][]*os.File{}, map[string][]*os.File{}
	for name, files := range handed {
		if strings.HasPrefix(name, bridgePrefix) {
			ofBridges[name] = files
		} else {
			own[name] = files
		}
	}
	return own, ofBridges
}

// run follows the bridges until ctx ends. Sockets then stay in the store.
func (b *bridges) run(ctx context.Context) error {
	b.serving, b.said = map[netip.AddrPort]func(){}, map[netip.AddrPort]string{}
	defer func() {
		for _, end := range b.serving {
			end()
		}
	}()
	for {
		w := b.wish()
		b.follow(ctx, bridgeAddrs(w, interfaceAddrs))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bridgeCheck):
		}
	}
}

// bridgeAddrs are the addresses to listen on for a decision. addrs returns those of an interface, none when it is not there.
func bridgeAddrs(w captureWish, addrs func(name string) []netip.Addr) (want []netip.AddrPort) {
	if w.cfg == nil {
		return nil
	}
	c := w.cfg.Capture
	by := map[string][]netip.Addr{}
	for _, name := range c.VirtualInterfaces {
		for _, a := range addrs(name) {
			// IPv6 is redirected with dual stack only; a link-local address is the bridge's neighbours' to reach, and needs a zone.
			if a.Is4() || c.DualStack && !a.IsLinkLocalUnicast() {
				by[name] = append(by[name], a)
			}
		}
	}
	for _, a := range iptables.DNSListenAddrs(iptables.Config{Level: w.level, DNS: c.DNS, VirtualInterfaces: c.VirtualInterfaces}, by) {
		if at := netip.AddrPortFrom(a, c.DNSPort); !slices.Contains(want, at) && !listensAlready(w.cfg, a) {
			want = append(want, at)
		}
	}
	return want
}

// listensAlready reports whether the sockets of the settings serve an address too.
func listensAlready(cfg *bootstrap.Config, a netip.Addr) bool {
	return slices.ContainsFunc(listenAddrs(cfg), func(l netip.AddrPort) bool { return l.Addr() == a || l.Addr().IsUnspecified() })
}

// interfaceAddrs are the addresses of an interface; none when it is not there.
func interfaceAddrs(name string) (addrs []netip.Addr) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	all, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(n.IP); ok {
				addrs = append(addrs, addr.Unmap())
			}
		}
	}
	return addrs
}

// follow makes the wanted addresses those that are served.
func (b *bridges) follow(ctx context.Context, want []netip.AddrPort) {
	for at, end := range b.serving {
		if !slices.Contains(want, at) {
			end()
			delete(b.serving, at)
			b.forget(at)
			b.log.Info("DNS is not answered on a container bridge any more", "address", at)
		}
	}
	for _, at := range want {
		if b.serving[at] != nil {
			continue
		}
		udp, tcp, inherited, err := b.open(at)
		if err != nil {
			if b.said[at] != err.Error() {
				b.said[at] = err.Error()
				b.log.Warn("DNS of containers is captured and cannot be answered", "address", at, "cause", err)
			}
			continue
		}
		delete(b.said, at)
		b.log.Info("DNS is answered on a container bridge", "address", at, "inherited", inherited)
		b.serving[at] = b.start(ctx, at, udp, tcp)
	}
	// What systemd kept for a bridge that is not there: nobody would read it.
	for name, files := range b.handed {
		for _, f := range files {
			f.Close()
		}
		b.drop(name)
	}
	b.handed = nil
}

// start serves a pair of sockets; the function returned ends that and waits.
func (b *bridges) start(ctx context.Context, at netip.AddrPort, udp *net.UDPConn, tcp *net.TCPListener) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // end waits for it
		defer close(done)
		if err := b.serve(ctx, udp, tcp); err != nil {
			b.log.Error("DNS is not answered on a container bridge", "address", at, "cause", err)
		}
	}()
	return func() { cancel(); <-done }
}

// open returns the sockets for an address: those that systemd kept, else new ones, which it is given to keep.
func (b *bridges) open(at netip.AddrPort) (udp *net.UDPConn, tcp *net.TCPListener, inherited bool, err error) {
	udpName, tcpName := bridgeName("udp", at), bridgeName("tcp", at)
	mine := map[string][]*os.File{}
	for _, name := range []string{udpName, tcpName} {
		if files := b.handed[name]; files != nil {
			mine[name] = files
			delete(b.handed, name)
		}
	}
	if s := adopt([]netip.AddrPort{at}, mine, b.store, b.log); s.cover(at) {
		return s.udp[0], s.tcp[0], true, nil
	}
	if udp, tcp, err = dnsproxy.Listen(at); err != nil {
		return nil, nil, false, err
	}
	keep(b.store, udpName, udp, b.log)
	keep(b.store, tcpName, tcp, b.log)
	return udp, tcp, false, nil
}

// forget takes the sockets of an address out of the store.
func (b *bridges) forget(at netip.AddrPort) {
	b.drop(bridgeName("udp", at))
	b.drop(bridgeName("tcp", at))
}

func (b *bridges) drop(name string) {
	if err := b.store.RemoveFDs(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.log.Debug("socket stays in systemd's store", "socket", name, "cause", err)
	}
}

// bridgeName names a socket in the FD store. systemd allows no colon there.
func bridgeName(network string, at netip.AddrPort) string {
	return bridgePrefix + network + "-" + strings.ReplaceAll(at.Addr().String(), ":", "_")
}
