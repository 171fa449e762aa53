package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

const (
	headerSize = 12 // RFC 1035 section 4.1.1
	optSize    = 11 // an OPT record without options (RFC 6891 section 6.1.2)
	aSize      = 16 // an A record whose owner is a pointer
	aaaaSize   = 28

	minUDP = 512  // what a client takes that says nothing (RFC 1035 section 4.2.1)
	maxUDP = 1232 // the largest answer over UDP: never fragmented (DNS flag day 2020)
	maxTCP = 65535
)

// Header bits of the third and fourth octet.
const (
	flagQR = 0x80
	flagAA = 0x04
	flagTC = 0x02
	flagRD = 0x01

	flagRA = 0x80
	flagAD = 0x20
	flagCD = 0x10

	opcodeMask = 0x78
	rcodeMask  = 0x0f
)

// toQuestion is a compression pointer to the question's name, right after the header.
var toQuestion = [2]byte{0xc0, headerSize}

// negativeSOA is the record that makes an empty answer cacheable (RFC 2308 section 3). Each name of the mesh is a zone of
// its own, as the empty zones of RFC 6303 section 3 are, so the owner points to the question and no other zone is spoken for.
var negativeSOA = func() []byte {
	rr := append([]byte(nil), toQuestion[:]...)
	rr = binary.BigEndian.AppendUint16(rr, dns.TypeSOA)
	rr = binary.BigEndian.AppendUint16(rr, dns.ClassINET)
	rr = binary.BigEndian.AppendUint32(rr, tableTTL)
	rr = binary.BigEndian.AppendUint16(rr, uint16(len(toQuestion)+len(soaMailbox)+20))
	rr = append(rr, toQuestion[:]...) // MNAME
	rr = append(rr, soaMailbox...)
	for _, v := range soaTimers {
		rr = binary.BigEndian.AppendUint32(rr, v)
	}
	return rr
}()

// soaMailbox is "nobody.invalid.".
const soaMailbox = "\x06nobody\x07invalid\x00"

// soaTimers are serial, refresh, retry, expire and, the one that counts, minimum.
var soaTimers = [5]uint32{1, 3600, 1200, 604800, tableTTL}

// addressRecords prepares A and AAAA records in wire form, in the order of addrs.
func addressRecords(addrs []netip.Addr) (a, aaaa []byte) {
	for _, addr := range addrs {
		if addr.Is4() {
			a = appendAddress(a, dns.TypeA, addr)
		} else {
			aaaa = appendAddress(aaaa, dns.TypeAAAA, addr)
		}
	}
	return a, aaaa
}

func appendAddress(rrs []byte, rrtype uint16, addr netip.Addr) []byte {
	data := addr.AsSlice()
	rrs = append(rrs, toQuestion[:]...)
	rrs = binary.BigEndian.AppendUint16(rrs, rrtype)
	rrs = binary.BigEndian.AppendUint16(rrs, dns.ClassINET)
	rrs = binary.BigEndian.AppendUint32(rrs, tableTTL)
	rrs = binary.BigEndian.AppendUint16(rrs, uint16(len(data)))
	return append(rrs, data...)
}

// query is a DNS query of the plain kind, taken apart where it lies: opcode QUERY, one question, no other records but one
// OPT of version 0 at the end. parse leaves anything else to miekg/dns.
type query struct {
	key    [2 * maxName]byte // the name's key; what lies beyond n is scratch
	n      int
	end    int // offset where the question ends
	qtype  uint16
	qclass uint16
	size   int  // largest answer the client takes over UDP, within minUDP and maxUDP
	edns   bool // has an OPT
	do     bool
	opts   bool // its OPT carries options
	// private: among them are some that an answer may depend on
	private bool
}

