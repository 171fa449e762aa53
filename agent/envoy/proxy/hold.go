package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// holdFor is how long new connections wait for the next Envoy. The agent bears with an Envoy that is away for as long before it tells
// the mesh; after that they are refused, so that clients go elsewhere.
const holdFor = 3 * time.Second

// A hold has new connections to ports wait that nobody serves: its sockets listen there and drop every packet, so that a
// client's kernel tries again a second later, as after a lost packet, instead of being refused. Whoever opens a port with
// SO_REUSEPORT as the same user can serve it meanwhile.
type hold struct {
	mu      sync.Mutex // guards everything below
	sockets []int
	timer   *time.Timer // ends it; nil: nothing does
}

// holdPorts begins a hold of every port. owner is whom Envoy runs as, nil for this process's user. An error means that nothing is held.
func holdPorts(ports []netip.AddrPort, owner *User) (*hold, error) {
	h := &hold{}
	for _, p := range ports {
		fd, err := placeholder(p, owner)
		if err == nil {
			h.sockets = append(h.sockets, fd)
			err = deaf(fd, p)
		}
		if err != nil {
			h.release()
			return nil, fmt.Errorf("hold port %d: %w", p.Port(), err)
		}
	}
	return h, nil
}

// standBy begins a hold of ports that an Envoy serves, which has no effect as long as it does: where a packet could go to a socket of
// IPv4 and one of both families, the kernel takes the former (compute_score in net/ipv4/inet_hashtables.c). So there is no moment
// between the end of Envoy and the hold. It is an error where Envoy itself listens on IPv6, or shares its ports with nobody.
func standBy(ports []netip.AddrPort, owner *User) (*hold, error) {
	both := make([]netip.AddrPort, len(ports))
	for i, p := range ports {
		if !p.Addr().Is4() || !p.Addr().IsUnspecified() {
			return nil, errors.New("only beside a listener on every IPv4 address")
		}
		both[i] = netip.AddrPortFrom(netip.IPv6Unspecified(), p.Port())
	}
	return holdPorts(both, owner)
}

// releaseAfter ends the hold when it is over; keep takes that back.
func (h *hold) releaseAfter(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(d, h.release)
}

// keep reports whether the hold still stands, and lets it.
func (h *hold) keep() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	return h.sockets != nil
}

// release ends the hold; again is nothing, and a nil hold holds nothing.
func (h *hold) release() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, fd := range h.sockets {
		_ = unix.Close(fd)
	}
	h.sockets = nil
	if h.timer != nil {
		h.timer.Stop()
	}
}

// inodes are those of the sockets that hold, as /proc/net/tcp names them.
func (h *hold) inodes() []string {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, fd := range h.sockets {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil {
			all = append(all, strconv.FormatUint(st.Ino, 10))
		}
	}
	return all
}

// shared reports whether the Envoy that serves the ports lets another socket of its user in, as it does unless its listeners say
// enable_reuse_port: false. The next one could not listen where a socket of ours does otherwise.
func shared(ports []netip.AddrPort, owner *User) bool {
	for _, p := range ports {
		fd, err := placeholder(p, owner)
		if err != nil {
			return false
		}
		_ = unix.Close(fd)
	}
	return true
}

// placeholder is a socket that is bound and does not listen: it takes part in nothing.
func placeholder(at netip.AddrPort, owner *User) (fd int, err error) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	if at.Addr().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP); err != nil {
		return -1, err
	}
	if owner != nil { // sockets share a port within a user, and a socket is its inode's owner's
		err = unix.Fchown(fd, int(owner.UID), int(owner.GID))
	}
	err = errors.Join(err,
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	if err == nil {
		err = unix.Bind(fd, address)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// allHops is more than is left of any packet's time to live, but one that was sent with the most there is on the same link.
const allHops = 255

// deaf makes a placeholder listen without hearing anything. The kernel drops what comes to a socket with less time to live than that
// demands (RFC 5082; ip(7), IP_MINTTL), the first packet of a connection included. A socket filter would do too, but some kernels
// keep filters for root.
func deaf(fd int, at netip.AddrPort) error {
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, allHops)
	if at.Addr().Is6() {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, allHops))
	}
	if err != nil {
		return fmt.Errorf("have it drop packets: %w", err)
	}
	return unix.Listen(fd, 1)
}
