package stock

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Rewriter takes what an Envoy lacks out of the responses that are meant for it. One Rewriter serves one stream: it keeps its scratch
// memory, no state between responses, and is not safe for concurrent use.
type Rewriter struct {
	ext     Extensions
	standIn []byte // for istio.alpn, an HttpFilter with its length; nil: nothing stands in
	marks   marks

	in      []byte
	patches []patch // in the order of their places, those of the resource that is being read
	facts   note    // about the cluster that is being read
	depth   int
	report  Report
}

// New returns a Rewriter for an Envoy with these extensions.
func New(ext Extensions) *Rewriter {
	r := &Rewriter{ext: ext}
	if _, lacks := ext.missing[typeALPN]; lacks && ext.setFilterState {
		r.standIn, r.marks = standIn(ext.cel), newMarks(ext.cel)
	}
	return r
}

// Wants reports whether responses of this type can hold anything to rewrite. Others need not be put into one piece of memory.
func Wants(typeURL string) bool { return resources[typeName(typeURL)] }

// resource rewrites one element of a response's resources: a Resource in a delta response, an Any otherwise.
//
// What ECDS delivers is an extension by itself: when Envoy lacks it, the whole resource goes. Envoy does not wait for it, since the
// filters that would are taken out of the listeners.
func (r *Rewriter) resource(f *field, delta bool) error {
	r.report.Resources++
	config := r.in[f.body:f.end]
	if delta {
		config = last(config, 2)
	}
	if string(nameOf(last(config, 1))) == typeTypedExtensionConfig {
		if name, lacks := r.ext.lacks(effective(last(last(config, 2), 2), 0)); lacks {
			r.remove(f, name)
			return nil
		}
	}
	var err error
	if delta {
		_, err = r.nest(&deltaResource, f)
	} else {
		_, err = r.config(f)
	}
	return err
}

// maxDepth bounds the nesting of messages, as Envoy's own parser does (100).
const maxDepth = 100

// message walks through the message between from and to, whose kind is m, and returns by how many bytes it grows.
func (r *Rewriter) message(m *message, from, to int) (grown int, err error) {
	if r.depth++; r.depth > maxDepth {
		return 0, fmt.Errorf("%w: nested more than %d deep", errWire, maxDepth)
	}
	if m == &cluster {
		r.facts = 0
	}
	r.facts |= m.note
	f := field{end: from}
	for f.end < to {
		if err := f.read(r.in, f.end, to); err != nil {
			return 0, err
		}
		s := m.slot(f.num)
		if s.note != 0 && (s.only == 0 || r.varint(&f) == s.only) {
			r.facts |= s.note
		}
		if s.do == pass || !f.bytes() {
			continue
		}
		n, err := r.field(s, &f)
		if err != nil {
			return 0, err
		}
		grown += n
	}
	switch m {
	case &cluster:
		grown += r.mark(to) + r.bound(m, to)
	case &caresResolver:
		grown += r.bound(m, to)
	}
	r.depth-- // after an error nothing more is read of the response
	return grown, nil
}

// nest looks into the message of kind m in f.
func (r *Rewriter) nest(m *message, f *field) (grown int, err error) {
	mark := r.open(f)
	n, err := r.message(m, f.body, f.end)
	return r.close(mark, f, n), err
}

