package stock

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// errWire means that bytes are not the protobuf message which they should be.
var errWire = errors.New("malformed message")

// field is one field of a message in a buffer, by its positions there.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	start int // the tag
	head  int // the length, or the value of a number
	body  int // what the length counts; equal to head for a number
	end   int
}

// bytes reports whether f is of the wire type that messages, strings and lists have.
func (f field) bytes() bool { return f.typ == protowire.BytesType }

// fieldAt reads the field at position at of b, which ends before end.
func fieldAt(b []byte, at, end int) (field, error) {
	num, typ, n := protowire.ConsumeTag(b[at:end])
	if n < 0 {
		return field{}, fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
	}
	f := field{num: num, typ: typ, start: at, head: at + n}
	if typ != protowire.BytesType {
		n := protowire.ConsumeFieldValue(num, typ, b[f.head:end])
		if n < 0 {
			return field{}, fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
		}
		f.body, f.end = f.head, f.head+n
		return f, nil
	}
	size, n := protowire.ConsumeVarint(b[f.head:end])
	if n < 0 {
		return field{}, fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
	}
	f.body = f.head + n
	if size > uint64(end-f.body) {
		return field{}, fmt.Errorf("%w: a field of %d bytes where %d are left, at byte %d", errWire, size, end-f.body, at)
	}
	f.end = f.body + int(size)
	return f, nil
}

// fields calls do for each field of b: with its bytes, or with its value when it is a varint.
func fields(b []byte, do func(num protowire.Number, body []byte, n uint64)) error {
	for at := 0; at < len(b); {
		f, err := fieldAt(b, at, len(b))
		if err != nil {
			return err
		}
		switch f.typ {
		case protowire.BytesType:
			do(f.num, b[f.body:f.end], 0)
		case protowire.VarintType:
			n, _ := protowire.ConsumeVarint(b[f.body:f.end])
			do(f.num, nil, n)
		}
		at = f.end
	}
	return nil
}

// each calls do for each field of b that has number num and holds bytes.
func each(b []byte, num protowire.Number, do func(body []byte) error) error {
	for at := 0; at < len(b); {
		f, err := fieldAt(b, at, len(b))
		if err != nil {
			return err
		}
		if f.num == num && f.bytes() {
			if err := do(b[f.body:f.end]); err != nil {
				return err
			}
		}
		at = f.end
	}
	return nil
}

// last returns the last field num of b, the one that counts; nil when there is none, or b is malformed from there on.
func last(b []byte, num protowire.Number) (body []byte) {
	_ = each(b, num, func(found []byte) error { body = found; return nil })
	return body
}

// nameOf is typeName for bytes.
func nameOf(url []byte) []byte { return url[bytes.LastIndexByte(url, '/')+1:] }

// embed makes a field num of a message or a string.
func embed[T string | []byte](num protowire.Number, body T) []byte {
	b := protowire.AppendTag(nil, num, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(body)))
	return append(b, body...)
}
