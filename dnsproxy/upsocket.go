package dnsproxy

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketQuestions = 64          // questions that leave by one source port
	socketAge       = time.Second // and for how long it is used for new ones
)

// upSocket is a connected UDP socket to one server: the kernel drops datagrams from anyone else and tells when nobody listens
// there. A new one, with a source port that the kernel draws at random, is opened after socketQuestions or socketAge, so
// that who would forge an answer must guess port and id (RFC 5452 section 9.2), and a busy resolver need not pay for a
// socket with every question.
type upSocket struct {
	f       *forwarder
	server  *server
	conn    *net.UDPConn
	raw     syscall.RawConn
	port    uint16
	pending map[uint16]*attempt
	born    time.Time
	used    int
	closed  bool
}

// sendLocked sends the flight's query to server, without waiting.
func (f *forwarder) sendLocked(fl *flight, server *server) error {
	sock, err := f.socketLocked(server)
	if err != nil {
		return err
	}
	a := &attempt{flight: fl, server: server, sock: sock, id: randomID(), sent: time.Now()}
	for sock.pending[a.id] != nil {
		a.id = randomID()
	}
	binary.BigEndian.PutUint16(fl.query, a.id)
	var failed error
	err = sock.raw.Control(func(fd uintptr) {
		// an earlier error of the socket may be reported here: once more then
		for range 2 {
			if failed = unix.Send(int(fd), fl.query, unix.MSG_DONTWAIT); failed == nil || failed == unix.EAGAIN {
				failed = nil // a full buffer is like a lost packet: the timer sends again
				return
			}
		}
	})
	if err := errors.Join(err, failed); err != nil {
		sock.retireLocked()
		return err
	}
	sock.used++
	sock.pending[a.id] = a
	fl.attempts = append(fl.attempts, a)
	return nil
}

// socketLocked is the socket for the next question to server.
func (f *forwarder) socketLocked(server *server) (*upSocket, error) {
	if sock := server.current; sock != nil {
		if sock.used < socketQuestions && time.Since(sock.born) < socketAge {
			return sock, nil
		}
		sock.retireLocked()
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server.addr))
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	sock := &upSocket{f: f, server: server, conn: conn, raw: raw, pending: make(map[uint16]*attempt), born: time.Now(),
		port: uint16(conn.LocalAddr().(*net.UDPAddr).Port)}
	server.current = sock
	server.sockets[sock] = struct{}{}
	f.ports[sock.port] = sock
	f.readers.Go(sock.read)
	return sock, nil
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
	if s.f.ports[s.port] == s {
		delete(s.f.ports, s.port)
	}
	// wakes read, which closes: Close waits for readers, and we may be called by one
	_ = s.conn.SetReadDeadline(time.Unix(1, 0))
}

// upBatches are lent to sockets that have something to read.
var upBatches = sync.Pool{New: func() any { return newBatch(8, udpPacket, false) }}

// read takes answers until the socket is closed.
func (s *upSocket) read() {
	defer s.conn.Close()
	for {
		var refused error
		err := s.raw.Read(func(fd uintptr) bool {
			b := upBatches.Get().(*batch)
			defer upBatches.Put(b)
			for {
				if err := b.receive(fd); err == unix.EAGAIN {
					return false
				} else if err != nil {
					refused = err
					return true
				}
				for i := range b.n {
					s.take(b.packet(i), b.cut(i))
				}
			}
		})
		if err != nil {
			return
		}
		s.refuse(refused)
	}
}

// take is one datagram from the server's address.
func (s *upSocket) take(msg []byte, cut bool) {
	if len(msg) < headerSize {
		s.f.s.metrics.bogus.Inc()
		return
	}
	id := binary.BigEndian.Uint16(msg)
	s.f.mu.Lock()
	a := s.pending[id]
	if cut {
		msg = headOnly(msg) // what was cut off is to be had by TCP
	}
	if a == nil || !answers(msg, a.flight.query, id) {
		s.f.mu.Unlock()
		s.f.s.metrics.bogus.Inc()
		return
	}
	s.forgetLocked(id)
	done := s.f.answeredLocked(a, msg)
	s.f.mu.Unlock()
	s.f.deliver(done)
}

// refuse gives up every question of the socket: its host says that nobody listens, or that it cannot be reached.
func (s *upSocket) refuse(cause error) {
	s.f.mu.Lock()
	pending := s.pending
	s.pending = make(map[uint16]*attempt)
	s.closeLocked()
	var lost []*flight
	for _, a := range pending {
		lost = append(lost, s.f.lostLocked(a, reasonUnreachable, cause))
	}
	s.f.mu.Unlock()
	for _, fl := range lost {
		s.f.deliver(fl)
	}
}
