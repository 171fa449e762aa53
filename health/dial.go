package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Where probes come from. The capture rules let these addresses through to the application; from any other source a
// connection of the proxy's own user to this machine is redirected into Envoy's inbound port, where STRICT mTLS fails an
// HTTP probe and a TCP probe passes although the application is dead. Istio: UpstreamLocalAddressIPv4 and -IPv6 in
// pilot/cmd/pilot-agent/status/server.go.
var (
	sourceIPv4 = netip.MustParseAddr("127.0.0.6")
	sourceIPv6 = netip.MustParseAddr("::6")
)

// dialer opens a probe's connections.
type dialer struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	own    func() ([]netip.Addr, error) // this machine's addresses
	dial   func(ctx context.Context, source netip.Addr, address netip.AddrPort) (net.Conn, error)
}

var systemDialer = dialer{
	lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	},
	own: ownAddrs,
	dial: func(ctx context.Context, source netip.Addr, address netip.AddrPort) (net.Conn, error) {
		var d net.Dialer
		if source.IsValid() {
			d.LocalAddr = &net.TCPAddr{IP: source.AsSlice()}
		}
		return d.DialContext(ctx, "tcp", address.String())
	},
}

// connect opens a TCP connection to host, an address or a name; of a name's addresses the first that answers. The error
// is that of the first address.
func (d dialer) connect(ctx context.Context, host string, port uint16) (net.Conn, error) {
	var addrs []netip.Addr
	if addr, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{addr}
	} else if addrs, err = d.lookup(ctx, host); err != nil {
		return nil, err
	}
	var first error
	for _, addr := range addrs {
		conn, err := d.connectAddr(ctx, netip.AddrPortFrom(addr.Unmap(), port))
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if first == nil {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return nil, first
}

// connectAddr dials from the source that the capture rules know, and from whatever source the kernel picks when that one
// cannot reach address: from 127.0.0.6 to another machine connect fails with EINVAL, and ::6 is an address only where
// somebody put it on the loopback interface (EADDRNOTAVAIL).
func (d dialer) connectAddr(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
	source := sourceIPv4
	if address.Addr().Is6() {
		source = sourceIPv6
		// The kernel would send packets from ::6 to other machines, and no answer finds its way back.
		if own, err := d.own(); err == nil && !address.Addr().IsLoopback() && !slices.Contains(own, address.Addr().WithZone("")) {
			source = netip.Addr{}
		}
	}
	conn, err := d.dial(ctx, source, address)
	if source.IsValid() && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		return d.dial(ctx, netip.Addr{}, address)
	}
	return conn, err
}

// ownAddrs lists the addresses of all interfaces.
func ownAddrs() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, f := range found {
		if prefix, err := netip.ParsePrefix(f.String()); err == nil {
			addrs = append(addrs, prefix.Addr().Unmap().WithZone(""))
		}
	}
	return addrs, nil
}

func isIPv6(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Is6()
}
