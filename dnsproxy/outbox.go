package dnsproxy

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// outbox collects answers for UDP clients, so that many leave by one system call. It belongs to one goroutine. A nil outbox
// sends at once.
type outbox struct {
	to   []*udpClient
	msgs [][]byte
	hdrs [outboxSize]unix.Mmsghdr
	iovs [outboxSize]unix.Iovec
}

const outboxSize = 32

// send puts an answer in the box, or on its way if there is no box for it.
func (o *outbox) send(to replier, msg []byte) {
	c, ok := to.(*udpClient)
	if !ok || o == nil || len(msg) == 0 {
		to.reply(msg)
		return
	}
	o.to, o.msgs = append(o.to, c), append(o.msgs, msg)
	if len(o.to) == outboxSize {
		o.flush()
	}
}

// flush sends what is in the box: each run of answers by the same socket in one call. What the kernel will not take is lost,
// as packets may be.
func (o *outbox) flush() {
	for first := 0; first < len(o.to); {
		sock := o.to[first].sock
		n := 0
		for ; first+n < len(o.to) && o.to[first+n].sock == sock; n++ {
			c, msg := o.to[first+n], o.msgs[first+n]
			o.iovs[n].Base = &msg[0]
			o.iovs[n].SetLen(len(msg))
			hdr := &o.hdrs[n].Hdr
			*hdr = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&c.to)), Namelen: sockaddrLen(&c.to), Iov: &o.iovs[n]}
			hdr.SetIovlen(1)
			setControl(hdr, c.control)
		}
		sock.control(func(fd uintptr) { sendAll(fd, o.hdrs[:n], waitWritable) })
		first += n
	}
	clear(o.to)
	clear(o.msgs)
	o.to, o.msgs = o.to[:0], o.msgs[:0]
}

// sendAll sends packets by as few calls as it takes. One that is refused is passed over; when the send buffer is full, wait
// says whether to try again.
func sendAll(fd uintptr, packets []unix.Mmsghdr, wait func(fd uintptr) bool) (last error) {
	for len(packets) > 0 {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&packets[0])), uintptr(len(packets)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			packets = packets[n:]
		case unix.EINTR:
		case unix.EAGAIN:
			if !wait(fd) {
				packets = packets[1:]
			}
		default:
			last = errno
			packets = packets[1:]
		}
	}
	return last
}

// waitWritable gives a full send buffer a moment to drain.
func waitWritable(fd uintptr) bool {
	const patience = 100 // milliseconds
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, patience)
	return err == nil && n > 0
}
