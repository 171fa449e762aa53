package status

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"wingman/bootstrap"
)

// Sources are whose metrics /stats/prometheus holds beside the agent's own. The zero value is nobody.
type Sources struct {
	Envoy        uint16                   // port of Envoy's listener for metrics, on loopback; 0: no Envoy
	Applications []bootstrap.ScrapeTarget // asked on loopback
}

// Merge is how NewPublic makes /stats/prometheus. Its zero value answers with the agent's own metrics alone.
type Merge struct {
	Sources func() Sources // asked at each scrape; nil: nobody
	// LocalhostOnly tells whether other machines may not read metrics, neither merged nor at /metrics; nil: they may.
	// Istio: METRICS_LOCALHOST_ACCESS_ONLY.
	LocalhostOnly func() bool
	Log           *slog.Logger          // nil: discard
	Metrics       prometheus.Registerer // nil: none
}

// Bounds of a scrape.
const (
	timeoutHeader = "X-Prometheus-Scrape-Timeout-Seconds"
	defaultScrape = 10 * time.Second // Prometheus' own default
	longestScrape = time.Minute
	mostReserve   = 500 * time.Millisecond
	scrapesAtOnce = 8
)

// merger serves /stats/prometheus: our own metrics, then Envoy's, then the applications'.
//
// The answer is always 200: what a source does not give is missing, counted and logged when that begins and ends. Istio: handleStats
// in pilot/cmd/pilot-agent/status/server.go.
type merger struct {
	own     prometheus.Gatherer
	sources func() Sources
	log     *slog.Logger
	metrics metrics
	client  *http.Client
	via     string        // names this process to itself (RFC 9110, section 7.6.3)
	slots   chan struct{} // one for each scrape under way

	mu      sync.Mutex         // guards everything below
	missing map[sourceKey]bool // sources whose last scrape failed
}

func newMerger(own prometheus.Gatherer, c Merge) *merger {
	m := &merger{
		own:     own,
		sources: c.Sources,
		log:     c.Log,
		metrics: newMetrics(c.Metrics),
		client:  newScraper(),
		via:     "1.1 wingman-" + rand.Text(),
		slots:   make(chan struct{}, scrapesAtOnce),
		missing: map[sourceKey]bool{},
	}
	if m.sources == nil {
		m.sources = func() Sources { return Sources{} }
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

func (m *merger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, via := range r.Header.Values("Via") {
		if strings.Contains(via, m.via) {
			http.Error(w, "an application whose metrics are merged here asks for the merged metrics", http.StatusLoopDetected)
			return
		}
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	default:
		http.Error(w, "too many scrapes at once", http.StatusServiceUnavailable)
		return
	}
	m.metrics.scrapes.Inc()
	whole := scrapeTime(r.Header.Get(timeoutHeader))
	deadline := time.Now().Add(whole - min(whole/10, mostReserve))
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(whole)) // a recorder of tests has none

	answers := m.askAll(r, sourcesOf(m.sources(), r), time.Until(deadline))
	format := formatOfAll(answers)
	w.Header().Set("Content-Type", string(format))
	out := &scraperWriter{w: w}
	answers = slices.DeleteFunc(answers, func(a *answer) bool {
		if a.err == nil {
			return false
		}
		m.note(r.Context(), out, a) // now, so that our own metrics count it
		a.close()
		return true
	})
	m.note(r.Context(), out, &answer{source: source{key: sourceKey{label: sourceAgent}}, err: m.writeOwn(out, format)})
	for i, a := range answers {
		out.blocked = 0
		began := time.Now()
		// An equal share of what is left, so that a slow one costs the others nothing.
		a.err = a.pass(out, isOpenMetrics(format), time.Until(deadline)/time.Duration(len(answers)-i))
		if errors.Is(a.err, errLate) && out.blocked > time.Since(began)/2 {
			m.log.Debug("scraper is slow", "source", a.key.label)
		} else {
			m.note(r.Context(), out, a)
		}
		a.close()
	}
	if isOpenMetrics(format) {
		io.WriteString(out, endMark+"\n") // a scraper that went away is its own affair
	}
}

// askAll asks all sources at once and waits until each began to answer or failed: the header of the whole depends on it. With several,
// half of the time is for that.
func (m *merger) askAll(r *http.Request, sources []source, left time.Duration) []*answer {
	if len(sources) > 1 {
		left /= 2
	}
	answers := make([]*answer, len(sources))
	var wg sync.WaitGroup
	for i, s := range sources {
		wg.Go(func() { answers[i] = m.ask(r, s, left) })
	}
	wg.Wait()
	return answers
}

// formatOfAll is OpenMetrics when the only application answers with it, else text.
func formatOfAll(answers []*answer) expfmt.Format {
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	applications := 0
	for _, a := range answers {
		if a.strict {
			continue
		}
		if applications++; applications > 1 {
			return expfmt.NewFormat(expfmt.TypeTextPlain)
		}
		if a.err == nil && isOpenMetrics(a.format) {
			format = a.format
		}
	}
	return format
}

func (m *merger) writeOwn(w io.Writer, format expfmt.Format) error {
	families, err := prefixed(m.own)
	enc := expfmt.NewEncoder(w, format)
	for _, f := range families {
		err = errors.Join(err, enc.Encode(f))
	}
	return err
}

// note counts a source that failed, and logs when its metrics go missing and when they are back. It is no source's failure that the
// scraper went away or does not read.
func (m *merger) note(scraper context.Context, out *scraperWriter, a *answer) {
	if a.err != nil && (scraper.Err() != nil || out.err != nil) {
		m.log.Debug("scraper went away", "source", a.key.label, "cause", a.err)
		return
	}
	if a.err != nil {
		m.metrics.failures.WithLabelValues(a.key.label).Inc()
	}
	m.mu.Lock()
	was := m.missing[a.key]
	if a.err != nil {
		m.missing[a.key] = true
	} else {
		delete(m.missing, a.key)
	}
	m.mu.Unlock()
	switch {
	case a.err != nil && !was:
		m.log.Warn("metrics missing from the merged ones", "source", a.key.label, "at", a.at(), "cause", a.err)
	case a.err == nil && was:
		m.log.Info("merged metrics complete again", "source", a.key.label, "at", a.at())
	}
}

// scrapeTime is how long a scrape may take, by the scraper's own word in seconds, within bounds.
func scrapeTime(header string) time.Duration {
	seconds, err := strconv.ParseFloat(strings.TrimSpace(header), 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 {
		return defaultScrape
	}
	return time.Duration(min(seconds, longestScrape.Seconds()) * float64(time.Second))
}

func isOpenMetrics(f expfmt.Format) bool {
	return f.FormatType() == expfmt.TypeOpenMetrics
}

// scraperWriter remembers what the scraper costs.
type scraperWriter struct {
	w       io.Writer
	blocked time.Duration // in writes
	err     error         // the first
}

func (s *scraperWriter) Write(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	began := time.Now()
	n, err := s.w.Write(b)
	s.blocked += time.Since(began)
	s.err = err
	return n, err
}
