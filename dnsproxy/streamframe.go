package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/miekg/dns"
)

// appendFrame appends a query in the form of streams (RFC 1035 section 4.2.2). With ask it asks how long the stream may be kept, if it has an OPT for
// the question (RFC 7828 section 3.2.1).
func appendFrame(out, query []byte, id uint16, ask bool) (_ []byte, asks bool) {
	const option = 4
	l, ok := walk(query)
	asks = ask && ok && l.opt != 0 && l.optEnd == len(query) && l.opt == l.question && len(query)+option <= maxTCP
	at := len(out)
	out = append(binary.BigEndian.AppendUint16(out, uint16(len(query))), query...)
	if asks {
		out = binary.BigEndian.AppendUint16(append(out, 0, dns.EDNS0TCPKEEPALIVE), 0)
		binary.BigEndian.PutUint16(out[at:], uint16(len(query)+option))
		length := out[at+2+l.opt+optSize-2:]
		binary.BigEndian.PutUint16(length, binary.BigEndian.Uint16(length)+option)
	}
	binary.BigEndian.PutUint16(out[at+2:], id)
	return out, asks
}

// keepAlive is how long the server keeps an idle stream, as it says in an answer (RFC 7828 section 3.1).
func keepAlive(msg []byte) (keep time.Duration, ok bool) {
	l, whole := walk(msg)
	if !whole || l.opt == 0 {
		return 0, false
	}
	for options := msg[l.opt+optSize : l.optEnd]; len(options) >= 4; {
		length := 4 + int(binary.BigEndian.Uint16(options[2:]))
		if length > len(options) {
			break
		}
		if binary.BigEndian.Uint16(options) == dns.EDNS0TCPKEEPALIVE && length == 6 {
			return time.Duration(binary.BigEndian.Uint16(options[4:])) * 100 * time.Millisecond, true
		}
		options = options[length:]
	}
	return 0, false
}

// answers reports whether msg is a well-formed response to query, sent with the given id: same opcode, same question in any
// letter case (RFC 5452 section 9.1). Errors may come without the question (RFC 8906 section 3.1).
func answers(msg, query []byte, id uint16) bool {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg) != id || msg[2]&flagQR == 0 || (msg[2]^query[2])&opcodeMask != 0 {
		return false
	}
	if _, ok := walk(msg); !ok {
		return false
	}
	if binary.BigEndian.Uint16(msg[4:]) == 0 {
		rcode := msg[3] & rcodeMask
		return rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError
	}
	end := skipName(query, headerSize)
	if end == 0 || end+4 > len(query) || end+4 > len(msg) || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	return bytes.Equal(msg[end:end+4], query[end:end+4]) && bytes.Equal(lowered(msg[headerSize:end]), lowered(query[headerSize:end]))
}
