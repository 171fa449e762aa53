package status

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap"
)

func TestMergeStreamsEnvoy(t *testing.T) {
	line := "envoy_x{a=\"" + strings.Repeat("b", 100) + "\"} 1\n"
	part := strings.Repeat(line, 200_000/len(line))
	arrived := make(chan struct{})
	m := newMerged(t, Sources{Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
		says("text/plain", part)(w, r)
		http.NewResponseController(w).Flush()
		select {
		case <-arrived:
		case <-r.Context().Done(): // the time-out: nothing came through
		}
		io.WriteString(w, "envoy_last 1\n")
	})})
	res := m.get(t.Context(), t)
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, len(part)/2)); err != nil {
		t.Fatal(err)
	}
	close(arrived)
	rest, err := io.ReadAll(res.Body)
	if err != nil || !strings.HasSuffix(string(rest), line+"envoy_last 1\n") {
		t.Errorf("the rest is %v and ends %q", err, rest[max(0, len(rest)-200):])
	}
}

// twentyMegabytes answers as an Envoy with ten thousand clusters.
func twentyMegabytes(w http.ResponseWriter, _ *http.Request) {
	chunk := []byte(strings.Repeat(`envoy_cluster_upstream_rq_total{cluster_name="outbound|80||webapp.istioinaction.svc.cluster.local"} 1`+"\n", 1<<9))
	w.Header().Set("Content-Type", "text/plain")
	for sent := 0; sent < 20<<20; sent += len(chunk) {
		w.Write(chunk)
	}
}

func TestMergeNeedsLittleMemory(t *testing.T) {
	m := newMerged(t, Sources{Envoy: serveOn(t, twentyMegabytes)})
	one := func() int64 {
		res := m.get(t.Context(), t)
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	one()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := one()
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; n < 20<<20 || allocated > 2<<20 {
		t.Errorf("%d bytes were passed on for %d bytes of memory, scraper and Envoy included; want at least 20 MiB for at most 2", n, allocated)
	}
}

func BenchmarkMergeTwentyMegabytes(b *testing.B) {
	m := newMerged(b, Sources{Envoy: serveOn(b, twentyMegabytes)})
	b.ReportAllocs()
	for b.Loop() {
		res := m.get(b.Context(), b)
		n, err := io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}

// A scraper that went away is waited for by nobody, and is nobody's failure.
func TestMergeEndsWithItsScraper(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan struct{})
	m := newMerged(t, Sources{Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
		close(ended)
	})})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set(timeoutHeader, "60")
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			t.Error("an answer came before the scraper went away")
		}
	}()
	<-asked
	cancel()
	<-done
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the source's request outlives the scraper's")
	}
	m.awaitIdle()
	if m.failures() != [3]float64{} || m.log.String() != "" {
		t.Errorf("failures %v, logged %q, want none", m.failures(), m.log)
	}
}

// awaitIdle returns when no scrape is under way.
func (m *merged) awaitIdle() {
	for range cap(m.slots) {
		m.slots <- struct{}{}
	}
	for range cap(m.slots) {
		<-m.slots
	}
}

// A scraper that does not read holds nobody for longer than its time, and is nobody's failure.
func TestMergeIsNotHeldByASlowScraper(t *testing.T) {
	m := newMerged(t, Sources{Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("envoy_x 1\n", 1000)); err != nil {
				return
			}
		}
	})})
	res := m.get(t.Context(), t, timeoutHeader, "2")
	defer res.Body.Close()
	m.awaitIdle()
	if m.failures() != [3]float64{} || m.log.String() != "" {
		t.Errorf("failures %v, logged %q, want none", m.failures(), m.log)
	}
}

// slowScraper takes nothing until released.
type slowScraper struct {
	*httptest.ResponseRecorder
	released <-chan struct{}
}

func (s slowScraper) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("envoy_x")) {
		<-s.released
	}
	return s.ResponseRecorder.Write(b)
}

// Nor is it Envoy's failure when a scraper is just slow, so that Envoy's time passes while it reads.
func TestMergeBlamesASlowScraper(t *testing.T) {
	ended := make(chan struct{})
	m := newMerged(t, Sources{Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
		says("text/plain", "envoy_x 1\n")(w, r)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	}), Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says("text/plain", appBody)))}})
	r := httptest.NewRequest(http.MethodGet, "/stats/prometheus", nil)
	r.Header.Set(timeoutHeader, "2")
	w := slowScraper{httptest.NewRecorder(), ended}
	m.ServeHTTP(w, r)
	if m.failures() != [3]float64{} || m.log.String() != "" || !strings.HasSuffix(w.Body.String(), "envoy_x 1\n"+appBody) {
		t.Errorf("failures %v, logged %q, want none; body\n%s", m.failures(), m.log, w.Body)
	}
}

// However long Envoy takes, an application has time for more than what fits into sockets.
func TestMergeSharesTime(t *testing.T) {
	big := strings.Repeat("forum_posts{a=\""+strings.Repeat("b", 2000)+"\"} 1\n", 5000)
	share := func(t *testing.T, first string) {
		t.Parallel()
		m := newMerged(t, Sources{
			Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
				if first != "" {
					says("text/plain", first)(w, r)
					http.NewResponseController(w).Flush()
				}
				<-r.Context().Done()
			}),
			Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says("text/plain", big)))},
		})
		body, _ := m.scrape(t, timeoutHeader, "10") // half of that is the application's: it has to come through on a loaded machine, too
		if !strings.HasSuffix(body, first+big) {
			t.Errorf("the application's metrics suffered: %d bytes of %d came; %s", len(body), len(big), m.log)
		}
	}
	t.Run("an Envoy that says nothing", func(t *testing.T) { share(t, "") })
	t.Run("an Envoy that stops", func(t *testing.T) { share(t, "envoy_x 1\n") })
}

func TestMergeRefusesACrowd(t *testing.T) {
	m := newMerged(t, Sources{})
	for range cap(m.slots) {
		m.slots <- struct{}{}
	}
	res := m.get(t.Context(), t)
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one scrape too many = %s, want 503", res.Status)
	}
	<-m.slots
	m.scrape(t)
	if len(m.slots) != cap(m.slots)-1 {
		t.Errorf("%d slots taken after the scrape, want %d", len(m.slots), cap(m.slots)-1)
	}
}
