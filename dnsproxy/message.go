package dnsproxy

import (
	"encoding/binary"
	"slices"

	"github.com/miekg/dns"
)

// layout is where things lie in a message: found by counting octets alone, record data stays unread.
type layout struct {
	question int // end of the question section
	opt      int // start of the OPT record; 0: none
	optEnd   int
	end      int // end of the last record
}

// walk finds the layout of msg. ok is false if the records do not lie within msg as the header counts them.
func walk(msg []byte) (l layout, ok bool) {
	if len(msg) < headerSize {
		return l, false
	}
	at := headerSize
	for range binary.BigEndian.Uint16(msg[4:]) {
		if at = skipName(msg, at); at == 0 || at+4 > len(msg) {
			return l, false
		}
		at += 4
	}
	l.question = at
	for section := 6; section <= 10; section += 2 {
		for range binary.BigEndian.Uint16(msg[section:]) {
			start := at
			if at = skipName(msg, at); at == 0 || at+10 > len(msg) {
				return l, false
			}
			rrtype := binary.BigEndian.Uint16(msg[at:])
			if at += 10 + int(binary.BigEndian.Uint16(msg[at+8:])); at > len(msg) {
				return l, false
			}
			if rrtype == dns.TypeOPT {
				if section != 10 || l.opt != 0 || msg[start] != 0 {
					return l, false // RFC 6891 section 6.1.1
				}
				l.opt, l.optEnd = start, at
			}
		}
	}
	l.end = at
	return l, true
}

// plainQuestion reports whether the first name of a message that walk has found to be well formed is spelled out: there is
// nothing before it that a pointer could mean.
func plainQuestion(msg []byte) bool {
	for at := headerSize; at < len(msg); at += 1 + int(msg[at]) {
		if msg[at] == 0 {
			return true
		}
		if msg[at] > maxLabel {
			return false
		}
	}
	return false
}

// Sections of a message that hold records.
const (
	sectionAnswer = iota
	sectionAuthority
	sectionAdditional
)

// record is where a resource record lies.
type record struct {
	section int
	at, end int // of all of it
	ttlAt   int
	data    int // start of its data
	rrtype  uint16
	ttl     uint32
}

// records visits the records of a message that walk has found to be well formed.
func records(msg []byte, l layout, visit func(record)) {
	at := l.question
	for section := range 3 {
		for range binary.BigEndian.Uint16(msg[6+2*section:]) {
			r := record{section: section, at: at}
			at = skipName(msg, at)
			r.rrtype, r.ttlAt, r.data = binary.BigEndian.Uint16(msg[at:]), at+4, at+10
			r.ttl = binary.BigEndian.Uint32(msg[r.ttlAt:])
			if r.ttl >= 1<<31 {
				r.ttl = 0 // RFC 2181 section 8
			}
			at = r.data + int(binary.BigEndian.Uint16(msg[at+8:]))
			r.end = at
			visit(r)
		}
	}
}

// skipName returns the offset after the name at the given one, or 0.
func skipName(msg []byte, at int) int {
	for at < len(msg) {
		length := int(msg[at])
		switch {
		case length == 0:
			return at + 1
		case length >= 0xc0:
			// a pointer must go back, or names could have no end (RFC 1035 section 4.1.4)
			if at+2 > len(msg) || int(binary.BigEndian.Uint16(msg[at:])&0x3fff) >= at {
				return 0
			}
			return at + 2
		case length > maxLabel:
			return 0
		}
		at += 1 + length
	}
	return 0
}

// errorReply is a reply without records to a message that need not be well formed. It repeats the first question of a query
// if that much can be read.
func errorReply(msg []byte, rcode int) []byte {
	reply := make([]byte, headerSize)
	copy(reply, msg[:2])
	reply[2] = flagQR | msg[2]&(opcodeMask|flagRD)
	reply[3] = flagRA | msg[3]&flagCD | byte(rcode)&rcodeMask
	if msg[2]&opcodeMask != 0 || len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) == 0 || !plainQuestion(msg) {
		return reply
	}
	if end := skipName(msg, headerSize); end-headerSize <= maxName && end+4 <= len(msg) {
		reply[5] = 1
		reply = append(reply, msg[headerSize:end+4]...)
	}
	return reply
}

// unpackQuery reads a query for an answer of ours. Options are left out: none has a say in it, and what is malformed inside
// one that is not ours to know is to be ignored like the rest of it (RFC 6891 section 6.1.2).
func unpackQuery(msg []byte) (*dns.Msg, error) {
	q := new(query)
	if q.parse(msg) && q.opts {
		msg = slices.Clone(msg[:q.end+optSize])
		binary.BigEndian.PutUint16(msg[len(msg)-2:], 0)
	}
	req := new(dns.Msg)
	return req, req.Unpack(msg)
}

// newReply starts an answer of ours to req: RA set, RD and CD as asked (RFC 4035 section 3.1.6), an OPT if req has one
// (RFC 6891 section 6.1.1).
func newReply(req *dns.Msg, rcode int) *dns.Msg {
	reply := new(dns.Msg).SetRcode(req, rcode)
	reply.RecursionAvailable = true
	reply.CheckingDisabled = req.CheckingDisabled
	reply.AuthenticatedData = false
	if opt := req.IsEdns0(); opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
		if rcode > rcodeMask {
			reply.IsEdns0().SetExtendedRcode(uint16(rcode))
		}
	}
	return reply
}

// explainWhy adds an extended error (RFC 8914) if the reply has an OPT to carry it. The text is cut to what the smallest
// datagram holds beside the longest name.
func explainWhy(reply *dns.Msg, code uint16, text string) {
	const most = 200
	if len(text) > most {
		text = text[:most-len("…")] + "…"
	}
	if opt := reply.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: code, ExtraText: text})
	}
}

// withExtendedError adds an extended error to a packed reply, if it has an OPT at its end and room is left.
func withExtendedError(msg []byte, code uint16, limit int) []byte {
	const size = 6
	l, ok := walk(msg)
	if !ok || l.opt == 0 || l.optEnd != len(msg) || len(msg)+size > limit {
		return msg
	}
	msg = binary.BigEndian.AppendUint16(msg, dns.EDNS0EDE)
	msg = binary.BigEndian.AppendUint16(msg, 2)
	msg = binary.BigEndian.AppendUint16(msg, code)
	length := msg[l.opt+optSize-2:]
	binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+size)
	return msg
}

// pack is the wire form of a reply of ours within limit octets, truncated with TC if it must be.
func pack(reply *dns.Msg, limit int) []byte {
	reply.Truncate(limit)
	reply.Compress = true // Truncate leaves it out where all fits without
	msg, err := reply.Pack()
	if err != nil {
		// only records of others can be unpackable; none of ours are
		return errorReply([]byte{byte(reply.Id >> 8), byte(reply.Id), 0, 0}, dns.RcodeServerFailure)
	}
	return msg
}

// clientLimit is the largest reply that a client takes.
func clientLimit(req *dns.Msg, transport transport) int {
	if transport == overTCP {
		return maxTCP
	}
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), minUDP), maxUDP)
	}
	return minUDP
}
