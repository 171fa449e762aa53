package stock

import (
	"bytes"

	"google.golang.org/grpc/mem"
)

// Every Any that istiod writes names its type like this.
const typePrefix = "type.googleapis.com"

// byAny are the resources in which nothing is of interest that is not in an Any of its own. Ten thousand services make one of them of 4 MB,
// sent anew with every change of one; in most meshes it holds no Any at all.
var byAny = map[string]bool{typeRoutes: true, typeVirtualHost: true, typeScopedRoutes: true}

// mentions reports whether a type other than own is named anywhere in a response. It looks at what stands around each slash, which is
// several times faster than reading messages.
func mentions(pieces mem.BufferSlice, own string) bool {
	var around [len(typePrefix) + 64]byte
	for i := range pieces {
		data := pieces[i].ReadOnlyData()
		for at := 0; ; at++ {
			n := bytes.IndexByte(data[at:], '/')
			if n < 0 {
				break
			}
			at += n
			before, after := data[:at], data[at+1:]
			if len(before) < len(typePrefix) || len(after) < len(own) { // at the edge of a piece
				before, after = neighbours(pieces, i, at, around[:], len(own))
			}
			if bytes.HasSuffix(before, []byte(typePrefix)) && !bytes.HasPrefix(after, []byte(own)) {
				return true
			}
		}
	}
	return false
}

// neighbours are the bytes before the one at position at of piece i, as many as typePrefix has, and the most bytes after it, as far as there
// are any; room holds them.
func neighbours(pieces mem.BufferSlice, i, at int, room []byte, most int) (before, after []byte) {
	end := len(typePrefix)
	begin := end
	for j, upTo := i, at; j >= 0 && begin > 0; {
		part := pieces[j].ReadOnlyData()[:upTo]
		part = part[max(0, len(part)-begin):]
		begin -= copy(room[begin-len(part):], part)
		if j--; j >= 0 {
			upTo = pieces[j].Len()
		}
	}
	rest := room[end:]
	rest = rest[:min(most, len(rest))]
	n := 0
	for j, from := i, at+1; j < len(pieces) && n < len(rest); j, from = j+1, 0 {
		n += copy(rest[n:], pieces[j].ReadOnlyData()[from:])
	}
	return room[begin:end], rest[:n]
}
