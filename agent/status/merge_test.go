package status

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"wingman/bootstrap"
	"wingman/test/freeport"
)

func TestMergeHasAllInOrder(t *testing.T) {
	m := newMerged(t, Sources{
		Envoy: serveOn(t, says("text/plain; charset=UTF-8", strings.TrimSuffix(envoyBody, "\n"))),
		Applications: []bootstrap.ScrapeTarget{
			app(serveOn(t, says("text/plain; version=0.0.4", strings.TrimSuffix(appBody, "\n")+"\n# EOF"))),
			app(serveOn(t, says("text/plain", "# TYPE go_goroutines gauge\ngo_goroutines 99"))),
		},
	})
	body, contentType := m.scrape(t)
	if !strings.HasPrefix(contentType, "text/plain; version=0.0.4") {
		t.Errorf("Content-Type %q, want text 0.0.4", contentType)
	}
	ownBody, rest, ok := strings.Cut(body, "# TYPE envoy_server_live")
	if want := envoyBody + appBody + "# TYPE go_goroutines gauge\ngo_goroutines 99\n"; !ok || "# TYPE envoy_server_live"+rest != want {
		t.Errorf("after our own stands\n%s\nwant\n%s", "# TYPE envoy_server_live"+rest, want)
	}
	for _, want := range []string{"wingman_test 1\n", "wingman_go_goroutines 2\n", "wingman_status_scrapes_total 1\n", `wingman_status_scrape_failures_total{source="envoy"} 0` + "\n"} {
		if !strings.Contains(ownBody, want) {
			t.Errorf("our own metrics lack %q:\n%s", want, ownBody)
		}
	}
	parses(t, body)
	if m.failures() != [3]float64{} || m.log.String() != "" {
		t.Errorf("failures %v, logged %q, want none", m.failures(), m.log)
	}
}

// The scrape that misses Envoy says so itself.
func TestMergeCountsWhatIsMissingAtOnce(t *testing.T) {
	m := newMerged(t, Sources{Envoy: freeport.Port()})
	if body, _ := m.scrape(t); !strings.Contains(body, `wingman_status_scrape_failures_total{source="envoy"} 1`+"\n") {
		t.Errorf("the failure is not counted in\n%s", body)
	}
}

