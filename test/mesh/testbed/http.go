package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"wingman/test/mesh/machine"
)

// Reply is what an HTTP request from a machine got.
type Reply struct {
	Status int
	Body   string
	Header http.Header
}

// Get asks http://host/path from the machine as an application there would: host is looked up by the machine's resolver, and
// the connection goes wherever the capture rules send it.
func (v *VM) Get(ctx context.Context, host, path string) (Reply, error) {
	return browse(ctx, v.Machine, host, path)
}

// Get asks http://host/path from the pod as its application would.
func (p *Pod) Get(ctx context.Context, host, path string) (Reply, error) {
	return browse(ctx, p.Machine, host, path)
}

func browse(ctx context.Context, m *machine.Machine, host, path string) (Reply, error) {
	r, err := lookup(ctx, m, host)
	if err != nil {
		return Reply{}, err
	}
	addr, err := address(r)
	if err != nil {
		return Reply{}, fmt.Errorf("look %s up: %w", host, err)
	}
	return request(ctx, m, net.JoinHostPort(addr, "80"), host, path)
}

// request connects from a machine to an address and asks for a path of a host.
func request(ctx context.Context, m *machine.Machine, address, host, path string) (Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return m.Dial(ctx, network, address)
		},
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return Reply{}, err
	}
	req.Host = host
	res, err := client.Do(req)
	if err != nil {
		return Reply{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return Reply{}, fmt.Errorf("read the answer to %s%s: %w", host, path, err)
	}
	return Reply{res.StatusCode, string(body), res.Header}, nil
}

// get is request for a page that must be there.
func get(t testing.TB, m *machine.Machine, address, host, path string) (string, error) {
	t.Helper()
	r, err := request(t.Context(), m, address, host, path)
	if err != nil {
		return "", err
	}
	if r.Status != http.StatusOK {
		return "", fmt.Errorf("%s%s: status %d: %s", address, path, r.Status, r.Body)
	}
	return r.Body, nil
}
