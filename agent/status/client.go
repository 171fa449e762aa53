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
	"time"
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

// Process returns the number of the process that serves the socket, also of one that hangs: who is to signal it as root goes by the kernel's word, as an
// answer could name any process. The error wraps ErrNotRunning when there is none.
func (c Client) Process(ctx context.Context) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", string(c))
	if err != nil {
		return 0, c.explain(err)
	}
	defer conn.Close()
	cred, err := peer(conn.(*net.UnixConn))
	if err == nil && cred.Pid <= 0 {
		err = errors.New("it is of another PID namespace")
	}
	if err != nil {
		return 0, fmt.Errorf("learn which process is behind %s: %w", string(c), err)
	}
	return int(cred.Pid), nil
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

// answerMost is how long a question may take: more than the DNS proxy gives its upstreams.
const answerMost = 15 * time.Second

// get asks something that changes nothing, and does not wait for a daemon that hangs.
func (c Client) get(ctx context.Context, path string, q url.Values, v any) error {
	return c.getWithin(ctx, answerMost, path, q, v)
}

func (c Client) getWithin(ctx context.Context, most time.Duration, path string, q url.Values, v any) error {
	hangs := fmt.Errorf("the daemon at %s has not answered within %s: it hangs, or the machine is too busy; systemd ends one that hangs by itself (journalctl -u wingman)", string(c), most)
	ctx, cancel := context.WithTimeoutCause(ctx, most, hangs)
	defer cancel()
	body, err := c.do(ctx, http.MethodGet, path, q)
	if err == nil {
		defer body.Close()
		if err = json.NewDecoder(body).Decode(v); err != nil {
			err = fmt.Errorf("answer of the daemon: %w", err)
		}
	}
	if err != nil && context.Cause(ctx) == hangs {
		return hangs
	}
	return err
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
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return nil, errors.New(strings.TrimSpace(string(why)))
}

// explain says what an error on the way to the daemon means.
func (c Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nobody answers at %s): start it with systemctl start wingman", ErrNotRunning, string(c))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("ask the daemon: %w: run this as root or as a member of the group istio-proxy", err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the daemon at %s refused this user: run this as root or as a member of the group istio-proxy", string(c))
	}
	return fmt.Errorf("ask the daemon: %w", err)
}
