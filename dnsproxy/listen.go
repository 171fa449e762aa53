package dnsproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// receiveBuffer holds the questions that arrive while nobody reads: about 4 s of 1,000 queries a second, more than a
// restart takes. The kernel doubles the figure for its own book-keeping.
const receiveBuffer = 4 << 20

// Listen opens UDP and TCP on addr. With port 0 both get the same free port. The receive buffer of UDP is large, by
// force where the process may (CAP_NET_ADMIN), else up to net.core.rmem_max.
func Listen(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	const tries = 16 // a port free for UDP may be taken for TCP
	var err error
	for range tries {
		var udp *net.UDPConn
		var tcp *net.TCPListener
		if udp, err = listenUDP(addr); err != nil {
			break
		}
		bound := udp.LocalAddr().(*net.UDPAddr).AddrPort()
		if tcp, err = listenTCP(netip.AddrPortFrom(addr.Addr(), bound.Port())); err == nil {
			return udp, tcp, nil
		}
		udp.Close()
		if addr.Port() != 0 {
			break
		}
	}
	return nil, nil, fmt.Errorf("listen for DNS: %w", err)
}

func listenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	conn, err := (&net.ListenConfig{Control: setReceiveBuffer}).ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

func listenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	// no keep-alive probes: idle connections are closed by our own time-out
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// setReceiveBuffer never fails: a small buffer is no reason not to answer.
func setReceiveBuffer(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
		}
	})
}
