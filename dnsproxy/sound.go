package dnsproxy

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// namesIn tells where the data of a record type has names: how many octets come before the first, and how many names
// follow one another. Types that are not listed are not kept in the cache.
var namesIn = map[uint16]struct{ offset, count int }{
	dns.TypeA: {}, dns.TypeAAAA: {}, dns.TypeTXT: {}, dns.TypeSPF: {}, dns.TypeCAA: {}, dns.TypeHINFO: {}, dns.TypeDS: {},
	dns.TypeDNSKEY: {}, dns.TypeNSEC3: {}, dns.TypeNSEC3PARAM: {}, dns.TypeTLSA: {}, dns.TypeSSHFP: {}, dns.TypeLOC: {}, dns.TypeURI: {},
	dns.TypeNS: {0, 1}, dns.TypeCNAME: {0, 1}, dns.TypePTR: {0, 1}, dns.TypeDNAME: {0, 1}, dns.TypeNSEC: {0, 1},
	dns.TypeMX: {2, 1}, dns.TypeSVCB: {2, 1}, dns.TypeHTTPS: {2, 1}, dns.TypeSRV: {6, 1}, dns.TypeRRSIG: {18, 1}, dns.TypeSOA: {0, 2},
}

// sound reports whether the names in msg lead only through names. A compression pointer into a TTL would make another name
// of it with every second; no honest server sends one, but what is kept must not depend on honesty.
func sound(msg []byte, l layout) bool {
	// headers are the type, class, TTL and length fields, in the order they lie
	var room [64]span
	headers := room[:0]
	ok := true
	records(msg, l, func(r record) {
		if r.rrtype == dns.TypeOPT {
			return
		}
		names, known := namesIn[r.rrtype]
		headers = append(headers, span{r.data - 10, r.data})
		if ok = ok && known; !ok {
			return
		}
		_, ok = leads(msg, headers, r.at)
		for at, left := r.data+names.offset, names.count; ok && left > 0; left-- {
			at, ok = leads(msg, headers, at)
			ok = ok && at <= r.end
		}
	})
	return ok
}

// span is a range of octets, its end not included.
type span struct{ start, end int }

// leads follows the name at an offset to its end. It returns the offset after the name's own octets; ok is false if the
// name runs out of the message or through one of the headers, which are all that lie before it.
func leads(msg []byte, headers []span, at int) (after int, ok bool) {
	const maxPointers = 32
	for pointers := 0; at < len(msg) && pointers < maxPointers; {
		length := int(msg[at])
		switch {
		case touches(headers, span{at, at + 1}):
			return 0, false
		case length == 0:
			if after == 0 {
				after = at + 1
			}
			return after, true
		case length >= 0xc0:
			if at+2 > len(msg) {
				return 0, false
			}
			if after == 0 {
				after = at + 2
			}
			target := int(binary.BigEndian.Uint16(msg[at:]) & 0x3fff)
			if target < headerSize || target >= at {
				return 0, false
			}
			at = target
			pointers++
		case length > maxLabel || touches(headers, span{at, at + 1 + length}):
			return 0, false
		default:
			at += 1 + length
		}
	}
	return 0, false
}

// touches reports whether a span has an octet in common with one of the others.
func touches(spans []span, s span) bool {
	for _, o := range spans {
		if s.start < o.end && o.start < s.end {
			return true
		}
	}
	return false
}
