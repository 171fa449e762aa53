package agent

import (
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"

	"wingman/agent/envoy/stock"
	"wingman/agent/xds"
)

// metricEnvoyRemoved counts by extension.
const metricEnvoyRemoved = "wingman_envoy_removed_total"

// fitting makes what fits pushes to Envoys that lack Istio's extensions.
type fitting struct {
	log     *slog.Logger
	removed *prometheus.CounterVec
}

func newFitting(log *slog.Logger, r prometheus.Registerer) *fitting {
	f := &fitting{log: log, removed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricEnvoyRemoved,
		Help: "Istio's extensions that were taken out of pushes because this machine's Envoy was built without them, by extension."}, []string{"extension"})}
	r.MustRegister(f.removed)
	return f
}

// fit is xds.Config.Fit: nil for an Envoy that has all that istiod sends.
func (f *fitting) fit(first []byte, delta bool) xds.Fitter {
	ext, err := stock.FromRequest(first, delta)
	if err != nil {
		f.log.Warn("what this Envoy was built with cannot be read; it gets istiod's pushes as they are", "cause", err)
		return nil
	}
	if !ext.Needed() {
		return nil
	}
	f.log.Info("this Envoy lacks Istio's extensions: they are taken out of what istiod sends", "extensions", ext.Missing())
	return &fitter{fitting: f, delta: delta, rewriter: stock.New(ext), told: map[string]bool{}}
}

// fitter serves one stream.
type fitter struct {
	*fitting
	delta    bool
	rewriter *stock.Rewriter

	mu   sync.Mutex // guards everything below
	told map[string]bool
}

func (f *fitter) Wants(typeURL string) bool { return stock.Wants(typeURL) }

func (f *fitter) Fit(typeURL string, frame mem.BufferSlice) mem.BufferSlice {
	out, report, err := f.rewriter.Rewrite(typeURL, f.delta, frame)
	if err != nil {
		f.log.Warn("parts of a push cannot be fitted to this Envoy; it gets them as they are", "type", typeURL, "cause", err)
	}
	for extension, n := range report.Removed {
		f.removed.WithLabelValues(extension).Add(float64(n))
	}
	f.tell(report)
	return out
}

// tell logs what was done: at debug, except for what this Envoy gets that it may refuse, and what it does not get, once a stream.
func (f *fitter) tell(r stock.Report) {
	f.mu.Lock()
	var left []string
	for _, typ := range r.Left {
		if !f.told[typ] {
			f.told[typ] = true
			left = append(left, typ)
		}
	}
	unmarked := r.Unmarked > 0 && !f.told["unmarked"]
	if unmarked {
		f.told["unmarked"] = true
	}
	f.mu.Unlock()
	if r.Changed > 0 {
		f.log.Debug("push fitted to this Envoy", "report", r)
	}
	if len(left) > 0 {
		f.log.Warn("istiod sends extensions that this Envoy does not know; what has them may be refused", "types", left)
	}
	if unmarked {
		f.log.Warn("this Envoy lacks CEL: clusters that follow the client's protocol offer peers no protocol", "clusters", r.Unmarked)
	}
}
