package agent

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"wingman/dnsproxy"
)

// Fields of nds.proto: those of a NameInfo.
const (
	fieldIPs       protowire.Number = 1
	fieldRegistry  protowire.Number = 2
	fieldShortname protowire.Number = 3
	fieldNamespace protowire.Number = 4
	fieldAltHosts  protowire.Number = 5
)

// readNames reads a NameTable off its bytes where it is written as istiod writes it, see diffTables: at a start, half of the time until the first answer
// from a table of ten thousand names was the making and sorting of a map of messages that nobody needs. Of anything else ok is false.
func readNames(raw []byte) (names []dnsproxy.Name, ok bool) {
	r := nameReader{known: map[string]string{}}
	e := entries{rest: raw}
	for {
		if err := e.advance(); err != nil {
			return nil, false
		}
		if e.whole == nil {
			return names, true
		}
		entry, _ := bytesField(e.whole, fieldTable)
		_, k := bytesField(entry, fieldKey)
		info, _ := bytesField(entry[k:], fieldValue)
		n, ok := r.name(e.host, info)
		if !ok {
			return nil, false
		}
		names = append(names, n)
	}
}

// nameReader makes names. Texts that many of them have are kept once.
type nameReader struct {
	known map[string]string
}

func (r *nameReader) name(host, info []byte) (n dnsproxy.Name, ok bool) {
	if !utf8.Valid(host) {
		return n, false
	}
	n.Host = string(host)
	for len(info) > 0 {
		num, typ, tag := protowire.ConsumeTag(info)
		if tag < 0 || typ != protowire.BytesType {
			return n, false
		}
		text, length := protowire.ConsumeBytes(info[tag:])
		if length < 0 || !utf8.Valid(text) {
			return n, false
		}
		info = info[tag+length:]
		switch num {
		case fieldIPs:
			addAddress(&n, string(text))
		case fieldRegistry:
			n.Registry = r.once(text)
		case fieldShortname:
			if len(text) <= len(n.Host) && n.Host[:len(text)] == string(text) {
				n.ShortName = n.Host[:len(text)]
			} else {
				n.ShortName = string(text)
			}
		case fieldNamespace:
			n.Namespace = r.once(text)
		case fieldAltHosts:
			n.AltHosts = append(n.AltHosts, string(text))
		default:
			return n, false
		}
	}
	return n, true
}

func (r *nameReader) once(text []byte) string {
	s, ok := r.known[string(text)]
	if !ok {
		s = string(text)
		r.known[s] = s
	}
	return s
}
