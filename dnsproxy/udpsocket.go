package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpSocket is a UDP socket outside the care of Go's network poller.
//
// The poller would be told of every packet that arrives, by waking a thread, also while the packets are being read anyway:
// a fifth of all that an answer costs. So the socket is in an epoll set of its own, armed only before its reader parks, and
// the poller watches that set.
type udpSocket struct {
	local netip.AddrPort
	wake  *os.File        // the epoll set; its read deadline stops the reader
	raw   syscall.RawConn // of wake
	epoll int

	mu sync.RWMutex // held for reading while fd is written to
	fd int          // -1 once closed
}

// takeOver makes conn's socket one of ours and closes conn.
func takeOver(conn *net.UDPConn) (*udpSocket, error) {
	s := &udpSocket{local: conn.LocalAddr().(*net.UDPAddr).AddrPort(), fd: -1, epoll: -1}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("DNS socket %v: %w", s.local, err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = failed
	}
	if err == nil {
		err = s.watch()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("DNS socket %v: %w", s.local, err)
	}
	conn.Close()
	return s, nil
}

// watch makes the epoll set and lets Go's poller watch it.
func (s *udpSocket) watch() (err error) {
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	// a file that does not block is one for the poller
	if err := unix.SetNonblock(s.epoll, true); err != nil {
		return err
	}
	s.wake = os.NewFile(uintptr(s.epoll), "dns-udp-epoll")
	if s.raw, err = s.wake.SyscallConn(); err != nil {
		return err
	}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT}); err != nil {
		return err
	}
	return s.wake.SetReadDeadline(noDeadline) // fails unless the poller watches
}

// stopReading makes read return, now or at its next idle moment.
func (s *udpSocket) stopReading() { _ = s.wake.SetReadDeadline(time.Unix(1, 0)) }

// read calls serve until it returns false or reading is stopped. serve is to empty the socket; between calls the reader is
// parked until something arrives.
func (s *udpSocket) read(serve func(fd uintptr) bool) error {
	return s.raw.Read(func(epoll uintptr) bool {
		var event [1]unix.EpollEvent
		_, _ = unix.EpollWait(int(epoll), event[:], 0) // takes note of the event, which thereby is disarmed
		if !serve(uintptr(s.fd)) {
			return true
		}
		// arming tells at once of what has come since serve looked
		arm := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(s.fd)}
		return unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, s.fd, &arm) != nil
	})
}

// close closes our duplicate of the socket. Where there is another, in systemd's store, what arrives waits there.
func (s *udpSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wake != nil {
		s.wake.Close()
	} else if s.epoll >= 0 {
		unix.Close(s.epoll)
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.fd, s.epoll = -1, -1
}

// control runs f on the descriptor unless it is closed.
func (s *udpSocket) control(f func(fd uintptr)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		f(uintptr(s.fd))
	}
}

// sendTo sends one packet to an address in the kernel's form, with an optional control message. It does not wait: a packet
// for which the send buffer has no room is lost, as packets may be.
func (s *udpSocket) sendTo(msg []byte, to *unix.RawSockaddrInet6, control []byte) (err error) {
	iov := unix.Iovec{Base: &msg[0]}
	iov.SetLen(len(msg))
	hdr := unix.Msghdr{Name: (*byte)(unsafe.Pointer(to)), Namelen: sockaddrLen(to), Iov: &iov}
	hdr.SetIovlen(1)
	if len(control) > 0 {
		hdr.Control = &control[0]
		hdr.SetControllen(len(control))
	}
	s.control(func(fd uintptr) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&hdr)), unix.MSG_DONTWAIT); errno != 0 {
			err = errno
		}
	})
	runtime.KeepAlive(control)
	return err
}

func sockaddrLen(sa *unix.RawSockaddrInet6) uint32 {
	if sa.Family == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}
