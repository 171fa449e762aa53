package agent

import (
	"bytes"
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of nds.proto: the map of a NameTable, and key and value of its entries.
const (
	fieldTable protowire.Number = 1
	fieldKey   protowire.Number = 1
	fieldValue protowire.Number = 2
)

// errNoDiff means that a table is not to be had from what is different in it.
var errNoDiff = errors.New("name table is not written entry by entry in the order of its hosts")

// tableDiff is what one NameTable has changed of another.
type tableDiff struct {
	gone    []string // hosts that are not there any more
	changed []byte   // a NameTable of the entries that are new or different
}

// diffTables compares two NameTables by their bytes: istiod sends the whole table when a single service changes, and decoding ten thousand
// names costs more than everything else that the agent does with such a push. It works because istiod writes maps in the order of their
// keys (Istio pilot/pkg/util/protoconv, MessageToAny); tables that are written in any other way are errNoDiff.
func diffTables(former, later []byte) (d tableDiff, err error) {
	old, next := entries{rest: former}, entries{rest: later}
	if err := errors.Join(old.advance(), next.advance()); err != nil {
		return tableDiff{}, err
	}
	for old.whole != nil || next.whole != nil {
		order := bytes.Compare(old.host, next.host)
		switch {
		case next.whole == nil:
			order = -1
		case old.whole == nil:
			order = 1
		}
		if order < 0 {
			d.gone = append(d.gone, string(old.host))
		} else if order > 0 || !bytes.Equal(old.whole, next.whole) {
			d.changed = append(d.changed, next.whole...)
		}
		if order <= 0 {
			if err := old.advance(); err != nil {
				return tableDiff{}, err
			}
		}
		if order >= 0 {
			if err := next.advance(); err != nil {
				return tableDiff{}, err
			}
		}
	}
	return d, nil
}

// entries walks through the entries of a NameTable's bytes.
type entries struct {
	rest  []byte
	whole []byte // the current entry with its tag; nil: there are no more
	host  []byte // its key
}

// advance goes to the next entry, which must be nothing but a key and a value, and its key greater than the one before.
func (e *entries) advance() error {
	before, first := e.host, e.whole == nil
	e.whole, e.host = nil, nil
	if len(e.rest) == 0 {
		return nil
	}
	entry, n := bytesField(e.rest, fieldTable)
	host, k := bytesField(entry, fieldKey)
	if n < 0 || k < 0 {
		return errNoDiff
	}
	if _, v := bytesField(entry[k:], fieldValue); v != len(entry)-k {
		return errNoDiff
	}
	if !first && bytes.Compare(before, host) >= 0 {
		return errNoDiff
	}
	e.whole, e.host, e.rest = e.rest[:n], host, e.rest[n:]
	return nil
}

// bytesField reads the field at the beginning of b, whose number must be num, and returns its content and its whole length; -1 when
// it is anything else.
func bytesField(b []byte, num protowire.Number) (content []byte, n int) {
	got, typ, n := protowire.ConsumeTag(b)
	if n < 0 || got != num || typ != protowire.BytesType {
		return nil, -1
	}
	content, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, -1
	}
	return content, n + m
}