// parse reads msg and reports whether it is of the plain kind. It never allocates and q may be used again and again.
func (q *query) parse(msg []byte) bool {
	if len(msg) < headerSize+5 || msg[2]&(flagQR|opcodeMask|flagTC) != 0 {
		return false
	}
	counts := binary.BigEndian.Uint64(msg[4:])
	if counts != 1<<48 && counts != 1<<48|1 {
		return false
	}
	at := headerSize
	for {
		length := int(msg[at])
		if length == 0 {
			break
		}
		// the rest of the question, a root octet, type and class, must follow
		if length > maxLabel || at+1+length+5 > len(msg) || at+1+length-headerSize >= maxName {
			return false
		}
		at += 1 + length
	}
	q.n = at - headerSize
	for i, c := range msg[headerSize:at] {
		q.key[i] = lower(c)
	}
	q.qtype = binary.BigEndian.Uint16(msg[at+1:])
	q.qclass = binary.BigEndian.Uint16(msg[at+3:])
	q.end = at + 5
	q.size, q.edns, q.do, q.opts, q.private = minUDP, false, false, false, false
	if counts == 1<<48 {
		return len(msg) == q.end
	}
	return q.parseOPT(msg[q.end:])
}

// parseOPT reads the record after the question, which must be the message's last.
func (q *query) parseOPT(rr []byte) bool {
	if len(rr) < optSize || rr[0] != 0 || binary.BigEndian.Uint16(rr[1:]) != dns.TypeOPT || rr[6] != 0 {
		return false
	}
	options := rr[optSize:]
	if int(binary.BigEndian.Uint16(rr[9:])) != len(options) {
		return false
	}
	q.opts = len(options) > 0
	for len(options) > 0 {
		if len(options) < 4 {
			return false
		}
		length := 4 + int(binary.BigEndian.Uint16(options[2:]))
		if length > len(options) {
			return false
		}
		if code := binary.BigEndian.Uint16(options); code != dns.EDNS0COOKIE && code != dns.EDNS0TCPKEEPALIVE {
			q.private = true // not one of hopOptions
		}
		options = options[length:]
	}
	q.edns = true
	q.size = min(max(int(binary.BigEndian.Uint16(rr[3:])), minUDP), maxUDP)
	q.do = rr[7]&0x80 != 0
	return true
}

// answerable reports whether fast knows what to say to this type and class; the few others need thought.
func (q *query) answerable() bool {
	return q.qclass == dns.ClassINET && q.qtype != dns.TypeNone && q.qtype != dns.TypeOPT && (q.qtype < dns.TypeTKEY || q.qtype >= dns.TypeANY)
}

// fast answers a question that t owns, by rewriting the query in buf into its answer, and returns the answer's length: 0
// if t does not own the name. buf holds the query parsed into q and has room for limit octets. rotate, any number, chooses
// the address to begin with. Never allocates.
func (t *Table) fast(buf []byte, q *query, limit int, rotate uint32) int {
	s, _ := t.match(&q.key, q.n)
	if s == nil {
		return 0
	}
	return t.write(buf, q, s, limit, rotate)
}

// room is enough for the answer to q that s has.
func (s *service) room(q *query) int {
	return q.end + max(len(s.a), len(s.aaaa), len(negativeSOA)) + optSize
}

// write is the second half of fast. It must give the answer that answerMesh gives; the two are fuzzed against each other.
func (t *Table) write(buf []byte, q *query, s *service, limit int, rotate uint32) int {
	var rrs []byte
	size := aSize
	switch q.qtype {
	case dns.TypeA:
		rrs = s.a
	case dns.TypeAAAA:
		if size = aaaaSize; !t.cfg.NoIPv6 {
			rrs = s.aaaa
		}
	case dns.TypeANY: // one of the sets there are (RFC 8482 section 4.1)
		if rrs = s.a; len(rrs) == 0 && !t.cfg.NoIPv6 {
			rrs, size = s.aaaa, aaaaSize
		}
	case dns.TypeSOA:
		rrs, size = negativeSOA, len(negativeSOA)
	}
	room := limit - q.end
	if q.edns {
		room -= optSize
	}
	buf[2] = flagQR | flagAA | buf[2]&flagRD
	buf[3] = flagRA | buf[3]&flagCD
	buf[6], buf[7], buf[8], buf[9], buf[10], buf[11] = 0, 0, 0, 0, 0, 0
	at := q.end
	if len(rrs) == 0 {
		at += copy(buf[at:], negativeSOA)
		buf[9] = 1
	} else {
		count := len(rrs) / size
		first := int(rotate % uint32(count))
		if fits := room / size; count > fits {
			count = fits
			buf[2] |= flagTC
		}
		tail := rrs[first*size:]
		tail = tail[:min(len(tail), count*size)]
		at += copy(buf[at:], tail)
		at += copy(buf[at:], rrs[:count*size-len(tail)])
		binary.BigEndian.PutUint16(buf[6:], uint16(count))
	}
	if q.edns {
		at += putOPT(buf[at:], q.do)
		buf[11] = 1
	}
	return at
}

