package testbed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
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

// Curl runs the real curl on the machine, as root does in the book.
func (v *VM) Curl(ctx context.Context, url string) (Reply, error) {
	out, err := v.Run(ctx, "/usr/bin/curl", "--silent", "--show-error", "--include", "--raw", "--max-time", "10", url) // raw: ReadResponse takes chunks apart
	if err != nil {
		return Reply{}, err
	}
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(out)), nil)
	if err != nil {
		return Reply{}, fmt.Errorf("read what curl got of %s: %w:\n%s", url, err, out)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return Reply{}, fmt.Errorf("read what curl got of %s: %w:\n%s", url, err, out)
	}
	return Reply{res.StatusCode, string(body), res.Header}, nil
}

// Plain asks http://address/path from outside the mesh: no agent, no Envoy, no TLS. address is an IP address and a port.
func (b *Bed) Plain(ctx context.Context, address, host, path string) (Reply, error) {
	return request(ctx, new(net.Dialer).DialContext, address, host, path)
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
	return request(ctx, m.Dial, net.JoinHostPort(addr, "80"), host, path)
}

// dial connects from somewhere: a machine, or the test's side of the cables.
type dial func(ctx context.Context, network, address string) (net.Conn, error)

// request connects to an address and asks for a path of a host. It has ten seconds, or what ctx gives it.
func request(ctx context.Context, from dial, address, host, path string) (Reply, error) {
	if _, limited := ctx.Deadline(); !limited {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return from(ctx, network, address)
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
	r, err := request(t.Context(), m.Dial, address, host, path)
	if err != nil {
		return "", err
	}
	if r.Status != http.StatusOK {
		return "", fmt.Errorf("%s%s: status %d: %s", address, path, r.Status, r.Body)
	}
	return r.Body, nil
}
