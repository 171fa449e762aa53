package controlplane

import (
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// keepPort binds a socket to a TCP address without listening and returns its descriptor.
func keepPort(addr *net.TCPAddr) (int, error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	if ip := addr.IP.To4(); ip != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: addr.Port, Addr: [4]byte(ip)}
	} else {
		sa = &unix.SockaddrInet6{Port: addr.Port, Addr: [16]byte(addr.IP.To16())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		unix.Close(fd)
		return 0, err
	}
	if err := unix.Bind(fd, sa); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// trackedConn tells the gate when it is closed.
type trackedConn struct {
	net.Conn
	once   sync.Once
	closed func()
}

func (c *trackedConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

// connQueue is a net.Listener over connections that something else accepts.
type connQueue struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newConnQueue(addr string) *connQueue {
	return &connQueue{addr: addr, conns: make(chan net.Conn, 64), done: make(chan struct{})}
}

// offer queues a connection; one that finds the queue full is closed.
func (q *connQueue) offer(c net.Conn) {
	select {
	case q.conns <- c:
	default:
		go c.Close() // the caller holds the lock that closing takes
	}
}

// Accept returns the next connection, or net.ErrClosed after Close.
func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and closes what is still queued. Nothing is offered after it.
func (q *connQueue) Close() error {
	q.once.Do(func() {
		close(q.done)
		for {
			select {
			case c := <-q.conns:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr is the address the connections were accepted at.
func (q *connQueue) Addr() net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", q.addr)
	if err != nil {
		return &net.TCPAddr{}
	}
	return addr
}
