package dnsproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	streamIdle    = 3 * time.Second        // how long a stream without a question is kept; its server may say otherwise (RFC 7828)
	maxStreamIdle = 30 * time.Second       // whatever the server says
	spentIdle     = 100 * time.Millisecond // for a stream that gets no more questions: the server's turn to close it
	maxResends    = 2                      // of a question that lost streams from which nothing came
	manyResends   = 16                     // of one that lost streams on which others were answered: so its turn comes
	maxOnStream   = 1 << 14                // questions in flight on one stream: ids must be easy to find
	streamTag     = 1                      // in the epoll event's data, beside the descriptor
)

// upStream is a TCP connection to one server, for many questions at once: they are sent as they come and answered in any order (RFC 7766 section
// 6.2.1). Like upSocket it is watched by the one reader and has no goroutine. It is guarded by forwarder.mu.
type upStream struct {
	f       *forwarder
	server  *server
	fd      int
	pending map[uint16]*attempt
	out     []byte // queries that the kernel has not taken yet
	in      []byte // the beginning of an answer whose rest has not come
	listed  bool   // in forwarder.unsent
	open    bool   // the kernel has taken something: there is somebody
	retired bool   // gets no more questions
	closed  bool

	used      int       // questions sent
	answered  int       // of them
	latest    int       // place of the latest question that has been answered
	forgotten int       // questions given up, whose answers may still come
	moved     time.Time // of the last answer, or when the stream became busy or idle since
	keep      time.Duration
	timer     *time.Timer
}

// streamLocked puts the flight's query to server over TCP; flush sends it. A stream repeats what is lost by itself, so the same is not asked twice: at most
// it moves to another stream.
func (f *forwarder) streamLocked(fl *flight, server *server) error {
	for _, a := range fl.attempts {
		if a.overTCP && a.server == server {
			f.moveLocked(a)
			return nil
		}
	}
	s, err := f.roomLocked(server, false)
	if err != nil {
		return err
	}
	a := fl.attemptLocked(server)
	a.overTCP, fl.overTCP = true, true
	f.placeLocked(a, s)
	return nil
}

// placeLocked puts a question on s, or in the queue if there is no room.
func (f *forwarder) placeLocked(a *attempt, s *upStream) {
	if s == nil {
		a.server.streams.queue = append(a.server.streams.queue, a)
		return
	}
	s.putLocked(a)
}

// moveLocked asks once more what is late, if its stream is the likely cause: it was used before and has gone silent (a firewall has forgotten it while it was
// idle, and nothing tells), or others have not been answered either, for which the server may let this one wait.
func (f *forwarder) moveLocked(a *attempt) {
	s := a.stream
	if s == nil || a.place == 1 || s.moved.After(a.sent) || a.resends >= maxResends {
		return
	}
	to, err := f.roomLocked(a.server, true)
	if err != nil || to == s {
		return
	}
	s.forgetLocked(a)
	a.resends++
	f.placeLocked(a, to)
}

// fetchLocked asks server over TCP for the answer that it has truncated.
func (f *forwarder) fetchLocked(fl *flight, server *server) *flight {
	if err := f.streamLocked(fl, server); err != nil {
		a := fl.attemptLocked(server)
		a.overTCP = true
		return f.lostLocked(a, reasonUnreachable, err)
	}
	f.timeLocked(fl, min(2*server.patience(), time.Until(fl.deadline))) // for moveLocked; a handshake may be part of it
	return nil
}

// againLocked asks once more what lost its stream, or gives it up for the reason if that has happened too often. A flight that this finishes is returned.
func (f *forwarder) againLocked(a *attempt, most int, reason string, cause error) *flight {
	a.stream = nil
	if a.flight.done {
		return nil
	}
	if a.resends++; a.resends > most || a.server.streams.ended {
		return f.lostLocked(a, reason, cause)
	}
	s, err := f.roomLocked(a.server, false)
	if err != nil {
		return f.lostLocked(a, reasonUnreachable, err)
	}
	f.placeLocked(a, s)
	return nil
}

