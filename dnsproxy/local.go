package dnsproxy

import (
	"net"

	"github.com/miekg/dns"
)

// verdict is what becomes of a message that the hot path left.
type verdict int

const (
	verdictDrop    verdict = iota // no answer: it is none of ours, or no query at all
	verdictReply                  // answered here
	verdictForward                // for upstream
)

// answerLocally decides about a message that fast did not answer: everything odd (RFC 8906), EDNS errors (RFC 6891), the
// mesh's names in other shapes, reverse names, localhost. req is nil unless the message is a well-formed query. It is the
// cold path: miekg/dns does the work.
func (t *Table) answerLocally(msg []byte, via transport) (reply []byte, req *dns.Msg, from source, v verdict) {
	if len(msg) < headerSize || msg[2]&flagQR != 0 {
		return nil, nil, fromRefused, verdictDrop // never answer an answer, nor what has no header
	}
	if msg[2]&opcodeMask != dns.OpcodeQuery<<3 {
		return notImplemented(msg), nil, fromRefused, verdictReply
	}
	l, ok := walk(msg)
	req, err := unpackQuery(msg)
	if !ok || l.end != len(msg) || l.question > headerSize && !plainQuestion(msg) || err != nil {
		return errorReply(msg, dns.RcodeFormatError), nil, fromRefused, verdictReply
	}
	limit := clientLimit(req, via)
	if opt := req.IsEdns0(); opt != nil && opt.Version() != 0 {
		return pack(newReply(req, dns.RcodeBadVers), limit), nil, fromRefused, verdictReply // RFC 6891 section 6.1.3
	}
	if len(req.Question) != 1 || len(req.Answer) > 0 || req.Question[0].Qtype == dns.TypeOPT {
		return pack(newReply(req, dns.RcodeFormatError), limit), nil, fromRefused, verdictReply // RFC 9619
	}
	question := &req.Question[0]
	key, err := keyOf(question.Name)
	if err != nil {
		return pack(newReply(req, dns.RcodeFormatError), limit), nil, fromRefused, verdictReply
	}
	if s, by := t.resolve(key); s != nil {
		return pack(t.answerMesh(req, s, by), limit), req, fromMesh, verdictReply
	}
	if isLocalhost(key) && question.Qclass == dns.ClassINET {
		return pack(answerLocalhost(req), limit), req, fromLocal, verdictReply
	}
	return nil, req, fromUpstream, verdictForward
}

// notImplemented answers an opcode that we do not know (RFC 8906 section 3.1.4), with an OPT if there is one to be seen (RFC 6891
// section 6.1.1).
func notImplemented(msg []byte) []byte {
	reply := errorReply(msg, dns.RcodeNotImplemented)
	if l, ok := walk(msg); ok && l.opt != 0 {
		reply = append(reply, make([]byte, optSize)...)
		putOPT(reply[len(reply)-optSize:], msg[l.opt+7]&0x80 != 0)
		reply[11] = 1
	}
	return reply
}

// answerMesh answers a question about a name that s owns. It must give what fast gives where fast answers.
func (t *Table) answerMesh(req *dns.Msg, s *service, by rule) *dns.Msg {
	question := &req.Question[0]
	switch {
	case question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY,
		question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		reply := newReply(req, dns.RcodeRefused)
		explainWhy(reply, dns.ExtendedErrorCodeNotSupported, "")
		return reply
	}
	reply := newReply(req, dns.RcodeSuccess)
	reply.Authoritative = true
	if question.Qtype == dns.TypeSOA {
		reply.Answer = []dns.RR{soaOf(question.Name)}
		return reply
	}
	if reply.Answer = t.records(s, by, question.Name, question.Qtype); len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{soaOf(question.Name)}
	}
	return reply
}

// soaOf is negativeSOA for a name.
func soaOf(name string) *dns.SOA {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: tableTTL},
		Ns:  name, Mbox: "nobody.invalid.",
		Serial: soaTimers[0], Refresh: soaTimers[1], Retry: soaTimers[2], Expire: soaTimers[3], Minttl: soaTimers[4],
	}
}

// isLocalhost reports whether key is localhost or below it, which no resolver should ask others about (RFC 6761 section 6.3).
func isLocalhost(key []byte) bool { return isBelow(key, []byte("\x09localhost")) }

func answerLocalhost(req *dns.Msg) *dns.Msg {
	question := &req.Question[0]
	qtype := question.Qtype
	if qtype == dns.TypeANY {
		qtype = dns.TypeA // one of the sets there are (RFC 8482 section 4.1)
	}
	header := dns.RR_Header{Name: question.Name, Rrtype: qtype, Class: dns.ClassINET, Ttl: tableTTL}
	reply := newReply(req, dns.RcodeSuccess)
	switch qtype {
	case dns.TypeA:
		reply.Answer = []dns.RR{&dns.A{Hdr: header, A: net.IPv4(127, 0, 0, 1)}}
	case dns.TypeAAAA:
		reply.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: net.IPv6loopback}}
	case dns.TypeSOA: // what empty answers have must be there
		reply.Answer = []dns.RR{soaOf(question.Name)}
	default:
		reply.Ns = []dns.RR{soaOf(question.Name)}
	}
	return reply
}
