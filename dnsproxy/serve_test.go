package dnsproxy

import (
	"context"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// late serves one more pair of sockets; end waits for Serve to return.
func late(t *testing.T, s *testServer, ctx context.Context) (addr string, end func() error) {
	t.Helper()
	udp, tcp, err := Listen(netip.MustParseAddrPort("127.0.0.2:0"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	addr = udp.LocalAddr().String()
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	return addr, func() error { return <-done }
}

// asked is the error of a question that the server answers by itself.
func asked(network, addr string) error {
	c := dns.Client{Net: network, Timeout: patience}
	q := new(dns.Msg)
	q.SetQuestion("alive.wingman.invalid.", dns.TypeTXT)
	q.Question[0].Qclass = dns.ClassCHAOS
	_, _, err := c.Exchange(q, addr)
	return err
}

func TestServeAnswersOnMoreSocketsUntilItsOwnEnd(t *testing.T) {
	s := serve(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addr, end := late(t, s, ctx)
	for _, network := range []string{"udp", "tcp"} {
		if err := asked(network, addr); err != nil {
			t.Errorf("no answer by %s on the socket that came later: %v", network, err)
		}
	}
	cancel()
	if err := end(); err != nil {
		t.Errorf("Serve = %v, want nil after its context ended", err)
	}
	if err := asked("tcp", addr); err == nil {
		t.Error("the socket is still served after its end")
	}
	if err := asked("udp", s.addr.String()); err != nil {
		t.Errorf("the others went with it: %v", err)
	}
}

func TestServeEndsWithRun(t *testing.T) {
	s := serve(t, Config{})
	addr, end := late(t, s, t.Context())
	if err := asked("udp", addr); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := end(); err != nil {
		t.Errorf("Serve = %v, want nil when Run ends", err)
	}
	_, end = late(t, s, t.Context())
	if err := end(); err != nil {
		t.Errorf("Serve after Run = %v, want nil at once", err)
	}
}
