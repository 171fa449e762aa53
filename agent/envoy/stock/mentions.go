package stock

import (
	"bytes"

	"google.golang.org/grpc/mem"
)

// Every Any that istiod writes names its type like this.
const typePrefix = "type.googleapis.com/"

// byAny are the resources in which nothing is of interest that is not in an Any of its own. Ten thousand services make one of them of 4 MB,
// sent anew with every change of one, and all it holds in most meshes is how retries choose another host.
var byAny = map[string]bool{typeRoutes: true, typeVirtualHost: true, typeScopedRoutes: true}

// concerns reports whether a type that is named anywhere in a response, other than own, may call for rewriting or for a word about it. It
// looks at what stands around each slash, which is several times faster than reading messages.
func (r *Rewriter) concerns(pieces mem.BufferSlice, own string) bool {
	var room [1 + len(typePrefix) + maxShortName]byte
	for i := range pieces {
		data := pieces[i].ReadOnlyData()
		for at := 0; ; at++ {
			n := bytes.IndexByte(data[at:], '/')
			if n < 0 {
				break
			}
			at += n
			before, after := data[:at+1], data[at+1:]
			if len(before) <= len(typePrefix) || len(after) < maxShortName { // at the edge of a piece
				before, after = neighbours(pieces, i, at, room[:])
			}
			if !bytes.HasSuffix(before, []byte(typePrefix)) {
				continue
			}
			// The length of the whole stands before it, in one byte as long as it is short.
			before = before[:len(before)-len(typePrefix)]
			if len(before) == 0 {
				return true
			}
			size := int(before[len(before)-1]) - len(typePrefix)
			if size < 0 || size > min(maxShortName, len(after)) {
				return true
			}
			name := after[:size]
			if _, lacks := r.ext.lacks(name); string(name) != own && (lacks || types[string(name)] != nil || r.ext.unknown(name)) {
				return true
			}
		}
	}
	return false
}

// maxShortName is how long a type's name may be for its length to fit into one byte with the prefix.
const maxShortName = 0x7f - len(typePrefix)

// neighbours are the bytes up to position at of piece i, as many as typePrefix and a length have, and the maxShortName bytes after it, as far
// as there are any; room holds them.
func neighbours(pieces mem.BufferSlice, i, at int, room []byte) (before, after []byte) {
	end := len(room) - maxShortName
	begin := end
	for j, upTo := i, at+1; j >= 0 && begin > 0; {
		part := pieces[j].ReadOnlyData()[:upTo]
		part = part[max(0, len(part)-begin):]
		begin -= copy(room[begin-len(part):], part)
		if j--; j >= 0 {
			upTo = pieces[j].Len()
		}
	}
	n := end
	for j, from := i, at+1; j < len(pieces) && n < len(room); j, from = j+1, 0 {
		n += copy(room[n:], pieces[j].ReadOnlyData()[from:])
	}
	return room[begin:end], room[end:n]
}
