package dnsproxy

import (
	"encoding/binary"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reader takes upstreams' answers from all sockets, in one goroutine.
type reader struct {
	f      *forwarder
	batch  *batch
	box    outbox
	events [64]unix.EpollEvent
	stream []byte // room for what comes by streams; nil before there is any
	done   []*flight
}

// serve takes all the answers there are. It returns true: it may be parked.
func (r *reader) serve() bool {
	defer r.f.setReading(false)
	for yielded := false; ; {
		r.f.setReading(true)
		n := ready(r.f.epoll, r.events[:])
		if n == 0 {
			if yielded {
				return true
			}
			yield()
			yielded = true
			continue
		}
		yielded = false
		for _, event := range r.events[:n] {
			if event.Pad == streamTag {
				r.drainStream(int(event.Fd), event.Events)
			} else {
				r.drain(int(event.Fd))
			}
		}
		r.box.flush()
		r.f.flush()
	}
}

// ready lists the descriptors of an epoll set that have something to read, without waiting.
func ready(epoll int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// drain reads a socket until it is empty. The descriptor stays open meanwhile, see setReading.
func (r *reader) drain(fd int) {
	for {
		err := r.batch.receive(uintptr(fd))
		if err == unix.EAGAIN {
			return
		}
		r.f.mu.Lock()
		sock := r.f.sockets[fd]
		switch {
		case sock == nil:
		case err != nil:
			r.done = append(r.done, sock.failLocked(os.NewSyscallError("receive", err))...)
		default:
			for i := range r.batch.n {
				r.done = append(r.done, sock.takeLocked(r.batch.packet(i), r.batch.cut(i)))
			}
		}
		r.f.mu.Unlock()
		r.deliver()
		if sock == nil {
			return
		}
	}
}

// deliver answers who waits for the flights that are done.
func (r *reader) deliver() {
	for _, fl := range r.done {
		r.f.deliver(fl, &r.box)
	}
	clear(r.done)
	r.done = r.done[:0]
}

// drainStream is drain for a stream. events are what happened to it.
func (r *reader) drainStream(fd int, events uint32) {
	const most = 32 << 10
	if r.stream == nil {
		r.stream = make([]byte, most)
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&r.stream[0])), most, unix.MSG_DONTWAIT, 0, 0)
		r.f.mu.Lock()
		s := r.f.streams[fd]
		switch {
		case s == nil || errno == unix.EINTR:
		case errno == unix.EAGAIN: // there may be room for what could not be sent
			r.done = append(r.done, s.flushLocked()...)
		case errno != 0:
			r.done = append(r.done, s.dieLocked(os.NewSyscallError("receive", errno))...)
		case n == 0:
			r.done = append(r.done, s.dieLocked(errors.New("closed by the server"))...)
		default:
			r.done = append(r.done, s.takeLocked(r.stream[:n])...)
		}
		blocked := s != nil && len(s.out) > 0 // the event may have been of room for it
		r.f.mu.Unlock()
		r.deliver()
		switch {
		case s == nil || errno != 0 && errno != unix.EINTR || n == 0 && errno == 0:
			return
		case errno == 0 && n < most && events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 && !blocked:
			return // empty: what comes now is another event
		}
	}
}

// setReading says whether the reader is about to use descriptors of sockets. While it does, none of them is closed: the
// number could come to mean another file. At the moment of the call it uses none.
func (f *forwarder) setReading(reading bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading = reading
	for _, fd := range f.closable {
		unix.Close(fd)
	}
	f.closable = f.closable[:0]
}

// takeLocked is one datagram from the server's address. A flight that it finishes is returned, for deliver.
func (s *upSocket) takeLocked(msg []byte, cut bool) *flight {
	if len(msg) < headerSize {
		s.f.s.metrics.bogus.Inc()
		return nil
	}
	id := binary.BigEndian.Uint16(msg)
	if cut {
		msg = headOnly(msg) // what was cut off is to be had by TCP
	}
	a := s.pending[id]
	if a == nil || !answers(msg, a.flight.query, id) {
		s.f.s.metrics.bogus.Inc()
		return nil
	}
	s.forgetLocked(id)
	return s.f.answeredLocked(a, msg)
}
