package dnsproxy

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// decision is what becomes of one message: a reply now (nil for none at all), or a question to ask upstream.
type decision struct {
	reply []byte
	from  source
	req   *dns.Msg // nil unless the message is a well-formed query
	ask   *upstreamQuery
	w     waiter // of the question to ask
}

// decide answers a message that the hot path left, as far as that can be done without asking anyone. It does not keep msg.
func (s *Server) decide(t *Table, msg []byte, via transport) decision {
	reply, req, from, v := t.answerLocally(msg, via)
	if v != verdictForward {
		return decision{reply: reply, from: from, req: req}
	}
	w := waiter{msg: slices.Clone(msg), limit: clientLimit(req, via), via: via}
	if reply, from := s.forward.answerUnasked(t, w, req); reply != nil {
		return decision{reply: reply, from: from, req: req}
	}
	q := newUpstreamQuery(w.msg)
	if q.cacheKey != "" {
		at := now()
		e, fresh := s.cache.get([]byte(q.cacheKey), at)
		if fresh {
			if e.wantsPrefetch(at) {
				s.forward.prefetch(q)
			}
			reply, from := s.forward.compose(t, w, e.message(w.msg, at), fromCache)
			return decision{reply: reply, from: from, req: req}
		}
		q.stale = e
	}
	return decision{from: fromUpstream, req: req, ask: &q, w: w}
}

// handle deals with a message that the hot path left. It returns the answer, or nil if there is none or if it comes later:
// then through the replier, which client makes. It does not keep msg.
func (s *Server) handle(t *Table, msg []byte, via transport, client func() replier) []byte {
	d := s.decide(t, msg, via)
	s.logQuery(msg, via, d.from)
	switch {
	case d.ask != nil:
		d.w.to = client()
		s.forward.ask(d.w, d.ask)
	case d.reply == nil:
		s.metrics.dropped.Add(1)
	default:
		s.metrics.add(via, questionType(msg), d.reply, d.from)
	}
	return d.reply
}

// answerUnasked answers the questions that would go upstream by their name, but need not: zone transfers, and names
// completed by the cluster's part of the search list. nil for all others.
func (f *forwarder) answerUnasked(t *Table, w waiter, req *dns.Msg) ([]byte, source) {
	switch req.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		// a zone is many messages and no work for a forwarder; clients ask its server
		reply := newReply(req, dns.RcodeRefused)
		explainWhy(reply, dns.ExtendedErrorCodeNotSupported, "zone transfers are not forwarded")
		return pack(reply, w.limit), fromRefused
	}
	return f.clusterReply(t, w, req), fromMesh
}

// mayAnswer reports whether a name that match does not know may still be answered here: reverse names, localhost and, in
// the cluster's domain, names completed by the search list.
func (t *Table) mayAnswer(q *query) bool {
	key := q.key[:q.n]
	if t != nil && (q.qtype == dns.TypePTR || endsIn(key, reverseSuffix) || t.domain != nil && endsIn(key, t.domain)) {
		return true
	}
	return isLocalhost(key)
}

// reverseSuffix ends the reverse names of all addresses.
var reverseSuffix = []byte("\x04arpa")

// endsIn is a quick isBelow: right whenever it says no.
func endsIn(key, suffix []byte) bool {
	return len(key) >= len(suffix) && string(key[len(key)-len(suffix):]) == string(suffix)
}

// logQuery costs nothing unless debug is on. msg is a question, or the answer that was written over it.
func (s *Server) logQuery(msg []byte, via transport, from source) {
	if !s.log.Enabled(context.Background(), slog.LevelDebug) || len(msg) < headerSize || !plainQuestion(msg) {
		return
	}
	name, _, err := dns.UnpackDomainName(msg, headerSize)
	if err != nil {
		return
	}
	s.log.Debug("dns query", "name", name, "type", dns.Type(questionType(msg)).String(), "transport", via.String(), "source", from.String())
}

// listensOn reports whether addr is one of our own sockets.
func (s *Server) listensOn(addr netip.AddrPort) bool {
	for _, conn := range s.cfg.UDP {
		own := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		if own.Port() != addr.Port() {
			continue
		}
		if ownAddr := own.Addr().Unmap(); ownAddr == addr.Addr() || ownAddr.IsUnspecified() && isOwnAddress(addr.Addr()) {
			return true
		}
	}
	return false
}

// isOwnAddress reports whether addr is this machine's.
func isOwnAddress(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == addr.Unmap()
	})
}

// upstreamQuery is a question as it goes upstream.
type upstreamQuery struct {
	msg  []byte // id unset
	key  string // equal for questions that have the same answer
	name []byte // key of the name asked for; the caller's scratch

	cacheKey string  // "" if the answer is for this client only
	stale    *cached // an answer that has outlived its time; nil if there is none
}

// Options that concern this hop only and are taken out: a cookie is made for one server's address (RFC 7873 section 5.2),
// a keep-alive for one stream (RFC 7828 section 3.2.1).
var hopOptions = []uint16{dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE}

