package status

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/common/expfmt"
)

// source is one whose metrics are merged.
type source struct {
	key  sourceKey
	path string // and query
	// accept is what may be answered. Envoy would send protocol buffers to a Prometheus that asks for them.
	accept string
	// strict sources must say that they answer in text, and their lines are not looked at: Envoy's are many, and well formed.
	strict bool
}

// at is where a source is asked.
func (s source) at() string {
	if s.key.port == 0 {
		return "here"
	}
	return "http://localhost:" + strconv.Itoa(int(s.key.port)) + s.path
}

// sourceKey tells sources apart from one scrape to the next.
type sourceKey struct {
	label  string // of the failure metric
	port   uint16
	target string // path of an application
}

// answer is what a source said so far. close must be called.
type answer struct {
	source
	format expfmt.Format // "" with err
	err    error         // nil, or why the source's metrics are missing
	body   io.ReadCloser // nil with err
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer // cancels ctx
}

func (a *answer) close() {
	a.timer.Stop()
	a.cancel(nil)
	if a.body != nil {
		a.body.Close()
	}
}

// errLate ends an exchange with a source that takes too long.
var errLate = errors.New("took too long")

// ask sends a source the request and waits for the header of its answer, at most wait. from is the scraper's request: its end ends
// this one too, and its User-Agent is passed on.
func (m *merger) ask(from *http.Request, s source, wait time.Duration) *answer {
	a := &answer{source: s}
	a.ctx, a.cancel = context.WithCancelCause(from.Context())
	a.timer = time.AfterFunc(wait, func() { a.cancel(errLate) })
	a.err = a.begin(m, from, wait)
	a.timer.Stop() // others may take their time now
	return a
}

func (a *answer) begin(m *merger, from *http.Request, wait time.Duration) error {
	req, err := http.NewRequestWithContext(a.ctx, http.MethodGet, a.at(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", a.accept)
	req.Header.Set("Accept-Encoding", "identity") // on loopback packing costs more than it saves
	req.Header.Set("User-Agent", from.Header.Get("User-Agent"))
	req.Header.Set(timeoutHeader, strconv.FormatFloat(wait.Seconds(), 'f', 3, 64))
	req.Header.Set("Via", m.via)
	res, err := m.client.Do(req)
	if err != nil {
		return a.cause(err)
	}
	a.body = res.Body
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("answers %s", res.Status)
	}
	if a.format, err = formatOf(res.Header); err != nil {
		return err
	}
	if a.strict && !isText(res.Header) {
		return fmt.Errorf("answers with Content-Type %q: is that Envoy?", res.Header.Get("Content-Type"))
	}
	return nil
}

// pass writes the body to w, in at most the time left to it.
func (a *answer) pass(w io.Writer, openMetrics bool, left time.Duration) error {
	if isOpenMetrics(a.format) != openMetrics && !a.strict {
		return fmt.Errorf("answers in the format %q, expected text: several applications are merged as text only", a.format)
	}
	a.timer.Reset(left)
	check := lineCheck(openMetrics)
	if a.strict {
		check = nil
	}
	err := copyLines(w, a.body, check)
	if err == nil || errors.Is(err, errSink) {
		return err
	}
	return a.cause(err)
}

// cause prefers why an exchange was ended to how that looked, and leaves out what the log says anyway.
func (a *answer) cause(err error) error {
	var wrapped *url.Error
	switch {
	case context.Cause(a.ctx) == errLate:
		return errLate
	case errors.As(err, &wrapped):
		return wrapped.Err
	}
	return err
}

// newScraper makes the client that asks sources. It speaks to loopback alone, whatever a name or a redirect says, and to the same
// port: what an application answers must not lead this process, whose traffic is not captured, anywhere else.
func newScraper() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialLoopback,
			// A connection for each scrape: one kept open would outlive the program it leads to.
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			host := req.URL.Hostname()
			if ip := net.ParseIP(host); len(via) > 3 || req.URL.Scheme != "http" || req.URL.Port() != via[0].URL.Port() || host != "localhost" && !ip.IsLoopback() {
				return fmt.Errorf("leads on to %.200q", req.URL)
			}
			return nil
		},
	}
}

// dialLoopback connects to a port of this machine, on 127.0.0.1 or, where nobody listens there, on ::1.
func dialLoopback(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil || ctx.Err() != nil {
		return c, err
	}
	if c, err6 := d.DialContext(ctx, network, net.JoinHostPort("::1", port)); err6 == nil {
		return c, nil
	}
	return nil, err
}

// sourcesOf lists whom a scrape asks, in the order of the answer: Envoy, then the applications. An application alone may answer with
// OpenMetrics, which then is the format of the whole, as pilot-agent has it; several must all answer with text.
func sourcesOf(s Sources, from *http.Request) (list []source) {
	if s.Envoy != 0 {
		path := "/stats/prometheus"
		if from.URL.RawQuery != "" {
			path += "?" + from.URL.RawQuery // Envoy's own filters, as usedonly
		}
		list = append(list, source{key: sourceKey{label: sourceEnvoy, port: s.Envoy}, path: path, accept: text004, strict: true})
	}
	for _, t := range s.Applications {
		list = append(list, source{
			key:    sourceKey{label: sourceApplication, port: t.Port, target: t.Path},
			path:   t.Path,
			accept: acceptFor(from.Header.Get("Accept"), len(s.Applications) == 1),
		})
	}
	return list
}
