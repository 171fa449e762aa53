package dnsproxy

import (
	"encoding/binary"
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
			r.drain(int(event.Fd))
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
		for _, fl := range r.done {
			r.f.deliver(fl, &r.box)
		}
		clear(r.done)
		r.done = r.done[:0]
		if sock == nil {
			return
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
