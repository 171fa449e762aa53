package stock

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
)

// Response is Rewrite for a response in one piece. With an error there is nothing, for tests to see that they got one.
func (r *Rewriter) Response(typeURL string, delta bool, frame []byte) ([]byte, Report, error) {
	in := bytes.Clone(frame)
	out, report, err := r.Rewrite(typeURL, delta, mem.BufferSlice{mem.SliceBuffer(frame)})
	if !bytes.Equal(in, frame) {
		panic("the response was written to")
	}
	switch {
	case err != nil:
		return nil, Report{}, err
	case len(out) == 1 && len(frame) > 0 && out.Len() > 0 && &out[0].ReadOnlyData()[0] == &frame[0]:
		return frame, report, nil
	}
	return out.Materialize(), report, nil
}

// poison is a pool whose buffers are of no use any more once they were given back.
type poison struct{ lent, back int }

func (p *poison) Get(n int) *[]byte { b := make([]byte, n); p.lent++; return &b }

func (p *poison) Put(b *[]byte) {
	p.back++
	for i := range *b {
		(*b)[i] = 0xee
	}
}

// cut makes pieces of n bytes whose memory is p's. Small ones gRPC does not give back to a pool.
func (p *poison) cut(b []byte, n int) (s mem.BufferSlice) {
	for len(b) > 0 {
		piece := p.Get(min(n, len(b)))
		b = b[copy(*piece, b):]
		s = append(s, mem.NewBuffer(piece, p))
	}
	return s
}

func TestPiecesAreRewrittenAsTheWholeIs(t *testing.T) {
	for _, tc := range []struct {
		name  string
		frame []byte
		typ   string
	}{
		{"clusters", fixture(t, fixtureCDS), fixtureCDS},
		{"listeners", fixture(t, fixtureLDS), fixtureLDS},
		{"routes, where nothing changes", fixture(t, fixtureRDS), fixtureRDS},
		{"no resources", []byte{0x0a, 0x01, 'v'}, fixtureCDS},
		{"nothing", nil, fixtureCDS},
	} {
		r := New(stockEnvoy(t))
		want, wantReport, err := r.Response(urlOf(tc.typ), true, tc.frame)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 3, 100, 1500, 4096, 16 << 10, 1 << 20} {
			var p poison
			out, report, err := r.Rewrite(urlOf(tc.typ), true, p.cut(tc.frame, n))
			if err != nil {
				t.Fatalf("%s in pieces of %d: %v", tc.name, n, err)
			}
			if got := out.Materialize(); !bytes.Equal(got, want) || report.LogValue().String() != wantReport.LogValue().String() {
				t.Errorf("%s in pieces of %d: %d bytes, %v; want %d, %v", tc.name, n, len(got), report.LogValue(), len(want), wantReport.LogValue())
			}
			out.Free()
			if n > 1024 && len(tc.frame) > n && p.back < p.lent-1 { // the last piece may be one of those that gRPC does not pool
				t.Errorf("%s in pieces of %d: %d of %d pieces were given back", tc.name, n, p.back, p.lent)
			}
		}
	}
}

// What is malformed reaches Envoy, which says what is wrong with it; what else there is gets rewritten.
func TestMalformedPartsAreLeftInTheResponse(t *testing.T) {
	good := fixture(t, fixtureLDS)
	bad := embed(2, embed(2, append(embed(1, "type.googleapis.com/"+typeListener), embed(2, []byte{0x1a, 0x7f})...))) // a filter chain that is cut short
	for _, tc := range []struct {
		name  string
		frame []byte
		left  []byte // must be in what comes out
	}{
		{"a resource at the end", append(bytes.Clone(good), bad...), bad},
		{"a resource at the beginning", append(bytes.Clone(bad), good...), bad},
		{"half a field at the end", append(bytes.Clone(good), 0x12, 0x7f, 'x'), []byte{0x12, 0x7f, 'x'}},
		{"a group at the end", append(bytes.Clone(good), 0x0b, 0x0c, 0x0c), []byte{0x0b, 0x0c, 0x0c}},
	} {
		for _, n := range []int{1, 100, 4096, 1 << 20} {
			var p poison
			out, report, err := New(stockEnvoy(t)).Rewrite(urlOf(fixtureLDS), true, p.cut(tc.frame, n))
			got := out.Materialize()
			if err == nil || report.Changed == 0 || bytes.Contains(got, []byte(typeStats)) || !bytes.Contains(got, tc.left) {
				t.Errorf("%s in pieces of %d: %d of %d bytes, %d resources changed, error %v; want an error and the rest rewritten",
					tc.name, n, len(got), len(tc.frame), report.Changed, err)
			}
		}
	}
}

func TestTypesThatConcernRoutes(t *testing.T) {
	named := func(name string) string { return string(embed(1, "type.googleapis.com/"+name)) }
	own, known := named(typeRoutes), named("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
	paths := string(bytes.Repeat([]byte("/api/"), 50))
	r := New(stockEnvoy(t))
	for _, tc := range []struct {
		name, text string
		want       bool
	}{
		{"nothing", "", false},
		{"its own", own + " and more", false},
		{"its own, at the end", own, false},
		{"paths", "/ " + paths + "/", false},
		{"one that this Envoy has, and that leads nowhere", own + known + paths + known, false},
		{"one that this Envoy lacks", own + paths + known + named(typeStats) + paths, true},
		{"one that nobody knows, at the end", own + named("example.Unheard"), true},
		{"one that leads on", own + named("envoy.extensions.filters.http.router.v3.Router"), true},
		{"one without a name", own + named(""), true},
		{"one without a length", "type.googleapis.com/" + typeStats, true},
		{"one whose length is another", "\x7ftype.googleapis.com/x", true},
		{"a host of that name without a path", "\x13type.googleapis.com", false},
	} {
		for n := 1; n <= len(tc.text)+1; n++ {
			var p poison
			if got := r.concerns(p.cut([]byte(tc.text), n), typeRoutes); got != tc.want {
				t.Errorf("%s, in pieces of %d: %v, want %v", tc.name, n, got, tc.want)
			}
		}
	}
}

// FuzzPieces holds what comes out of a response in pieces against what comes out of it whole.
func FuzzPieces(f *testing.F) {
	for _, name := range []string{fixtureCDS, fixtureLDS, fixtureRDS} {
		f.Add(fixture(f, name), name == fixtureCDS, 100)
		f.Add(fixture(f, name), name == fixtureCDS, 7)
	}
	f.Add([]byte{0x12, 0x7f, 'x'}, true, 1)
	ext := stockEnvoy(f)
	f.Fuzz(func(t *testing.T, in []byte, clusters bool, n int) {
		typeURL := urlOf(fixtureLDS)
		if clusters {
			typeURL = urlOf(fixtureCDS)
		}
		rewrite := func(n int) ([]byte, error) {
			var p poison
			out, _, err := New(ext).Rewrite(typeURL, true, p.cut(in, n))
			return out.Materialize(), err
		}
		whole, wholeErr := rewrite(len(in) + 1)
		out, err := rewrite(1 + max(n, -n)%5000)
		if !bytes.Equal(out, whole) || (err == nil) != (wholeErr == nil) {
			t.Errorf("in pieces %d bytes, %v; whole %d, %v", len(out), err, len(whole), wholeErr)
		}
	})
}
