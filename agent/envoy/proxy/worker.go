package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"wingman/agent/envoy"
	"wingman/bootstrap"
)

// workerLimit bounds one question to a worker.
const workerLimit = time.Second

// workerOf is the listener of the bootstrap file that Envoy's workers answer every request on: that of readiness, also while the agent behind it is
// away. The zero value: there is none.
func workerOf(cfg *bootstrap.Config, facts envoy.Facts) netip.AddrPort {
	for _, l := range facts.Listeners {
		if l.Port() != cfg.Status.ReadinessPort {
			continue
		}
		switch {
		case !l.Addr().IsUnspecified():
			return l
		case l.Addr().Is4():
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), l.Port())
		default:
			return netip.AddrPortFrom(netip.IPv6Loopback(), l.Port())
		}
	}
	return netip.AddrPort{}
}

// frozen reports whether no worker answers. The main thread, which answers the admin port, is busy for seconds with a large push while
// workers go on serving; when they are silent too, nobody's traffic gets anywhere. Only a time that ran out counts: a connection
// that is refused says that nothing is to be learnt there.
func frozen(ctx context.Context, worker netip.AddrPort) bool {
	if !worker.IsValid() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, workerLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", worker.String())
	if err == nil {
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err = conn.SetDeadline(deadline); err == nil {
			_, err = fmt.Fprintf(conn, "GET /healthz/ready HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", worker)
		}
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
	}
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}
