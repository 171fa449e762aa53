package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

const (
	// metadataConnect bounds the connection to a metadata service: where there is none, its link-local address often just stays silent.
	metadataConnect = time.Second
	// metadataAnswer bounds one exchange with it.
	metadataAnswer = 5 * time.Second
	// linkLocal is where every cloud has its metadata service.
	linkLocal = "169.254.169.254"
)

// A metadata asks one metadata service. There is no connection between two questions, no proxy, and no way to another place: a redirect is an error.
type metadata struct {
	base   string // "http://169.254.169.254"
	cloud  string // "GCE", for sentences
	client *http.Client
}

// newMetadata is for host, which is an address with or without a port, or a URL without a path.
func newMetadata(cloud, host string) metadata {
	if !strings.Contains(host, "://") {
		host = "http://" + host
	}
	return metadata{base: strings.TrimRight(host, "/"), cloud: cloud, client: directClient(metadataConnect, metadataAnswer)}
}

// directClient never goes through a proxy, whatever the environment says, and never follows a redirect.
func directClient(connect, total time.Duration) *http.Client {
	return &http.Client{
		Timeout: total,
		Transport: &http.Transport{
			Proxy:                  nil,
			DialContext:            (&net.Dialer{Timeout: connect}).DialContext,
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errRedirect },
	}
}

var errRedirect = errors.New("it sends us elsewhere, which a metadata service never does: is this a captive portal?")

// An answer is one of a metadata service, bounded.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask makes one request. The error is a sentence about the connection; whatever answers is an answer.
func (m metadata) ask(ctx context.Context, method, path string, header map[string]string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.base+path, nil)
	if err != nil {
		return answer{}, fmt.Errorf("the address of %s's metadata service: %w", m.cloud, err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	a, err := exchange(m.client, req)
	if err != nil {
		return answer{}, fmt.Errorf("no answer from a metadata service of %s at %s: %s", m.cloud, hostOf(m.base), plain(err))
	}
	return a, nil
}

// exchange does req and reads its bounded answer.
func exchange(client *http.Client, req *http.Request) (answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxToken+1))
	if err != nil {
		return answer{}, err
	}
	if len(body) > MaxToken {
		return answer{}, fmt.Errorf("it has more than %d kB", MaxToken>>10)
	}
	return answer{status: resp.StatusCode, header: resp.Header, body: body}, nil
}

// plain is err without the URL, which a sentence names already, and without query parameters.
func plain(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		if u.Timeout() {
			return "silence"
		}
		err = u.Err
	}
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "silence"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &op):
		return op.Err.Error()
	}
	return err.Error()
}

func hostOf(base string) string {
	if u, err := url.Parse(base); err == nil {
		return u.Host
	}
	return base
}

// unexpected says what an answer is that is not the one hoped for.
func (a answer) unexpected() string {
	if strings.Contains(a.header.Get("Content-Type"), "html") {
		return fmt.Sprintf("%d with a web page: is this a captive portal, or another cloud?", a.status)
	}
	if a.status != http.StatusOK {
		return fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
	}
	return fmt.Sprintf("%d bytes that are no token", len(a.body))
}

// tokenOf takes text that must be a JWT.
func tokenOf(text string) (Token, bool) {
	text = strings.TrimSpace(text)
	return Token{JWT: Hide(text)}, looksLikeJWT(text)
}

// decode reads JSON, without the decoder's error: it may quote a secret.
func decode(body []byte, into any) bool { return json.Unmarshal(body, into) == nil }