// Whatever a source does, the others' metrics come, the whole can be read, and the right one is counted.
func TestMergeOutlivesItsSources(t *testing.T) {
	hang := func(t *testing.T, first string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if first != "" {
				w.Header().Set("Content-Type", "text/plain")
				io.WriteString(w, first)
				http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		}
	}
	breaksOff := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "whole_line 1\nhalf_line{a=\"b")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for _, tc := range []struct {
		name       string
		source     http.HandlerFunc // nil: nobody listens
		part       string           // of its metrics that come all the same
		onlyApp    bool             // Envoy may do this
		wantCause  string           // as an application
		envoyCause string           // as Envoy; empty: the same
	}{
		{"nobody there", nil, "", false, "connection refused", ""},
		{"an error of its own", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "oops", 500) }, "", false, "answers 500 Internal Server Error", ""},
		{"a page", says("text/html", "<html>hello</html>"), "", false, `a line that is no metric: \"<html>hello</html>\"`, "is that Envoy?"},
		{"a word", says("text/plain", "OK"), "", true, `a line that is no metric: \"OK\"`, ""},
		{"JSON", says("application/json", `{"up": 1}`), "", false, "a line that is no metric", "is that Envoy?"},
		{"protocol buffers", says("application/vnd.google.protobuf", "\x01\x02"), "", false, "expected Prometheus' text", ""},
		{"gzip unasked", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "\x1f\x8b")
		}, "", false, "Content-Encoding", ""},
		{"a way elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/metrics", http.StatusFound)
		}, "", false, "leads on to", ""},
		{"a way to another port", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://localhost:1/stats/prometheus", http.StatusFound)
		}, "", false, "leads on to", ""},
		{"a way to the same port of another machine", func(w http.ResponseWriter, r *http.Request) {
			if r.Host[:4] == "192." {
				says("text/plain", "elsewhere 1\n")(w, r)
				return
			}
			_, port, _ := net.SplitHostPort(r.Host)
			http.Redirect(w, r, "http://192.0.2.1:"+port+"/metrics", http.StatusFound)
		}, "", false, "leads on to", ""},
		{"a way in a circle", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "", false, "leads on to", ""},
		{"no answer", hang(t, ""), "", false, "took too long", ""},
		{"no end", hang(t, "whole_line 1\nhalf_line{"), "whole_line 1\n", false, "took too long", ""},
		{"a connection that breaks off", breaksOff, "whole_line 1\n", false, "unexpected EOF", ""},
		{"a bad line in the middle", says("text/plain", "whole_line 1\n}\nmore 1\n"), "whole_line 1\n", true, "a line that is no metric", ""},
		{"an endless line", says("text/plain", "whole_line 1\n"+strings.Repeat("x", 2*maxLine)), "whole_line 1\n", false, "a line of more than 64 KiB", ""},
	} {
		for _, asEnvoy := range []bool{false, true} {
			if asEnvoy && tc.onlyApp {
				continue
			}
			name, label, counted, cause := tc.name+" as an application", "application", [3]float64{0, 0, 2}, tc.wantCause
			if asEnvoy {
				name, label, counted = tc.name+" as Envoy", "envoy", [3]float64{0, 2, 0}
				if tc.envoyCause != "" {
					cause = tc.envoyCause
				}
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				port := freeport.Port()
				if tc.source != nil {
					port = serveOn(t, tc.source)
				}
				s := Sources{Envoy: port, Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says("text/plain", appBody)))}}
				good := appBody
				if !asEnvoy {
					good = envoyBody
					s = Sources{Envoy: serveOn(t, says("text/plain", envoyBody)), Applications: []bootstrap.ScrapeTarget{app(port)}}
				}
				m := newMerged(t, s)
				patience := "30"
				if cause == errLate.Error() {
					patience = "2"
				}
				for range 2 {
					body, _ := m.scrape(t, timeoutHeader, patience)
					parses(t, body)
					for _, want := range []string{"wingman_test 1\n", good, tc.part} {
						if !strings.Contains(body, want) {
							t.Errorf("%q is missing from\n%s", want, body)
						}
					}
					if strings.Contains(body, "half_line") {
						t.Errorf("half a line came through:\n%s", body)
					}
				}
				if m.failures() != counted {
					t.Errorf("failures of agent, envoy, application %v, want %v", m.failures(), counted)
				}
				logged := m.log.String()
				if strings.Count(logged, "\n") != 1 || !strings.HasPrefix(logged, `level=WARN msg="metrics missing from the merged ones" source=`+label+" ") || !strings.Contains(logged, cause) {
					t.Errorf("logged %q, want one line with %q", logged, cause)
				}
			})
		}
	}
}

func TestMergeLogsTransitions(t *testing.T) {
	var down bool
	m := newMerged(t, Sources{Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		says("text/plain", envoyBody)(w, r)
	})})
	for _, down = range []bool{false, true, true, false, false, true} {
		m.scrape(t)
	}
	var levels []string
	for line := range strings.Lines(m.log.String()) {
		level, _, _ := strings.Cut(line, " ")
		levels = append(levels, level)
	}
	if want := []string{"level=WARN", "level=INFO", "level=WARN"}; !slices.Equal(levels, want) {
		t.Errorf("logged %v, want %v:\n%s", levels, want, m.log)
	}
	if m.failures() != [3]float64{0, 3, 0} {
		t.Errorf("failures %v, want 3 of envoy: each is counted", m.failures())
	}
}