// field does what s asks for with f.
func (r *Rewriter) field(s *slot, f *field) (grown int, err error) {
	body := r.in[f.body:f.end]
	switch s.do {
	case nest:
		return r.nest(s.to, f)
	case extension:
		return r.config(f)
	case optional:
		if name, lacks := r.ext.lacks(effective(body, 0)); lacks {
			return r.remove(f, name), nil
		}
		return r.config(f)
	case filter, httpRequest:
		name, lacks := r.without(s.to, body)
		if !lacks {
			return r.nest(s.to, f)
		}
		if s.do == httpRequest && name == ALPN && r.standIn != nil {
			r.patches = append(r.patches, patch{at: f.head, end: f.end, text: r.standIn})
			r.report.removed(name)
			r.report.StandIns++
			return len(r.standIn) - (f.end - f.head), nil
		}
		return r.remove(f, name), nil
	case typeURLs:
		if name, lacks := r.ext.lacks(nameOf(body)); lacks {
			return r.remove(f, name), nil
		}
	case alpn:
		if _, lacks := r.ext.missing[typeMetadataExchange]; lacks && string(body) == peerExchange {
			r.patches = append(r.patches, patch{at: f.start, end: f.end})
			r.report.Protocols++
			return f.start - f.end, nil
		}
	case factory:
		if r.ext.stringFactory != "" && string(body) == istioStringFactory {
			text := embed(f.num, r.ext.stringFactory)
			r.patches = append(r.patches, patch{at: f.start, end: f.end, text: text})
			r.report.Factories++
			return len(text) - (f.end - f.start), nil
		}
	case override:
		if keepsProtocols(body) {
			r.facts |= keepsALPN
		}
	}
	return 0, nil
}

// remove takes f out whole.
func (r *Rewriter) remove(f *field, name string) (grown int) {
	r.patches = append(r.patches, patch{at: f.start, end: f.end})
	r.report.removed(name)
	return f.start - f.end
}

// config rewrites what the Any in f holds, when its type is one of the table's.
func (r *Rewriter) config(f *field) (grown int, err error) {
	body := r.in[f.body:f.end]
	t := nameOf(last(body, 1))
	switch string(t) {
	case typeUDPATypedStruct, typeXDSTypedStruct:
		t = nameOf(last(last(body, 2), 1))
		r.check(t)
		return 0, nil
	case typeFilterConfig, typeListener, typeCluster, typeRoutes, typeVirtualHost, typeScopedRoutes, typeTypedExtensionConfig:
	default:
		r.check(t)
	}
	m := types[string(t)]
	if m == nil {
		return 0, nil
	}
	mark := r.open(f)
	inner := field{end: f.body}
	for inner.end < f.end {
		if err := inner.read(r.in, inner.end, f.end); err != nil {
			return 0, err
		}
		if inner.num != 2 || !inner.bytes() { // Any.value
			continue
		}
		n, err := r.nest(m, &inner)
		if err != nil {
			return 0, err
		}
		grown += n
	}
	return r.close(mark, f, grown), nil
}

// check reports type t when Envoy has no extension for it. An Any without a type is empty, and no extension.
func (r *Rewriter) check(t []byte) {
	if len(t) > 0 && r.ext.unknown(t) {
		r.report.left(t)
	}
}

// without tells whether the extension of a list's element, a message of kind m, is missing, and its name. One that ECDS delivers is
// missing when every type it may have is.
func (r *Rewriter) without(m *message, element []byte) (name string, yes bool) {
	var offered, lacking int
	_ = fields(element, func(num protowire.Number, body []byte, _ uint64) {
		switch s := m.slot(num); {
		case body == nil || yes:
		case s.do == extension:
			name, yes = r.ext.lacks(effective(body, 0))
		case s.to == &extensionConfigSource:
			_ = each(body, 4, func(url []byte) error {
				offered++
				if n, lacks := r.ext.lacks(nameOf(url)); lacks {
					lacking, name = lacking+1, n
				}
				return nil
			})
		}
	})
	return name, yes || offered > 0 && offered == lacking
}

// effective is the type that an Any configures in the end: of the extension inside when it holds a wrapper. An Any malformed in here is
// found when it is read in earnest.
func effective(body []byte, depth int) []byte {
	t := nameOf(last(body, 1))
	if depth > 3 {
		return t
	}
	value := last(body, 2)
	switch string(t) {
	case typeUDPATypedStruct, typeXDSTypedStruct:
		return nameOf(last(value, 1))
	case typeFilterConfig:
		return effective(last(value, 1), depth+1)
	case typeExtensionWithMatcher:
		return effective(last(last(value, 2), 2), depth+1)
	}
	return t
}

// varint is the value of a number, 0 for anything else.
func (r *Rewriter) varint(f *field) uint64 {
	if f.typ != protowire.VarintType {
		return 0
	}
	n, _ := protowire.ConsumeVarint(r.in[f.body:f.end])
	return n
}
