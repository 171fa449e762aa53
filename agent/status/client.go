package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
)

// ErrNotRunning means that no daemon answers at the admin socket.
var ErrNotRunning = errors.New("wingman is not running")

// Client asks the daemon whose admin socket is at the path.
type Client string

// Status fetches the report.
func (c Client) Status(ctx context.Context) (Report, error) {
	var r Report
	return r, c.get(ctx, "/status", nil, &r)
}

// Query asks the daemon's DNS proxy.
func (c Client) Query(ctx context.Context, name, qtype string, explain bool) (DNSAnswer, error) {
	q := url.Values{"name": {name}, "type": {qtype}}
	if explain {
		q.Set("explain", "1")
	}
	var a DNSAnswer
	return a, c.get(ctx, "/dns/query", q, &a)
}

// Table fetches the names of the DNS table that match a glob; "" matches all.
func (c Client) Table(ctx context.Context, match string) ([]DNSName, error) {
	var names []DNSName
	return names, c.get(ctx, "/dns/table", url.Values{"match": {match}}, &names)
}

// HealthHistory copies the last verdicts, a JSON array, into v.
func (c Client) HealthHistory(ctx context.Context, v any) error {
	return c.get(ctx, "/health/history", nil, v)
}

// Renew has the daemon get a new certificate now.
func (c Client) Renew(ctx context.Context) (Report, error) {
	return c.post(ctx, "/cert/renew", nil)
}

// Drain has the daemon take the machine out of load balancing; it returns when peers have heard of it. reason may be empty.
func (c Client) Drain(ctx context.Context, reason string) (Report, error) {
	return c.post(ctx, "/drain", url.Values{"reason": {reason}})
}

// Undrain is the way back.
func (c Client) Undrain(ctx context.Context) (Report, error) { return c.post(ctx, "/undrain", nil) }

// post has the daemon do something; the report is of afterwards.
func (c Client) post(ctx context.Context, path string, q url.Values) (r Report, err error) {
	body, err := c.do(ctx, http.MethodPost, path, q)
	if err != nil {
		return Report{}, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&r); err != nil {
		return Report{}, fmt.Errorf("answer of the daemon: %w", err)
	}
	return r, nil
}

func (c Client) get(ctx context.Context, path string, q url.Values, v any) error {
	body, err := c.do(ctx, http.MethodGet, path, q)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("answer of the daemon: %w", err)
	}
	return nil
}

// do returns the body of a good answer; anything else is an error.
func (c Client) do(ctx context.Context, method, path string, q url.Values) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "wingman", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", string(c))
		},
		DisableKeepAlives: true,
	}
	resp, err := t.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%w (nobody answers at %s): start it with systemctl start wingman", ErrNotRunning, string(c))
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("ask the daemon: %w: run this as root or as a member of the group istio-proxy", err)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("the daemon at %s refused this user: run this as root or as a member of the group istio-proxy", string(c))
	case err != nil:
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return nil, errors.New(strings.TrimSpace(string(why)))
}