// putOPT writes an OPT of ours: the size we take, version 0, the DO bit as asked (RFC 3225 section 3), no options.
func putOPT(buf []byte, do bool) int {
	opt := [optSize]byte{2: byte(dns.TypeOPT), 3: maxUDP >> 8, 4: maxUDP & 0xff}
	if do {
		opt[7] = 0x80
	}
	return copy(buf, opt[:])
}

// The domains of addresses' names.
const (
	reverseV4 = "\x07in-addr\x04arpa"
	reverseV6 = "\x03ip6\x04arpa"
)

// reversePrefix holds the addresses whose names are below key, a name under in-addr.arpa or ip6.arpa, or one of these, that is no address's itself.
func reversePrefix(key []byte) (netip.Prefix, bool) {
	domain, whole, bits := reverseV4, 4, 8
	if isBelow(key, reverseV6) {
		domain, whole, bits = reverseV6, 32, 4
	} else if !isBelow(key, reverseV4) {
		return netip.Prefix{}, false
	}
	labels := 0
	for rest := key; len(rest) > len(domain); rest = parent(rest) {
		labels++
	}
	if labels >= whole {
		return netip.Prefix{}, false
	}
	addr, ok := reverseAddr(append(bytes.Repeat([]byte("\x010"), whole-labels), key...))
	return netip.PrefixFrom(addr, labels*bits), ok
}

// reverseAddr is the address whose name under in-addr.arpa or ip6.arpa key is (RFC 1035 section 3.5, RFC 3596 section 2.5).
func reverseAddr(key []byte) (netip.Addr, bool) {
	const v4, v6 = reverseV4, reverseV6
	switch {
	case len(key) > len(v4) && string(key[len(key)-len(v4):]) == v4:
		var octets [4]byte
		rest := key[:len(key)-len(v4)]
		for i := 3; i >= 0; i-- {
			if len(rest) == 0 || int(rest[0]) >= len(rest) || rest[0] == 0 || rest[0] > 3 {
				return netip.Addr{}, false
			}
			value := 0
			digits := rest[1 : 1+int(rest[0])]
			for _, c := range digits {
				if c < '0' || c > '9' {
					return netip.Addr{}, false
				}
				value = value*10 + int(c-'0')
			}
			if value > 255 || digits[0] == '0' && len(digits) > 1 {
				return netip.Addr{}, false
			}
			octets[i] = byte(value)
			rest = rest[1+len(digits):]
		}
		return netip.AddrFrom4(octets), len(rest) == 0
	case len(key) == 64+len(v6) && string(key[64:]) == v6:
		var octets [16]byte
		for i := range 32 {
			length, digit := key[2*i], key[2*i+1]
			value := uint8(0)
			switch {
			case length != 1:
				return netip.Addr{}, false
			case '0' <= digit && digit <= '9':
				value = digit - '0'
			case 'a' <= digit && digit <= 'f':
				value = digit - 'a' + 10
			default:
				return netip.Addr{}, false
			}
			octets[15-i/2] |= value << (4 * (i % 2))
		}
		return netip.AddrFrom16(octets), true
	}
	return netip.Addr{}, false
}
