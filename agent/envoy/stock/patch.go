package stock

import "google.golang.org/protobuf/encoding/protowire"

// A patch puts something in the place of the bytes from at to end: text, or the varint length when hasLength is set.
type patch struct {
	at, end   int
	text      []byte
	length    uint64
	hasLength bool
}

// open begins to look into the message in f: patches made until close belong to it.
func (r *Rewriter) open(f *field) (mark int) {
	r.patches = append(r.patches, patch{at: f.head, end: f.body, hasLength: true})
	return len(r.patches) - 1
}

// close ends what open began, after the message's content grew by grown bytes. It returns by how much the field f grows, its length
// included. A message that nothing was done to leaves no patch.
func (r *Rewriter) close(mark int, f *field, grown int) int {
	if len(r.patches) == mark+1 {
		r.patches = r.patches[:mark]
		return 0
	}
	size := uint64(f.end - f.body + grown)
	r.patches[mark].length = size
	return grown + protowire.SizeVarint(size) - (f.body - f.head)
}
