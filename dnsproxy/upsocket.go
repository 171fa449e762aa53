package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	socketQuestions = 64          // questions that leave by one source port
	socketAge       = time.Second // and for how long it is used for new ones
)

// upSocket is a connected UDP socket to one server: the kernel drops datagrams from anyone else and tells when nobody listens
// there. A new one, with a source port that the kernel draws at random, is opened after socketQuestions or socketAge, so
// that who would forge an answer must guess port and id (RFC 5452 section 9.2), and a busy resolver need not pay for a
// socket with every question. It is guarded by forwarder.mu.
type upSocket struct {
	f       *forwarder
	server  *server
	fd      int
	port    uint16
	pending map[uint16]*attempt
	born    time.Time
	used    int
	closed  bool
	unsent  []*attempt // see forwarder.flush
}

// socketLocked is the socket for the next question to server.
func (f *forwarder) socketLocked(server *server) (*upSocket, error) {
	if sock := server.current; sock != nil {
		if sock.used < socketQuestions && time.Since(sock.born) < socketAge {
			return sock, nil
		}
		sock.retireLocked()
	}
	fd, port, err := dialUDP(server.addr)
	if err != nil {
		return nil, err
	}
	// edge-triggered: the reader takes all there is
	if err := unix.EpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch socket: %w", err)
	}
	sock := &upSocket{f: f, server: server, fd: fd, port: port, pending: make(map[uint16]*attempt), born: time.Now()}
	server.current = sock
	server.sockets[sock] = struct{}{}
	f.sockets[fd], f.ports[port] = sock, sock
	return sock, nil
}

// dialUDP opens a connected socket. Neither Go's resolver nor its poller need know of it.
func dialUDP(addr netip.AddrPort) (fd int, port uint16, err error) {
	to, family, err := sockaddrOf(addr)
	if err != nil {
		return -1, 0, err
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, 0, os.NewSyscallError("connect", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, 0, os.NewSyscallError("getsockname", err)
	}
	switch local := local.(type) {
	case *unix.SockaddrInet4:
		port = uint16(local.Port)
	case *unix.SockaddrInet6:
		port = uint16(local.Port)
	}
	return fd, port, nil
}

// retireLocked keeps the socket from new questions and closes it when no answer is due.
func (s *upSocket) retireLocked() {
	if s.server.current == s {
		s.server.current = nil
	}
	if len(s.pending) == 0 {
		s.closeLocked()
	}
}

// forgetLocked gives up waiting for an answer.
func (s *upSocket) forgetLocked(id uint16) {
	delete(s.pending, id)
	if s.server.current != s || s.used >= socketQuestions || time.Since(s.born) >= socketAge {
		s.retireLocked()
	}
}

func (s *upSocket) closeLocked() {
	if s.closed {
		return
	}
	s.closed = true
	if s.server.current == s {
		s.server.current = nil
	}
	delete(s.server.sockets, s)
	delete(s.f.sockets, s.fd)
	if s.f.ports[s.port] == s {
		delete(s.f.ports, s.port)
	}
	_ = unix.EpollCtl(s.f.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
	if s.f.reading {
		s.f.closable = append(s.f.closable, s.fd)
	} else {
		unix.Close(s.fd)
	}
}

// sendLocked puts the flight's query to server in the socket's hands; flush sends it.
func (f *forwarder) sendLocked(fl *flight, server *server) error {
	sock, err := f.socketLocked(server)
	if err != nil {
		return err
	}
	a := fl.attemptLocked(server)
	a.sock = sock
	for sock.pending[a.id] != nil {
		a.id = randomID()
	}
	sock.used++
	sock.pending[a.id] = a
	if sock.unsent = append(sock.unsent, a); len(sock.unsent) == 1 {
		f.dirty = append(f.dirty, sock)
	}
	return nil
}

// flush sends the queries that have gathered, all those of a socket by one call. Who asks must call it soon.
func (f *forwarder) flush() {
	f.mu.Lock()
	var lost []*flight
	for len(f.dirty)+len(f.unsent)+len(f.roomy) > 0 {
		lost = append(lost, f.flushStreamsLocked()...)
		dirty := f.dirty
		f.dirty = nil
		for _, sock := range dirty {
			unsent := sock.unsent
			sock.unsent = nil
			if sock.closed {
				continue
			}
			if err := f.packets.send(sock.fd, unsent); err != nil {
				// the socket tells of an earlier query or cannot send at all; either way its questions go elsewhere
				lost = append(lost, sock.failLocked(os.NewSyscallError("send", err))...)
			}
		}
	}
	f.mu.Unlock()
	for _, fl := range lost {
		f.deliver(fl, nil)
	}
}

// failLocked gives up every question of the socket: its host says that nobody listens, or that it cannot be reached.
func (s *upSocket) failLocked(cause error) (lost []*flight) {
	pending := s.pending
	s.pending = make(map[uint16]*attempt)
	s.closeLocked()
	for _, a := range pending {
		lost = append(lost, s.f.lostLocked(a, reasonUnreachable, cause))
	}
	return lost
}

// packets is room for sending the queries of one socket at once: each is an id and the rest of its flight's query.
type packets struct {
	hdrs [socketQuestions]unix.Mmsghdr
	iovs [socketQuestions][2]unix.Iovec
	ids  [socketQuestions][2]byte
}

// send sends the attempts' queries by a connected socket. A full send buffer is like a lost packet: the timers send again.
// An error may be that of an earlier query, whose host refused it; then the second try tells.
func (p *packets) send(fd int, attempts []*attempt) error {
	for i, a := range attempts {
		binary.BigEndian.PutUint16(p.ids[i][:], a.id)
		rest := a.flight.query[2:]
		p.iovs[i][0].Base, p.iovs[i][1].Base = &p.ids[i][0], &rest[0]
		p.iovs[i][0].SetLen(2)
		p.iovs[i][1].SetLen(len(rest))
		p.hdrs[i].Hdr.Iov = &p.iovs[i][0]
		p.hdrs[i].Hdr.SetIovlen(2)
	}
	failures := 0
	for rest := p.hdrs[:len(attempts)]; len(rest) > 0; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&rest[0])), uintptr(len(rest)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			rest, failures = rest[n:], 0
		case errno == unix.EAGAIN || errno == unix.ENOBUFS:
			return nil
		case errno != unix.EINTR:
			if failures++; failures > 1 {
				return errno
			}
		}
	}
	return nil
}

// sockaddrOf is an address in the form of system calls. An IPv6 zone is an interface's name or number.
func sockaddrOf(addr netip.AddrPort) (unix.Sockaddr, int, error) {
	ip := addr.Addr().Unmap()
	if ip.Is4() {
		return &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}, unix.AF_INET, nil
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
	if zone := ip.Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			sa.ZoneId = uint32(n)
		} else if link, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(link.Index)
		} else {
			return nil, 0, fmt.Errorf("zone of %v: %w", addr, err)
		}
	}
	return sa, unix.AF_INET6, nil
}
