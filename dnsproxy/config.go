package dnsproxy

import (
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config says what a Server works with. Sockets and upstreams may be on any address.
type Config struct {
	// UDP and TCP are where questions come in. TCP stays the caller's; Run stops using it when it ends. UDP is Run's: it takes
	// a duplicate of each socket, out of the care of Go's poller, closes the one given, and closes its own when it ends.
	// A duplicate held elsewhere, as in systemd's FD store, goes on queueing questions for the next process.
	UDP []*net.UDPConn
	TCP []*net.TCPListener

	// ResolvConf names the file with the upstream resolvers and the search list, followed as it changes. Empty means
	// /etc/resolv.conf.
	ResolvConf string

	// UplinkConf names the file where systemd-resolved lists the servers it asks itself; they stand in for its stub where
	// that leads back here. Empty means /run/systemd/resolve/resolv.conf.
	UplinkConf string

	// BehindResolved says that questions come from systemd-resolved, which sends those for the mesh's names alone. Its stub is then no
	// upstream, for it would ask us again: the servers of UplinkConf take its place from the start. And denials that upstream gives live no longer
	// than those of the mesh, since systemd-resolved remembers them over changes of the table.
	BehindResolved bool

	// Upstreams overrides the servers of ResolvConf, not its options.
	Upstreams []netip.AddrPort

	// Forward sends names below a suffix to servers of their own, the longest suffix first.
	Forward map[string][]netip.AddrPort

	// ForwardTimeout bounds one question upstream, over all servers and attempts. Zero means 5 s. The answer, SERVFAIL at
	// the worst, leaves after nine tenths of it, so that a client with the same time-out still hears it. Istio:
	// DNS_FORWARD_TIMEOUT.
	ForwardTimeout time.Duration

	// MaxForwards bounds the clients waiting for upstream answers; a question above it gets SERVFAIL at once. Zero means
	// 4096.
	MaxForwards int

	// CacheBytes bounds the memory of cached upstream answers. Zero means 4 MiB, less than zero no cache.
	CacheBytes int

	// MaxStale is how long after its time an answer may still be given when upstream has none (RFC 8767). Zero means 1 h, less
	// than zero never.
	MaxStale time.Duration

	Log     *slog.Logger          // nil: none. Queries are logged at debug
	Metrics prometheus.Registerer // nil: none
}

const (
	defaultResolvConf     = "/etc/resolv.conf"
	defaultUplinkConf     = "/run/systemd/resolve/resolv.conf"
	defaultForwardTimeout = 5 * time.Second
	defaultMaxForwards    = 4096
	defaultMaxStale       = time.Hour
)
