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

// read reads the field at position at of b, which ends before end. Nearly every field has a tag and a length of one byte each.
func (f *field) read(b []byte, at, end int) error {
	if b = b[:end]; at+1 < len(b) {
		tag, size := b[at], b[at+1]
		if tag >= 1<<3 && tag < 0x80 && tag&7 == byte(protowire.BytesType) && size < 0x80 && at+2+int(size) <= end {
			f.num, f.typ = protowire.Number(tag>>3), protowire.BytesType
			f.start, f.head, f.body, f.end = at, at+1, at+2, at+2+int(size)
			return nil
		}
	}
	return f.readAny(b, at)
}

// readAny is read for any tag and length; b ends where the field must have ended.
func (f *field) readAny(b []byte, at int) error {
	end := len(b)
	num, typ, n := protowire.ConsumeTag(b[at:])
	if n < 0 {
		return fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
	}
	f.num, f.typ, f.start, f.head = num, typ, at, at+n
	if typ != protowire.BytesType {
		n := protowire.ConsumeFieldValue(num, typ, b[f.head:])
		if n < 0 {
			return fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
		}
		f.body, f.end = f.head, f.head+n
		return nil
	}
	size, n := protowire.ConsumeVarint(b[f.head:])
	if n < 0 {
		return fmt.Errorf("%w: %w at byte %d", errWire, protowire.ParseError(n), at)
	}
	f.body = f.head + n
	if size > uint64(end-f.body) {
		return fmt.Errorf("%w: a field of %d bytes where %d are left, at byte %d", errWire, size, end-f.body, at)
	}
	f.end = f.body + int(size)
	return nil
}

// fields calls do for each field of b: with its bytes, or with its value when it is a varint.
func fields(b []byte, do func(num protowire.Number, body []byte, n uint64)) error {
	var f field
	for f.end < len(b) {
		if err := f.read(b, f.end, len(b)); err != nil {
			return err
		}
		switch f.typ {
		case protowire.BytesType:
			do(f.num, b[f.body:f.end], 0)
		case protowire.VarintType:
			n, _ := protowire.ConsumeVarint(b[f.body:f.end])
			do(f.num, nil, n)
		}
	}
	return nil
}

// each calls do for each field of b that has number num and holds bytes.
func each(b []byte, num protowire.Number, do func(body []byte) error) error {
	var f field
	for f.end < len(b) {
		if err := f.read(b, f.end, len(b)); err != nil {
			return err
		}
		if f.num == num && f.bytes() {
			if err := do(b[f.body:f.end]); err != nil {
				return err
			}
		}
	}
	return nil
}

// last returns the last field num of b, the one that counts; nil when there is none. What is malformed ends the search.
func last(b []byte, num protowire.Number) (body []byte) {
	var f field
	for f.end < len(b) {
		if f.read(b, f.end, len(b)) != nil {
			return body
		}
		if f.num == num && f.bytes() {
			body = b[f.body:f.end]
		}
	}
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