// newUpstreamQuery makes the query that goes upstream from a client's. It is the client's, octet for octet, but for the id,
// the size we take and the options of the hop; what is not of the plain kind (a signature, say) is not touched at all.
func newUpstreamQuery(msg []byte) upstreamQuery {
	q := new(query)
	if q.parse(msg) {
		return q.upstream(msg)
	}
	normal := slices.Clone(msg[2:])
	end := skipName(msg, headerSize)
	name := lowered(msg[headerSize : end-1])
	copy(normal[headerSize-2:], name)
	return upstreamQuery{msg: slices.Clone(msg), key: string(normal), name: name}
}

// upstream is newUpstreamQuery for a question parsed into q already.
func (q *query) upstream(msg []byte) upstreamQuery {
	out := slices.Clone(msg)
	if q.edns {
		binary.BigEndian.PutUint16(out[q.end+3:], maxUDP)
		if q.opts {
			out = withoutHopOptions(out, q.end)
		}
	}
	u := upstreamQuery{msg: out, name: q.key[:q.n]}
	if key := q.cacheKey(msg); key != nil {
		// with what is in the key, only the presence of EDNS makes a difference
		edns := byte(0)
		if q.edns {
			edns = 1
		}
		u.key = string(append(key, edns))
		u.cacheKey = u.key[:len(key)]
		return u
	}
	var room [minUDP]byte
	normal := append(room[:0], out[2:]...)
	copy(normal[headerSize-2:], u.name)
	u.key = string(normal)
	return u
}

// withoutHopOptions takes hopOptions out of the OPT at the given offset, the message's last record. Options that are malformed stay as they are.
func withoutHopOptions(msg []byte, opt int) []byte {
	out := slices.Clone(msg[:opt+optSize])
	for options := msg[opt+optSize:]; len(options) > 0; {
		if len(options) < 4 {
			return msg
		}
		length := 4 + int(binary.BigEndian.Uint16(options[2:]))
		if length > len(options) {
			return msg
		}
		if !slices.Contains(hopOptions, binary.BigEndian.Uint16(options)) {
			out = append(out, options[:length]...)
		}
		options = options[length:]
	}
	binary.BigEndian.PutUint16(out[opt+9:], uint16(len(out)-opt-optSize))
	return out
}

// fit makes an upstream's answer one for a client: its id, its spelling of the name, RA set because we do recurse by way of
// others, an OPT of this hop's size if and only if the client sent one, and within the client's size.
func fit(answer []byte, w waiter) []byte {
	l, ok := walk(answer)
	if !ok {
		return errorReply(w.msg, dns.RcodeServerFailure)
	}
	asked, _ := walk(w.msg)
	msg := slices.Clone(answer[:l.end])
	copy(msg, w.msg[:2])
	msg[3] |= flagRA
	if binary.BigEndian.Uint16(msg[4:]) == 0 {
		// an error without its question, and with nothing else of use
		msg = append(msg[:headerSize:headerSize], w.msg[headerSize:asked.question]...)
		clear(msg[4:headerSize])
		msg[5] = 1
		l = layout{question: len(msg), end: len(msg)}
	} else if l.question == asked.question {
		copy(msg[headerSize:l.question], w.msg[headerSize:asked.question])
	}
	switch {
	case asked.opt == 0 && l.opt != 0 && l.optEnd == l.end:
		msg = msg[:l.opt]
		binary.BigEndian.PutUint16(msg[10:], binary.BigEndian.Uint16(msg[10:])-1)
	case asked.opt != 0 && l.opt == 0 && msg[3]&rcodeMask == dns.RcodeFormatError:
		// without an OPT it says that this server knows no EDNS, and the client asks again without (RFC 6891 section 7)
	case asked.opt != 0 && l.opt == 0:
		msg = append(msg, make([]byte, optSize)...)
		putOPT(msg[len(msg)-optSize:], w.msg[asked.opt+7]&0x80 != 0)
		binary.BigEndian.PutUint16(msg[10:], binary.BigEndian.Uint16(msg[10:])+1)
	case l.opt != 0:
		binary.BigEndian.PutUint16(msg[l.opt+3:], maxUDP)
		if l.optEnd == l.end && l.optEnd > l.opt+optSize {
			msg = withoutHopOptions(msg, l.opt)
		}
	}
	if len(msg) <= w.limit {
		return msg
	}
	return truncated(msg, w.limit)
}

// truncated shortens a reply to limit octets, with TC set, by whole records as far as they can be read.
func truncated(msg []byte, limit int) []byte {
	var m dns.Msg
	if m.Unpack(msg) == nil {
		m.Compress = true
		m.Truncate(limit)
		if short, err := m.Pack(); err == nil && len(short) <= limit {
			short[2] |= flagTC
			return short
		}
	}
	return headOnly(msg)
}

// headOnly is a reply of just the header and the question, with TC set: the rest is to be had by TCP.
func headOnly(msg []byte) []byte {
	end := skipName(msg, headerSize)
	if end == 0 || end+4 > len(msg) || binary.BigEndian.Uint16(msg[4:]) == 0 {
		end = headerSize - 4
	}
	head := slices.Clone(msg[:end+4])
	head[2] |= flagTC
	clear(head[6:headerSize])
	return head
}
