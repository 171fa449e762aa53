package stock

import (
	"log/slog"
	"slices"
)

// Report says what Rewrite did.
type Report struct {
	Resources int // read of the response: none when no type that is named in it calls for that
	Changed   int // of those, rewritten or taken out

	Removed   map[string]int // extensions taken out, by the names of this package; nil for none
	Protocols int            // times istio-peer-exchange was taken out of an ALPN list
	StandIns  int            // of the removed istio.alpn, those that set_filter_state stands in for
	Marked    int            // clusters that carry HTTP's ALPN
	Unmarked  int            // clusters that should and cannot: they follow the client's protocol and this Envoy has no CEL
	Factories int            // names of filter state factories replaced
	Bounded   int            // clusters whose names are asked for with less patience

	Left []string // types that this Envoy does not know and that were left, sorted, each once, at most maxLeft
}

// maxLeft bounds Report.Left: type names come from outside.
const maxLeft = 20

func (r *Report) removed(name string) {
	if r.Removed == nil {
		r.Removed = map[string]int{}
	}
	r.Removed[name]++
}

func (r *Report) left(t []byte) {
	if len(r.Left) < maxLeft && !slices.Contains(r.Left, string(t)) {
		r.Left = append(r.Left, string(t))
	}
}

// LogValue gives the counts that are not zero.
func (r Report) LogValue() slog.Value {
	attrs := []slog.Attr{slog.Int("resources", r.Resources), slog.Int("changed", r.Changed)}
	for _, name := range []string{ALPN, MetadataExchange, PeerMetadata, Stats} {
		if n := r.Removed[name]; n > 0 {
			attrs = append(attrs, slog.Int(name, n))
		}
	}
	for _, count := range []struct {
		key string
		n   int
	}{{"peer_exchange", r.Protocols}, {"stand_ins", r.StandIns}, {"marked", r.Marked}, {"unmarked", r.Unmarked}, {"factories", r.Factories}, {"bounded", r.Bounded}} {
		if count.n > 0 {
			attrs = append(attrs, slog.Int(count.key, count.n))
		}
	}
	if len(r.Left) > 0 {
		attrs = append(attrs, slog.Any("left", r.Left))
	}
	return slog.GroupValue(attrs...)
}
