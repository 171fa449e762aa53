package health

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
)

const (
	userAgent    = "istio-probe/1.0"
	maxRedirects = 10

	// maxBodyLine bounds what a reason quotes of an unhealthy answer, in bytes.
	maxBodyLine = 200
)

// httpCheck asks with one GET over a connection of its own: a kept connection would pass while the application refuses
// new ones.
type httpCheck struct {
	url    url.URL
	host   string // of the request; empty for the URL's
	header http.Header
	client *http.Client
}

func newHTTPCheck(get HTTPGet, defaultHost string) *httpCheck {
	target, err := url.Parse(get.Path)
	if err != nil || target.Host != "" || target.Opaque != "" {
		target = &url.URL{Path: get.Path} // as it stands, like Istio: the application says what it thinks of it
	}
	target.Scheme = strings.ToLower(cmp.Or(get.Scheme, "http"))
	target.Host = net.JoinHostPort(cmp.Or(get.Host, defaultHost), strconv.Itoa(int(get.Port)))
	target.Path = cmp.Or(target.Path, "/")
	target.User, target.Fragment, target.RawFragment = nil, "", ""
	c := &httpCheck{url: *target, header: http.Header{}}
	for _, h := range get.Headers {
		if strings.EqualFold(h[0], "Host") {
			c.host = h[1]
			continue
		}
		c.header.Add(h[0], h[1])
	}
	if _, set := c.header["User-Agent"]; !set {
		c.header.Set("User-Agent", userAgent)
	}
	c.client = &http.Client{
		CheckRedirect: checkRedirect,
		Transport: &http.Transport{ // no Proxy: a probe never leaves through one
			DisableKeepAlives:  true,
			DisableCompression: true,
			ForceAttemptHTTP2:  true,
			// The kubelet does not verify either: the name in the certificate is the service's, not this machine's.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				n, err := strconv.ParseUint(port, 10, 16)
				if err != nil {
					return nil, fmt.Errorf("port %q: %w", port, err)
				}
				return systemDialer.connect(ctx, host, uint16(n))
			},
		},
	}
	return c
}

// checkRedirect follows on the same host and takes a redirect to another one as the answer. Kubernetes
// pkg/probe/http/http.go, RedirectChecker; Istio uses it for the probes that it takes over from the kubelet.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return fmt.Errorf("%d redirects, and no end", maxRedirects)
	}
	return nil
}

func (c *httpCheck) kind() string   { return c.url.Scheme }
func (c *httpCheck) target() string { return "GET " + c.url.Redacted() }

func (c *httpCheck) run(ctx context.Context) error {
	within := allowance(ctx)
	var connected atomic.Bool // set by the goroutine that dials
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		ConnectDone: func(_, _ string, err error) {
			if err == nil {
				connected.Store(true)
			}
		},
	}), http.MethodGet, c.url.String(), nil)
	if err != nil {
		return fmt.Errorf("%s: %w", c.target(), err)
	}
	req.Header = c.header.Clone()
	req.Host = c.host
	resp, err := c.client.Do(req)
	if err != nil {
		at := c.target()
		var byURL *url.Error
		if errors.As(err, &byURL) && byURL.URL != c.url.String() {
			at += ", redirected to " + byURL.URL
		}
		return fmt.Errorf("%s: %s", at, plain(err, within, connected.Load()))
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return nil
	}
	at := c.target()
	if final := resp.Request.URL; final.String() != c.url.String() {
		at += ", redirected to " + final.Redacted()
	}
	return fmt.Errorf("%s: %s%s", at, resp.Status, firstLine(resp.Body))
}

// firstLine quotes the first line of an answer that has text in it: often it says what is wrong.
func firstLine(body io.Reader) string {
	lines := bufio.NewScanner(io.LimitReader(body, 4*maxBodyLine))
	for lines.Scan() {
		if line := oneLine(lines.Text()); line != "" {
			return ": " + clip(line, maxBodyLine)
		}
	}
	return ""
}