// What goes on to sources, and what does not.
func TestMergeAsksAsTheScraperDoes(t *testing.T) {
	var envoy, application http.Header
	var envoyURL, applicationURL string
	m := newMerged(t, Sources{
		Envoy: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
			envoy, envoyURL = r.Header, r.URL.String()
			says("text/plain", envoyBody)(w, r)
		}),
		Applications: []bootstrap.ScrapeTarget{{Path: "/actuator?x=1", Port: serveOn(t, func(w http.ResponseWriter, r *http.Request) {
			application, applicationURL = r.Header, r.URL.String()
			says("text/plain", appBody)(w, r)
		})}},
	})
	m.url += "/stats/prometheus?usedonly"
	m.scrape(t, "Accept", "application/vnd.google.protobuf;q=0.9,application/openmetrics-text;version=1.0.0;q=0.5", "User-Agent", "Prometheus/3",
		"Accept-Encoding", "gzip", timeoutHeader, "4", "Authorization", "secret", "Cookie", "secret")
	if envoyURL != "/stats/prometheus?usedonly" || applicationURL != "/actuator?x=1" {
		t.Errorf("asked for %s and %s", envoyURL, applicationURL)
	}
	for name, h := range map[string]http.Header{"envoy": envoy, "application": application} {
		if h.Get("User-Agent") != "Prometheus/3" || h.Get("Accept-Encoding") != "identity" || h.Get("Via") == "" || h.Get("Authorization")+h.Get("Cookie") != "" {
			t.Errorf("%s was asked with %v", name, h)
		}
		if got, err := strconv.ParseFloat(h.Get(timeoutHeader), 64); err != nil || got <= 0 || got > 1.8 { // half of 4 s less the reserve
			t.Errorf("%s was given %v s, want up to 1.8", name, got)
		}
	}
	if envoy.Get("Accept") != text004 {
		t.Errorf("envoy was asked for %q, want text alone", envoy.Get("Accept"))
	}
	if want := "application/openmetrics-text;version=1.0.0;q=0.5," + text004 + ";q=0.1"; application.Get("Accept") != want {
		t.Errorf("the application was asked for %q, want %q", application.Get("Accept"), want)
	}
}

const openMetricsBody = "# TYPE forum_posts counter\nforum_posts_total 7 # {trace_id=\"x\"} 1 1.5\n# EOF\n"

// An application's exemplars come through, and its end is the end of all.
func TestMergeTakesOverOpenMetrics(t *testing.T) {
	const contentType = "application/openmetrics-text; version=1.0.0; charset=utf-8"
	s := Sources{
		Envoy:        serveOn(t, says("text/plain", envoyBody)),
		Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says(contentType, openMetricsBody+"behind_the_end 1\n")))},
	}
	m := newMerged(t, s)
	body, got := m.scrape(t)
	if got != contentType {
		t.Errorf("Content-Type %q, want %q", got, contentType)
	}
	if !strings.HasSuffix(body, envoyBody+strings.TrimSuffix(openMetricsBody, "# EOF\n")+"behind_the_end 1\n# EOF\n") || strings.Count(body, "# EOF") != 1 {
		t.Errorf("want one mark, at the end:\n%s", body)
	}
	if !strings.Contains(body, "# TYPE wingman_status_scrapes counter\nwingman_status_scrapes_total 1.0\n") {
		t.Errorf("our own are not OpenMetrics:\n%s", body)
	}

	// Text and OpenMetrics do not mix.
	s.Applications = append(s.Applications, app(serveOn(t, says("text/plain", appBody))))
	m = newMerged(t, s)
	body, got = m.scrape(t)
	if !strings.HasPrefix(got, "text/plain") || strings.Contains(body, "trace_id") || !strings.HasSuffix(body, envoyBody+appBody) {
		t.Errorf("with a second application: %s\n%s", got, body)
	}
	parses(t, body)
	if m.failures() != [3]float64{0, 0, 1} || !strings.Contains(m.log.String(), "several applications are merged as text only") {
		t.Errorf("failures %v, logged %s", m.failures(), m.log)
	}

	// An OpenMetrics that breaks off still ends, or Prometheus would throw away all of it.
	m = newMerged(t, Sources{Applications: []bootstrap.ScrapeTarget{app(serveOn(t, says(contentType, "good 1\nbad\n")))}})
	if body, _ = m.scrape(t); !strings.HasSuffix(body, "good 1\n# EOF\n") {
		t.Errorf("an OpenMetrics that breaks off ends\n%s", body)
	}
}

