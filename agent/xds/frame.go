package xds

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"wingman/agent/xds/discovery"
)

// A frame is one xDS message as it is on the wire. Envoy's go through the agent like this: a push of many megabytes is never decoded,
// and never copied into one piece.
type frame struct{ data mem.BufferSlice }

// codec hands frames through gRPC untouched. It must be forced on calls and servers (ForceCodecV2).
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Name is part of the content type; the peer must believe what it has always believed.
func (codec) Name() string { return "proto" }

// Marshal gives gRPC a reference; the frame keeps its own.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("xds codec: cannot send a %T", v)
	}
	f.data.Ref()
	return f.data, nil
}

// Unmarshal takes a reference; free gives it back.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("xds codec: cannot receive a %T", v)
	}
	data.Ref()
	f.data = data
	return nil
}

// free gives the frame's memory back. It must not be used afterwards.
func (f *frame) free() {
	f.data.Free()
	f.data = nil
}

// frameOf encodes one of the agent's own messages.
func frameOf(m proto.Message) (*frame, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &frame{data: mem.BufferSlice{mem.SliceBuffer(b)}}, nil
}

// decode is the inverse of frameOf, for the types that the agent owns.
func (f *frame) decode(m proto.Message) error { return proto.Unmarshal(f.data.Materialize(), m) }

// withNode returns a first request of Envoy that names this node; what only Envoy knows of itself (its build, its extensions) stays. So istiod sees one
// node for the machine, also when its address or its settings changed after Envoy was started. f is used up unless there is an error.
func (f *frame) withNode(delta bool, node *discovery.Node) (*frame, error) {
	var m interface {
		proto.Message
		GetNode() *discovery.Node
	} = &discovery.Request{}
	if delta {
		m = &discovery.DeltaRequest{}
	}
	if err := f.decode(m); err != nil {
		return nil, fmt.Errorf("envoy's first request: %w: %w", errFrame, err)
	}
	if m.GetNode() == nil {
		return nil, fmt.Errorf("envoy's first request: %w: it names no node", errFrame)
	}
	own := m.GetNode()
	own.Id, own.Cluster, own.Locality, own.Metadata = node.GetId(), node.GetCluster(), node.GetLocality(), node.GetMetadata()
	out, err := frameOf(m)
	if err != nil {
		return nil, err
	}
	f.free()
	return out, nil
}

// refusalText is the reason that a NACK of Envoy gives.
func (f *frame) refusalText(delta bool) string {
	var m interface {
		proto.Message
		GetErrorDetail() *discovery.Status
	} = &discovery.Request{}
	if delta {
		m = &discovery.DeltaRequest{}
	}
	if err := f.decode(m); err != nil {
		return err.Error()
	}
	return m.GetErrorDetail().GetMessage()
}

// header is what the agent reads of a frame: enough to know whose it is.
type header struct {
	typeURL string
	version string // of a response, or the one that a request acknowledges (state of the world only)
	nonce   string
	node    bool // a request names its node
	refusal bool // a request has an error detail: a NACK, or a report of bad health
}

// layout says which field of a message holds what; 0 means that it has no such field.
type layout struct{ typeURL, version, nonce, node, errorDetail protowire.Number }

// Field numbers of envoy/service/discovery/v3/discovery.proto.
var (
	sotwRequest   = layout{typeURL: 4, version: 1, nonce: 5, node: 2, errorDetail: 6}
	sotwResponse  = layout{typeURL: 4, version: 1, nonce: 5}
	deltaRequest  = layout{typeURL: 2, nonce: 6, node: 1, errorDetail: 7}
	deltaResponse = layout{typeURL: 4, version: 1, nonce: 5}
)

// maxHeaderField bounds the fields that are read: type URLs, versions and nonces are short.
const maxHeaderField = 4 << 10

var errFrame = errors.New("not an xDS message")

// header reads f by its layout, passing over everything else. The last of repeated fields counts, as in protobuf.
func (f *frame) header(l layout) (h header, err error) {
	c := cursor{rest: f.data, left: f.data.Len()}
	for c.more() {
		tag, err := c.varint()
		if err != nil {
			return header{}, err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber {
			return header{}, fmt.Errorf("%w: field number %d", errFrame, num)
		}
		switch typ {
		case protowire.VarintType:
			if _, err := c.varint(); err != nil {
				return header{}, err
			}
		case protowire.Fixed32Type, protowire.Fixed64Type:
			if err := c.skip(map[protowire.Type]int{protowire.Fixed32Type: 4, protowire.Fixed64Type: 8}[typ]); err != nil {
				return header{}, err
			}
		case protowire.BytesType:
			n, err := c.varint()
			if err != nil {
				return header{}, err
			}
			if n > uint64(c.left) {
				return header{}, fmt.Errorf("%w: a field of %d bytes where %d are left", errFrame, n, c.left)
			}
			var text *string
			switch num {
			case l.typeURL:
				text = &h.typeURL
			case l.version:
				text = &h.version
			case l.nonce:
				text = &h.nonce
			case l.node:
				h.node = true
			case l.errorDetail:
				h.refusal = true
			}
			if text == nil {
				err = c.skip(int(n))
			} else if n > maxHeaderField {
				err = fmt.Errorf("%w: %d bytes in field %d", errFrame, n, num)
			} else {
				*text, err = c.text(int(n))
			}
			if err != nil {
				return header{}, err
			}
		default:
			return header{}, fmt.Errorf("%w: wire type %d", errFrame, typ)
		}
	}
	return h, nil
}

// cursor reads through the pieces of a frame.
type cursor struct {
	piece []byte          // what is left of the current one
	rest  mem.BufferSlice // those after it
	left  int             // bytes in both
}

// more reports whether anything is left, and goes to the next piece when the current one is used up.
func (c *cursor) more() bool {
	for len(c.piece) == 0 && len(c.rest) > 0 {
		c.piece, c.rest = c.rest[0].ReadOnlyData(), c.rest[1:]
	}
	return len(c.piece) > 0
}

// take passes over as many bytes as the current piece has, n at most, and returns them.
func (c *cursor) take(n int) []byte {
	b := c.piece[:min(n, len(c.piece))]
	c.piece = c.piece[len(b):]
	c.left -= len(b)
	return b
}

func (c *cursor) varint() (v uint64, err error) {
	// Most numbers are tags and short lengths.
	if len(c.piece) > 0 && c.piece[0] < 0x80 {
		return uint64(c.take(1)[0]), nil
	}
	for shift := 0; shift < 64; shift += 7 {
		if !c.more() {
			return 0, fmt.Errorf("%w: ends in a number", errFrame)
		}
		b := c.take(1)[0]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: a number of more than 64 bits", errFrame)
}

func (c *cursor) skip(n int) error {
	for n > 0 {
		if !c.more() {
			return fmt.Errorf("%w: ends in a field", errFrame)
		}
		n -= len(c.take(n))
	}
	return nil
}

func (c *cursor) text(n int) (string, error) {
	b := make([]byte, 0, n)
	for n > 0 {
		if !c.more() {
			return "", fmt.Errorf("%w: ends in a field", errFrame)
		}
		part := c.take(n)
		b = append(b, part...)
		n -= len(part)
	}
	return string(b), nil
}
