package dnsproxy

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gate parks a goroutine until a descriptor is readable, and keeps quiet while it is being read.
//
// Go's network poller is told of every packet that arrives on a descriptor in its care, by waking a thread, also while the
// packets are being read anyway: two fifths of all that an answer costs, when measured. So the descriptor is in an epoll set
// of its own, which fires once and is armed again only before its reader parks; the poller watches that set.
type gate struct {
	fd    int
	epoll int
	file  *os.File // the epoll set; its read deadline stops the reader
	raw   syscall.RawConn
}

func newGate(fd int) (*gate, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	// a file that does not block is one for the poller
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return nil, err
	}
	g := &gate{fd: fd, epoll: epoll, file: os.NewFile(uintptr(epoll), "epoll")}
	if g.raw, err = g.file.SyscallConn(); err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT})
	}
	if err == nil {
		err = g.file.SetReadDeadline(noDeadline) // fails unless the poller watches
	}
	if err != nil {
		g.file.Close()
		return nil, err
	}
	return g, nil
}

// read calls serve until it returns false or stop is called. serve is to empty the descriptor; between its calls the
// goroutine is parked until something arrives.
func (g *gate) read(serve func() bool) error {
	return g.raw.Read(func(epoll uintptr) bool {
		var event [1]unix.EpollEvent
		ready(int(epoll), event[:]) // takes note of the event, which thereby is disarmed
		if !serve() {
			return true
		}
		// arming tells at once of what has come since serve looked
		arm := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(g.fd)}
		return unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, g.fd, &arm) != nil
	})
}

// stop makes read return at its next idle moment.
func (g *gate) stop() { _ = g.file.SetReadDeadline(time.Unix(1, 0)) }

func (g *gate) close() { g.file.Close() }

// yield lets other threads run: what they send meanwhile comes in one batch. Go's scheduler is not told, which costs more than the call.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