// roomLocked is the stream for the next question to server, a new one if need be; nil means that there is no room now. With alone it is to have no other
// question, if possible.
func (f *forwarder) roomLocked(server *server, alone bool) (*upStream, error) {
	s, more := server.streams.pick(time.Now(), max(slowStream, server.srtt/2), server.patience(), alone)
	if s != nil || !more {
		return s, nil
	}
	to, family, err := sockaddrOf(server.addr)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd), Pad: streamTag}
	if err := unix.EpollCtl(f.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch stream: %w", err)
	}
	s = &upStream{f: f, server: server, fd: fd, pending: make(map[uint16]*attempt), moved: time.Now(), keep: streamIdle}
	s.timer = time.AfterFunc(streamIdle, func() { f.streamTick(s) })
	f.streams[fd] = s
	server.streams.open = append(server.streams.open, s)
	f.s.metrics.connections.WithLabelValues(server.label).Inc()
	return s, nil
}

// putLocked takes a question; flush sends it.
func (s *upStream) putLocked(a *attempt) {
	for s.pending[a.id] != nil {
		a.id = randomID()
	}
	a.sent, a.stream = time.Now(), s
	if len(s.pending) == 0 {
		s.moved = a.sent
	}
	s.used++
	a.place = s.used
	s.pending[a.id] = a
	s.out, a.asks = appendFrame(s.out, a.flight.query, a.id, s.used == 1 && !s.server.streams.plain)
	if !s.listed {
		s.listed = true
		s.f.unsent = append(s.f.unsent, s)
	}
}

// flushStreamsLocked sends what has gathered on streams, and puts questions that had no room where others have left some.
func (f *forwarder) flushStreamsLocked() (lost []*flight) {
	for len(f.unsent)+len(f.roomy) > 0 {
		roomy := f.roomy
		f.roomy = nil
		for _, server := range roomy {
			lost = append(lost, server.streams.nextLocked(f)...)
		}
		unsent := f.unsent
		f.unsent = nil
		for _, s := range unsent {
			s.listed = false
			lost = append(lost, s.flushLocked()...)
		}
	}
	return lost
}

func (s *upStream) flushLocked() (lost []*flight) {
	for len(s.out) > 0 && !s.closed {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&s.out[0])), uintptr(len(s.out)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			s.open = true
			s.out = s.out[n:]
		case unix.EAGAIN: // the reader hears when there is room, as when the connection is made
			return nil
		case unix.EINTR:
		case unix.EPIPE, unix.ECONNRESET:
			// the server has closed it, and what it answered before may lie there still: the reader hears of both, in their order
			s.retired, s.out = true, nil
			return nil
		default:
			return s.dieLocked(os.NewSyscallError("send", errno))
		}
	}
	s.out = nil
	return nil
}

// takeLocked is what has come from the server. Flights that it finishes are returned, for deliver.
func (s *upStream) takeLocked(chunk []byte) (done []*flight) {
	data := chunk
	if len(s.in) > 0 {
		s.in = append(s.in, chunk...)
		data = s.in
	}
	for len(data) >= 2 {
		end := 2 + int(binary.BigEndian.Uint16(data))
		if end > len(data) {
			break
		}
		done = append(done, s.messageLocked(data[2:end])...)
		if s.closed {
			return done
		}
		data = data[end:]
	}
	if len(data) == 0 {
		s.in = nil
	} else {
		s.in = append(s.in[:0], data...)
	}
	return done
}

// messageLocked is one message from the server. One that answers nothing is a forger's by UDP; here it is the server's own, and the stream is not worth
// keeping, unless it may be the answer to a question that was given up.
func (s *upStream) messageLocked(msg []byte) (done []*flight) {
	if len(msg) < headerSize {
		return s.dieLocked(errors.New("answer without a header"))
	}
	id := binary.BigEndian.Uint16(msg)
	a := s.pending[id]
	if a == nil || !answers(msg, a.flight.query, id) {
		s.f.s.metrics.bogus.Inc()
		if a == nil && s.forgotten > 0 {
			s.forgotten--
			return nil
		}
		return s.dieLocked(errors.New("answer to another question"))
	}
	delete(s.pending, id)
	s.answered++
	s.moved = time.Now()
	p := &s.server.streams
	p.heard = true
	p.mixes = p.mixes || a.place < s.latest
	s.latest = max(s.latest, a.place)
	if a.asks && msg[3]&rcodeMask == dns.RcodeFormatError {
		p.plain = true // it may know EDNS and not this
		return appendFlight(nil, s.f.againLocked(a, manyResends, reasonRefused, errors.New("answers FORMERR")))
	}
	if keep, ok := keepAlive(msg); ok {
		s.keep = min(keep*3/4, maxStreamIdle)
		s.retired = s.retired || keep == 0
	}
	a.stream = nil
	done = appendFlight(done, s.f.answeredLocked(a, msg))
	s.restLocked()
	return done
}

