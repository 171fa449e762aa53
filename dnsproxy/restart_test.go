package dnsproxy

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestARestartLosesNothing hands the same sockets from one server to the next while questions keep coming, as systemd's FD
// store does: promise 2.
func TestARestartLosesNothing(t *testing.T) {
	udp, tcp, err := Listen(loopback)
	if err != nil {
		t.Fatal(err)
	}
	store, err := udp.File()
	if err != nil {
		t.Fatal(err)
	}
	udp.Close()
	defer store.Close()
	defer tcp.Close()
	up := newUpstream(t, zone(t, example))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var asked, lost atomic.Uint64
	var wg sync.WaitGroup
	started := make(chan struct{})
	const clients = 8
	for range clients {
		wg.Go(func() {
			conn, err := net.Dial("udp", tcp.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			buf := make([]byte, 2000)
			for i := 0; ctx.Err() == nil; i++ {
				if asked.Add(1) == 10*clients {
					close(started)
				}
				name, want := "forum", "10.96.72.87"
				if i%2 == 1 {
					name, want = "www.example.com", "192.0.2.80"
				}
				req, err := question(name, dns.TypeA).Pack()
				if err != nil {
					t.Error(err)
				}
				if _, err := conn.Write(req); err != nil {
					t.Error(err)
				}
				if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Error(err)
				}
				n, err := conn.Read(buf)
				if err != nil || !bytes.HasSuffix(buf[:n], netip.MustParseAddr(want).AsSlice()) {
					lost.Add(1)
				}
			}
		})
	}
	const restarts = 50
	for i := range restarts {
		handed, err := net.FilePacketConn(store)
		if err != nil {
			t.Fatal(err)
		}
		s := serve(t, Config{UDP: []*net.UDPConn{handed.(*net.UDPConn)}, TCP: []*net.TCPListener{tcp}, Upstreams: []netip.AddrPort{up.addr}}, forum(t))
		if i == 0 {
			<-started
		}
		exchange(t, s.addr, overTCP, question("forum", dns.TypeA))
		if i == restarts-1 {
			cancel()
			wg.Wait()
		}
		s.stop()
	}
	if lost.Load() > 0 {
		t.Errorf("%d of %d questions lost or answered wrongly over %d restarts", lost.Load(), asked.Load(), restarts-1)
	}
}
