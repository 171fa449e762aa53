package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpSocket is a UDP socket behind a gate.
type udpSocket struct {
	local netip.AddrPort
	gate  *gate

	mu sync.RWMutex // held for reading while fd is written to
	fd int          // -1 once closed
}

// takeOver makes conn's socket one of ours and closes conn.
func takeOver(conn *net.UDPConn) (*udpSocket, error) {
	s := &udpSocket{local: conn.LocalAddr().(*net.UDPAddr).AddrPort(), fd: -1}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("DNS socket %v: %w", s.local, err)
	}
	var failed error
	if err = raw.Control(func(fd uintptr) { s.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err == nil {
		err = failed
	}
	if err == nil {
		s.gate, err = newGate(s.fd)
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("DNS socket %v: %w", s.local, err)
	}
	conn.Close()
	return s, nil
}

// close closes our duplicate of the socket. Where there is another, in systemd's store, what arrives waits there.
func (s *udpSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gate != nil {
		s.gate.close()
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
	}
	s.fd = -1
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
	setControl(&hdr, control)
	s.control(func(fd uintptr) {
		if _, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&hdr)), unix.MSG_DONTWAIT); errno != 0 {
			err = errno
		}
	})
	runtime.KeepAlive(control)
	return err
}

func setControl(hdr *unix.Msghdr, control []byte) {
	hdr.Control = nil
	if len(control) > 0 {
		hdr.Control = &control[0]
	}
	hdr.SetControllen(len(control))
}

func sockaddrLen(sa *unix.RawSockaddrInet6) uint32 {
	if sa.Family == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}