// restLocked sets the time that a stream without questions has left.
func (s *upStream) restLocked() {
	switch {
	case s.closed || len(s.pending) > 0:
	case s.retired:
		s.closeLocked()
	case s.keep < streamIdle || s.full():
		s.timer.Reset(s.patience())
	}
}

// patience is how long the stream may be idle.
func (s *upStream) patience() time.Duration {
	if s.full() {
		return min(s.keep, spentIdle)
	}
	return s.keep
}

// full reports a stream that takes no more questions.
func (s *upStream) full() bool {
	most := s.server.streams.most
	return s.retired || most > 0 && s.used >= most || len(s.pending) >= maxOnStream
}

// waited is how long the stream has been as it is: with questions and no answer, or without questions.
func (s *upStream) waited(now time.Time) time.Duration { return now.Sub(s.moved) }

// streamTick is a stream's timer. A stream that is idle for too long is closed, and so is one that no answer comes from while questions do.
func (f *forwarder) streamTick(s *upStream) {
	f.mu.Lock()
	var lost []*flight
	now := time.Now()
	limit := f.s.cfg.ForwardTimeout // nobody waits longer
	if len(s.pending) == 0 {
		limit = s.patience()
	}
	switch left := limit - s.waited(now); {
	case s.closed:
	case left > 0:
		s.timer.Reset(min(left, s.patience()))
	case len(s.pending) > 0:
		lost = s.dieLocked(fmt.Errorf("no answer within %v", limit))
	default:
		s.server.streams.keptLocked(s)
		s.closeLocked()
	}
	f.mu.Unlock()
	f.flush()
	for _, fl := range lost {
		f.deliver(fl, nil)
	}
}

// forgetLocked gives up waiting for an answer. A stream from which nothing ever came is not kept for other questions.
func (s *upStream) forgetLocked(a *attempt) {
	a.stream = nil
	delete(s.pending, a.id)
	s.forgotten++
	if s.closed || len(s.pending) > 0 {
		return
	}
	now := time.Now()
	if s.answered == 0 || s.waited(now) >= s.server.patience() {
		s.closeLocked()
		return
	}
	s.moved = now
	s.restLocked()
}

// dieLocked ends a broken stream. Its questions are asked again on another, if the server has ever answered by streams or this one had more than one: a server closes
// an idle stream just when a question is on its way, closes each after so many questions or when it has too many, or is started anew. Flights that end are returned.
func (s *upStream) dieLocked(cause error) (lost []*flight) {
	pending := make([]*attempt, 0, len(s.pending))
	for _, a := range s.pending {
		pending = append(pending, a)
	}
	slices.SortFunc(pending, func(a, b *attempt) int { return a.place - b.place })
	s.closeLocked()
	if len(pending) == 0 {
		return nil
	}
	reason := reasonStream
	if !s.open {
		reason = reasonUnreachable
	}
	again := s.open && (s.used > 1 || s.server.streams.heard)
	if s.open && (s.answered == 0 && s.used > 1 || s.answered > 0 && s.moved.After(pending[0].sent)) {
		s.server.streams.most = max(s.answered, 1) // it takes no more
	}
	most := maxResends
	if s.answered > 0 {
		most = manyResends
	}
	for _, a := range pending {
		a.stream = nil
		if again {
			lost = appendFlight(lost, s.f.againLocked(a, most, reason, cause))
		} else {
			lost = appendFlight(lost, s.f.lostLocked(a, reason, cause))
		}
	}
	return lost
}

func (s *upStream) closeLocked() {
	if s.closed {
		return
	}
	s.closed = true
	s.timer.Stop()
	s.pending, s.in, s.out = nil, nil, nil
	delete(s.f.streams, s.fd)
	p := &s.server.streams
	p.open = slices.DeleteFunc(p.open, func(o *upStream) bool { return o == s })
	if len(p.queue) > 0 {
		s.f.roomy = append(s.f.roomy, s.server)
	}
	_ = unix.EpollCtl(s.f.epoll, unix.EPOLL_CTL_DEL, s.fd, nil)
	if s.f.reading {
		s.f.closable = append(s.f.closable, s.fd)
	} else {
		unix.Close(s.fd)
	}
}

// appendFlight leaves out the flight that is none.
func appendFlight(list []*flight, fl *flight) []*flight {
	if fl == nil {
		return list
	}
	return append(list, fl)
}
