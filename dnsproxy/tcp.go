package dnsproxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// noDeadline is the zero time: wait as long as it takes.
var noDeadline time.Time

// Limits of TCP service (RFC 7766 section 6.2). Connections above the limit replace the one that has been idle
// longest, or if all are busy the one that has waited longest for an answer: servers that do not answer must not lock out the names that
// need none of them.
const (
	maxConnections = 256
	maxPipelined   = 64               // questions of one connection in flight; then it is read no further
	tcpIdle        = 20 * time.Second // without a question
	tcpPatience    = 5 * time.Second  // for the rest of a message, and for a client to take an answer
	tcpBusy        = jostleAfter      // a connection that waits no longer than this for an answer keeps its place
)

// tcpServer serves all TCP listeners.
type tcpServer struct {
	s     *Server
	mu    sync.Mutex // guards everything below
	conns map[*tcpConn]struct{}
	ended bool
	wg    sync.WaitGroup
}

func newTCPServer(s *Server) *tcpServer {
	return &tcpServer{s: s, conns: make(map[*tcpConn]struct{})}
}

// accept takes connections until the listener's deadline is set into the past.
func (ts *tcpServer) accept(ctx context.Context, l *net.TCPListener) error {
	if err := l.SetDeadline(noDeadline); err != nil {
		return fmt.Errorf("DNS socket %v: %w", l.Addr(), err)
	}
	for ctx.Err() == nil {
		conn, err := l.AcceptTCP()
		switch {
		case err == nil:
			ts.add(conn)
		case ctx.Err() != nil || isTimeout(err):
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		default:
			// out of descriptors, most likely: what is open will close
			ts.s.log.Warn("dns connection not accepted", "cause", err)
			pause(ctx, 100*time.Millisecond)
		}
	}
	return nil
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (ts *tcpServer) add(conn *net.TCPConn) {
	c := &tcpConn{s: ts.s, conn: conn, slots: make(chan struct{}, maxPipelined), active: time.Now()}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.ended || len(ts.conns) >= maxConnections && !ts.evictLocked() {
		conn.Close()
		return
	}
	ts.conns[c] = struct{}{}
	ts.wg.Go(func() {
		c.serve()
		ts.mu.Lock()
		delete(ts.conns, c)
		ts.mu.Unlock()
	})
}

// evictLocked closes the connection that has been idle longest, else the one that has waited longest for an answer; false if none has
// waited for long.
func (ts *tcpServer) evictLocked() bool {
	var oldest *tcpConn
	var oldestIdle bool
	var since time.Time
	for c := range ts.conns {
		if idle, at := c.idle(); oldest == nil || idle && !oldestIdle || idle == oldestIdle && at.Before(since) {
			oldest, oldestIdle, since = c, idle, at
		}
	}
	if oldest == nil || !oldestIdle && time.Since(since) < tcpBusy {
		return false
	}
	oldest.conn.Close()
	delete(ts.conns, oldest)
	return true
}

// drain stops reading from connections; answers in flight can still be written.
func (ts *tcpServer) drain() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.ended = true
	for c := range ts.conns {
		c.stopReading()
	}
}

// close waits for the last answers to be written, not for long, and ends what is left.
func (ts *tcpServer) close() {
	late := time.AfterFunc(stopGrace, func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		for c := range ts.conns {
			c.conn.Close()
		}
	})
	defer late.Stop()
	ts.wg.Wait()
}

// tcpConn is one connection. Its questions are answered as their answers come, in any order (RFC 7766 section 6.2.1.1).
type tcpConn struct {
	s     *Server
	conn  *net.TCPConn
	slots chan struct{} // one taken per question in flight

	mu      sync.Mutex // guards writing and everything below
	active  time.Time  // of the last answer, or of the first question since
	pending int        // questions in flight
	stopped bool       // read no more
}

func (c *tcpConn) idle() (idle bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending == 0, c.active
}

func (c *tcpConn) stopReading() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	_ = c.conn.SetReadDeadline(time.Unix(1, 0))
}

// awaitReading sets the time that the next octets have; false once reading has been stopped.
func (c *tcpConn) awaitReading(patience time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.stopped && c.conn.SetReadDeadline(time.Now().Add(patience)) == nil
}

// serve reads questions until the client closes, is idle for too long or breaks the framing.
func (c *tcpConn) serve() {
	defer c.conn.Close()
	in := bufio.NewReader(c.conn)
	var (
		q       query
		length  [2]byte
		buf     []byte
		pending sync.WaitGroup
	)
	defer pending.Wait() // before closing: the client may have shut down only its sending side
	for c.awaitReading(tcpIdle) {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(length[:]))
		if buf = grown(buf, n); !c.awaitReading(tcpPatience) {
			return
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return
		}
		if reply := c.answer(&buf, n, &q, &pending); reply != nil {
			c.write(reply)
		}
	}
}

// grown has room for n octets and what buf holds.
func grown(buf []byte, n int) []byte {
	if n > len(buf) {
		buf = append(make([]byte, 0, max(n, minUDP)), buf...)
	}
	return buf[:cap(buf)]
}

// answer returns the answer to the question in buf[:n], which may be written over it; nil if there is none or if it comes
// later.
func (c *tcpConn) answer(buf *[]byte, n int, q *query, pending *sync.WaitGroup) []byte {
	t := c.s.Table()
	if t != nil && q.parse((*buf)[:n]) && q.answerable() {
		if s, _ := t.match(&q.key, q.n); s != nil {
			*buf = grown(*buf, s.room(q))
			reply := (*buf)[:t.write(*buf, q, s, min(len(*buf), maxTCP), rotation())]
			c.s.metrics.add(overTCP, q.qtype, reply, fromMesh)
			c.s.logQuery(reply, overTCP, fromMesh)
			return reply
		}
	}
	defer c.s.forward.flush()
	return c.s.handle(t, (*buf)[:n], overTCP, func() replier {
		c.slots <- struct{}{} // too many in flight: wait here, and thereby read no further
		c.mu.Lock()
		if c.pending++; c.pending == 1 {
			c.active = time.Now()
		}
		c.mu.Unlock()
		pending.Add(1)
		return &tcpClient{conn: c, pending: pending}
	})
}

// write sends one message. A client that does not read loses the connection.
func (c *tcpConn) write(msg []byte) {
	framed := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	framed = append(framed, msg...) // one write, one segment
	c.mu.Lock()
	defer c.mu.Unlock()
	c.active = time.Now()
	if err := c.conn.SetWriteDeadline(c.active.Add(tcpPatience)); err != nil {
		return
	}
	if _, err := c.conn.Write(framed); err != nil {
		c.conn.Close()
	}
}

// tcpClient is where a later answer goes. It is used once.
type tcpClient struct {
	conn    *tcpConn
	pending *sync.WaitGroup
}

func (c *tcpClient) reply(msg []byte) {
	// not in the caller's time, who may be answering thousands: a client that does not read would hold them all up
	go func() {
		defer c.pending.Done()
		c.conn.write(msg)
		c.conn.mu.Lock()
		c.conn.pending--
		c.conn.mu.Unlock()
		<-c.conn.slots
	}()
}