// An application that shows what it gets from here does not make the agent ask itself for ever.
func TestMergeBreaksLoops(t *testing.T) {
	var m *merged
	loop := func(w http.ResponseWriter, r *http.Request) {
		to, err := url.Parse(m.url)
		if err != nil {
			t.Error(err)
			return
		}
		httputil.NewSingleHostReverseProxy(to).ServeHTTP(w, r)
	}
	m = newMerged(t, Sources{Applications: []bootstrap.ScrapeTarget{app(serveOn(t, loop))}})
	body, _ := m.scrape(t)
	if !strings.Contains(body, "wingman_status_scrapes_total 1\n") || m.failures() != [3]float64{0, 0, 1} || !strings.Contains(m.log.String(), "508 Loop Detected") {
		t.Errorf("failures %v, logged %s\n%s", m.failures(), m.log, body)
	}
}

func TestMergeFollowsTheApplication(t *testing.T) {
	for _, tc := range []struct{ name, listen, location string }{
		{"to a path with a slash", "127.0.0.1:0", "/metrics/"},
		{"to its own full address", "127.0.0.1:0", "http://localhost:PORT/metrics/"},
		{"on IPv6 alone", "[::1]:0", "/metrics/"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := net.Listen("tcp", tc.listen)
			if err != nil {
				t.Skipf("no such loopback address here: %v", err)
			}
			port := netip.MustParseAddrPort(l.Addr().String()).Port()
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/metrics" {
					http.Redirect(w, r, strings.Replace(tc.location, "PORT", fmt.Sprint(port), 1), http.StatusTemporaryRedirect)
					return
				}
				says("text/plain", appBody)(w, r)
			}))
			s.Listener.Close()
			s.Listener = l
			s.Start()
			t.Cleanup(s.Close)
			m := newMerged(t, Sources{Applications: []bootstrap.ScrapeTarget{app(port)}})
			if body, _ := m.scrape(t); !strings.HasSuffix(body, appBody) {
				t.Errorf("the application's metrics are missing: %s\n%s", m.log, body)
			}
		})
	}
}

// brokenCollector has only errors to tell.
type brokenCollector struct{}

func (brokenCollector) Describe(chan<- *prometheus.Desc) {}

func (brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("wingman_broken", "", nil, nil), io.ErrUnexpectedEOF)
}

// Half of our own metrics are better than none.
func TestMergeOutlivesItsOwnCollector(t *testing.T) {
	own := prometheus.NewRegistry()
	own.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "wingman_test"}, func() float64 { return 1 }))
	own.MustRegister(brokenCollector{})
	m := newMerger(own, Merge{Sources: func() Sources { return Sources{Envoy: serveOn(t, says("text/plain", envoyBody))} }})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/stats/prometheus", nil))
	if body := w.Body.String(); !strings.Contains(body, "wingman_test 1\n"+envoyBody) {
		t.Errorf("want what could be gathered:\n%s", body)
	}
	if n := value(m.metrics.failures.WithLabelValues(sourceAgent)); n != 1 {
		t.Errorf("%v failures of the agent, want 1", n)
	}
}

func TestPublicServesMetrics(t *testing.T) {
	own := prometheus.NewRegistry()
	local := true
	p := NewPublic("", func() []string { return nil }, own, Merge{LocalhostOnly: func() bool { return local }, Metrics: own})
	ask := func(path, from string) int {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", path, nil)
		r.RemoteAddr = from
		p.server.Handler.ServeHTTP(w, r)
		return w.Code
	}
	for _, tc := range []struct {
		path, from string
		local      bool
		want       int
	}{
		{"/stats/prometheus", "10.0.0.1:1", false, 200},
		{"/metrics", "10.0.0.1:1", false, 200},
		{"/stats/prometheus", "10.0.0.1:1", true, 403},
		{"/metrics", "10.0.0.1:1", true, 403},
		{"/stats/prometheus", "127.0.0.1:1", true, 200},
		{"/metrics", "[::1]:1", true, 200},
		{"/healthz/ready", "10.0.0.1:1", true, 200},
	} {
		if local = tc.local; ask(tc.path, tc.from) != tc.want {
			t.Errorf("%s from %s, for this machine alone %v = %d, want %d", tc.path, tc.from, local, ask(tc.path, tc.from), tc.want)
		}
	}
}
