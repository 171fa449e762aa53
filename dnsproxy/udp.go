package dnsproxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	udpBatch  = 32   // packets per system call
	udpPacket = 4096 // room for a question; the answer is written into it and is smaller

	// fewPackets in a batch: parking costs less than another look, and who yields for larger batches is put last on a busy processor
	fewPackets = 8
)

// udpWorker serves one UDP socket from one goroutine: a second one would halve the batches and cost more than it brings.
type udpWorker struct {
	s       *Server
	sock    *udpSocket
	batch   *batch
	query   query
	now     instant // of the batch
	debug   bool    // queries are logged
	pktinfo bool    // the socket is bound to no address: replies must say which one they come from
}

func newUDPWorker(s *Server, sock *udpSocket) (*udpWorker, error) {
	w := &udpWorker{s: s, sock: sock, pktinfo: sock.local.Addr().IsUnspecified()}
	if w.pktinfo {
		// a dual-stack socket reports IPv4 destinations by the IPv6 option, mapped; an IPv4 socket knows only the other
		if unix.SetsockoptInt(sock.fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) != nil {
			if err := unix.SetsockoptInt(sock.fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				return nil, fmt.Errorf("DNS socket %v: learn destination addresses: %w", sock.local, err)
			}
		}
	}
	w.batch = newBatch(udpBatch, udpPacket, w.pktinfo)
	return w, nil
}

// run answers until ctx has ended and the socket's reading is stopped.
func (w *udpWorker) run(ctx context.Context) error {
	var failed error
	err := w.sock.gate.read(func() (idle bool) {
		idle, failed = w.serve(ctx, uintptr(w.sock.fd))
		return idle
	})
	if err = cmp.Or(failed, err); ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("read DNS socket %v: %w", w.sock.local, err)
}

// maxReadErrors in a row mean that the socket is broken, not that some client went away.
const maxReadErrors = 1000

// serve empties the socket. It returns idle when nothing is left and is called again once there is; without idle it has
// been asked to end, or failed.
func (w *udpWorker) serve(ctx context.Context, fd uintptr) (idle bool, err error) {
	yielded, failures := false, 0
	for ctx.Err() == nil {
		switch err := w.batch.receive(fd); err {
		case nil:
		case unix.EAGAIN:
			if yielded {
				return true, nil
			}
			// let clients run first: what they send meanwhile comes in one batch
			yield()
			yielded = true
			continue
		default:
			// an ICMP error for an answer whose client is gone; the call has cleared it
			if failures++; failures > maxReadErrors {
				return false, err
			}
			continue
		}
		yielded, failures = false, 0
		w.now, w.debug = now(), w.s.log.Enabled(ctx, slog.LevelDebug)
		t := w.s.table.Load().Table
		for i := range w.batch.n {
			if length := w.answer(t, i); length > 0 {
				w.batch.answer(i, length)
			}
		}
		w.batch.send(fd)
		w.s.forward.flush()
		if w.batch.n < fewPackets {
			return true, nil
		}
	}
	return false, nil
}

// answer handles packet i and returns the length of the answer that now lies in its buffer, 0 for none or not yet.
func (w *udpWorker) answer(t *Table, i int) int {
	msg, buf, q := w.batch.packet(i), w.batch.buffer(i), &w.query
	if !w.batch.cut(i) && q.parse(msg) && q.answerable() {
		if t != nil {
			if length := t.fast(buf, q, q.size, rotation()); length > 0 {
				return w.done(buf, length, fromMesh)
			}
		}
		if !t.mayAnswer(q) {
			switch e, fresh := w.s.cache.find(q, msg, w.now); {
			case !fresh:
				w.ask(msg, q, e, i)
				return 0
			case e.rcode == dns.RcodeSuccess: // of names that do not exist the mesh may have something to say
				if e.wantsPrefetch(w.now) {
					w.s.forward.prefetch(q.upstream(msg))
				}
				if length := e.write(buf, q, w.now, q.size, rotation()); length > 0 {
					return w.done(buf, length, fromCache)
				}
			}
		}
	}
	reply := w.s.handle(t, msg, overUDP, func() replier { return w.client(i) })
	return copy(buf, reply)
}

// done counts an answer that was written over its question.
func (w *udpWorker) done(buf []byte, length int, from source) int {
	w.s.metrics.add(overUDP, w.query.qtype, buf, from)
	if w.debug {
		w.s.logQuery(buf[:length], overUDP, from)
	}
	return length
}

// ask takes packet i upstream; stale is an old answer, or nil.
func (w *udpWorker) ask(msg []byte, q *query, stale *cached, i int) {
	up := q.upstream(msg)
	up.stale = stale
	if w.debug {
		w.s.logQuery(msg, overUDP, fromUpstream)
	}
	w.s.forward.ask(waiter{msg: slices.Clone(msg), limit: q.size, via: overUDP, to: w.client(i)}, &up)
}

// client remembers who sent packet i.
func (w *udpWorker) client(i int) replier {
	c := &udpClient{sock: w.sock, to: w.batch.from[i], log: w.s.log}
	if w.pktinfo {
		ctrl := slices.Clone(w.batch.ctrl[i][:w.batch.in[i].Hdr.Controllen])
		c.control = ctrl[:min(len(ctrl), replyControl(ctrl))]
	}
	return c
}

// udpClient is where a later answer goes.
type udpClient struct {
	sock    *udpSocket
	to      unix.RawSockaddrInet6
	control []byte // source address, for sockets bound to none
	log     *slog.Logger
}

func (c *udpClient) reply(msg []byte) {
	if err := c.sock.sendTo(msg, &c.to, c.control); err != nil {
		c.log.Debug("dns answer not sent", "client", addrOf(&c.to), "cause", err)
	}
}
