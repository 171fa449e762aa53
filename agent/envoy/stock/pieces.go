package stock

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Rewrite rewrites a DeltaDiscoveryResponse (delta) or DiscoveryResponse of the given type, in the pieces that it came in from the network.
//
// Resources without a hit keep their bytes, and so does every field that is not concerned, fields that this package has never heard of
// included; their order never changes. frame is given up: its pieces are freed as they are read, so that a push of megabytes is never there
// twice, and out is frame itself when nothing had to change, else made of new ones. frame is never written to.
//
// An error says that something was malformed. out is good for sending all the same: the resource that could not be read is in it as it
// was, for Envoy to refuse, or everything from the place on where the response itself is not one.
func (r *Rewriter) Rewrite(typeURL string, delta bool, frame mem.BufferSlice) (out mem.BufferSlice, report Report, err error) {
	if !r.ext.Needed() || !Wants(typeURL) {
		return frame, Report{}, nil
	}
	if own := typeName(typeURL); byAny[own] && !r.concerns(frame, own) {
		return frame, Report{}, nil
	}
	r.report = Report{}
	in := reader{pieces: frame, left: frame.Len()}
	var w *writer // nil as long as nothing has changed
	for in.left > 0 {
		whole, f, wire := in.field()
		if wire != nil {
			err = wire
			break
		}
		r.patches, r.depth = r.patches[:0], 0
		if f.num == 2 && f.bytes() { // resources, in both kinds of response
			r.in = whole
			if wire := r.resource(&f, delta); wire != nil {
				r.patches = r.patches[:0]
				if err == nil {
					err = fmt.Errorf("resource %d of a response of %s: %w", r.report.Resources, typeName(typeURL), wire)
				}
			}
			r.in = nil
		}
		if len(r.patches) > 0 {
			r.report.Changed++
			if w == nil {
				w = &writer{pool: mem.DefaultBufferPool()}
				in.copyRead(w, len(whole))
			}
		}
		if w != nil {
			w.patched(whole, r.patches)
			in.release()
		}
	}
	r.patches = r.patches[:0]
	slices.Sort(r.report.Left)
	if w == nil {
		return frame, r.report, err
	}
	in.copyRest(w)
	return w.done(), r.report, err
}

// reader reads a response's fields. Before release is called for the first time, the pieces that were read are still there.
type reader struct {
	pieces mem.BufferSlice // those not released
	cur    int             // the current one of them
	at     int             // position in it
	left   int             // bytes from there to the end
	joined []byte          // a field that is in several pieces
}

// maxKept bounds the scratch memory for a field that is in several pieces; a large one, a route configuration say, is not kept.
const maxKept = 64 << 10

// field reads the next field. whole is valid until the next call or release, and f tells positions in it.
func (r *reader) field() (whole []byte, f field, err error) {
	var room [2 * binaryMax]byte
	head := r.peek(room[:])
	num, typ, n := protowire.ConsumeTag(head)
	if n < 0 {
		return nil, f, fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
	}
	f = field{num: num, typ: typ, head: n, body: n}
	if typ == protowire.BytesType {
		size, m := protowire.ConsumeVarint(head[n:])
		if m < 0 || size > uint64(r.left-n-m) {
			return nil, f, fmt.Errorf("%w: a field of %d bytes where %d are left", errWire, size, r.left-n)
		}
		f.body = n + m
		f.end = f.body + int(size)
	} else {
		m := protowire.ConsumeFieldValue(num, typ, head[n:])
		if m < 0 {
			return nil, f, fmt.Errorf("%w: %w", errWire, protowire.ParseError(m))
		}
		f.end = n + m
	}
	return r.take(f.end), f, nil
}

// binaryMax is how many bytes a number has at most.
const binaryMax = 10

// peek returns what comes next, as much as fits into room or is left, without passing over it.
func (r *reader) peek(room []byte) []byte {
	if data := r.data(); len(data) >= len(room) {
		return data[:len(room)]
	}
	n := 0
	for i, at := r.cur, r.at; i < len(r.pieces) && n < len(room); i, at = i+1, 0 {
		n += copy(room[n:], r.pieces[i].ReadOnlyData()[at:])
	}
	return room[:n]
}

// data is what is left of the current piece; there is something as long as anything is left.
func (r *reader) data() []byte {
	for r.cur < len(r.pieces) && r.at == r.pieces[r.cur].Len() {
		r.cur, r.at = r.cur+1, 0
	}
	if r.cur == len(r.pieces) {
		return nil
	}
	return r.pieces[r.cur].ReadOnlyData()[r.at:]
}

// take passes over n bytes, of which there must be as many, and returns them in one piece.
func (r *reader) take(n int) []byte {
	r.left -= n
	if data := r.data(); len(data) >= n {
		r.at += n
		return data[:n]
	}
	if cap(r.joined) < n || cap(r.joined) > maxKept {
		r.joined = make([]byte, 0, n)
	}
	r.joined = r.joined[:0]
	for len(r.joined) < n {
		data := r.data()
		data = data[:min(len(data), n-len(r.joined))]
		r.joined = append(r.joined, data...)
		r.at += len(data)
	}
	return r.joined
}

// release frees the pieces that were read to their end. What field returned is no longer valid.
func (r *reader) release() {
	r.data() // which steps over the end of a piece
	for _, b := range r.pieces[:r.cur] {
		b.Free()
	}
	clear(r.pieces[:r.cur])
	r.pieces, r.cur = r.pieces[r.cur:], 0
}

// copyRead writes everything that was read but for its last bytes.
func (r *reader) copyRead(w *writer, but int) {
	n := -but
	for _, b := range r.pieces[:min(r.cur, len(r.pieces))] {
		n += b.Len()
	}
	n += r.at
	for _, b := range r.pieces {
		if n <= 0 {
			return
		}
		data := b.ReadOnlyData()
		data = data[:min(n, len(data))]
		w.write(data)
		n -= len(data)
	}
}

// copyRest writes what was not read, and releases everything.
func (r *reader) copyRest(w *writer) {
	for data := r.data(); len(data) > 0; data = r.data() {
		w.write(data)
		r.at += len(data)
		r.left -= len(data)
	}
	r.release()
}

// writer collects a response in pieces of the size that gRPC sends.
type writer struct {
	pool mem.BufferPool
	out  mem.BufferSlice
	last *[]byte // the piece that is being filled; nil: none
	n    int     // how far
}

const pieceSize = 16 << 10

func (w *writer) write(b []byte) {
	for len(b) > 0 {
		if w.last == nil {
			w.last, w.n = w.pool.Get(pieceSize), 0
		}
		n := copy((*w.last)[w.n:], b)
		b = b[n:]
		if w.n += n; w.n == pieceSize {
			w.flush()
		}
	}
}

func (w *writer) flush() {
	*w.last = (*w.last)[:w.n]
	w.out = append(w.out, mem.NewBuffer(w.last, w.pool))
	w.last = nil
}

// patched writes whole with its patches.
func (w *writer) patched(whole []byte, patches []patch) {
	var room [binaryMax]byte
	done := 0
	for _, p := range patches {
		w.write(whole[done:p.at])
		if p.hasLength {
			w.write(protowire.AppendVarint(room[:0], p.length))
		} else {
			w.write(p.text)
		}
		done = p.end
	}
	w.write(whole[done:])
}

// done returns all that was written.
func (w *writer) done() mem.BufferSlice {
	if w.last != nil {
		w.flush()
	}
	return w.out
}
