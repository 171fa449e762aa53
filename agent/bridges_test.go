package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"wingman/bootstrap"
	"wingman/iptables"
	"wingman/test/freeport"
)

func TestBridgeAddrs(t *testing.T) {
	addrs := map[string][]netip.Addr{
		"docker0": {netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("fd00:17::1"), netip.MustParseAddr("fe80::1")},
		"podman0": {netip.MustParseAddr("10.88.0.1")},
		"lo":      {netip.MustParseAddr("127.0.0.1")},
	}
	wish := func(level iptables.Level, change func(*bootstrap.Config)) captureWish {
		cfg := &bootstrap.Config{}
		cfg.DNS.Listen = netip.MustParseAddrPort("127.0.0.1:15053")
		cfg.Capture = bootstrap.Capture{DNS: true, DNSPort: 15053, VirtualInterfaces: []string{"docker0", "podman0"}}
		if change != nil {
			change(cfg)
		}
		return captureWish{decision: decision{level: level}, cfg: cfg}
	}
	tests := []struct {
		name string
		wish captureWish
		want []string
	}{
		{"nothing captured, nothing to answer", wish(iptables.LevelNone, nil), nil},
		{"before the first decision", captureWish{}, nil},
		{"each bridge at its own address", wish(iptables.LevelDNS, nil), []string{"172.17.0.1:15053", "10.88.0.1:15053"}},
		{"IPv6 with dual stack, and none that needs a zone", wish(iptables.LevelAll, func(c *bootstrap.Config) { c.Capture.DualStack = true }),
			[]string{"172.17.0.1:15053", "[fd00:17::1]:15053", "10.88.0.1:15053"}},
		{"a bridge that is not there yet", wish(iptables.LevelDNS, func(c *bootstrap.Config) { c.Capture.VirtualInterfaces = []string{"virbr0"} }), nil},
		{"DNS is not captured", wish(iptables.LevelAll, func(c *bootstrap.Config) { c.Capture.DNS = false }), nil},
		{"the address is served already", wish(iptables.LevelDNS, func(c *bootstrap.Config) { c.Capture.VirtualInterfaces = []string{"lo"} }), nil},
		{"every address is served already", wish(iptables.LevelDNS, func(c *bootstrap.Config) { c.DNS.Listen = netip.MustParseAddrPort("0.0.0.0:15053") }), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, a := range bridgeAddrs(tt.wish, func(name string) []netip.Addr { return addrs[name] }) {
				got = append(got, a.String())
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// fakeServe is a DNS server that only says which addresses it serves.
type fakeServe struct{ began, ended chan string }

func (f fakeServe) serve(ctx context.Context, udp *net.UDPConn, tcp *net.TCPListener) error {
	defer udp.Close()
	defer tcp.Close()
	at := udp.LocalAddr().String()
	f.began <- at
	<-ctx.Done()
	f.ended <- at
	return nil
}

func newBridges(handed map[string][]*os.File) (*bridges, *memoryStore, fakeServe) {
	store, f := &memoryStore{}, fakeServe{make(chan string, 4), make(chan string, 4)}
	return &bridges{log: slog.New(slog.DiscardHandler), store: store, handed: handed, serve: f.serve,
		serving: map[netip.AddrPort]func(){}, said: map[netip.AddrPort]string{}}, store, f
}

func TestBridgesAreFollowedAsTheyComeAndGo(t *testing.T) {
	b, store, f := newBridges(nil)
	at := freeport.Addr()
	b.follow(t.Context(), []netip.AddrPort{at})
	if got := <-f.began; got != at.String() {
		t.Errorf("%s is served, want %s", got, at)
	}
	b.follow(t.Context(), []netip.AddrPort{at}) // nothing new
	if len(b.serving) != 1 || !slices.Equal(store.stored, []string{"bridge-udp-127.0.0.1", "bridge-tcp-127.0.0.1"}) {
		t.Errorf("%d served, stored %v; want one pair", len(b.serving), store.stored)
	}
	b.follow(t.Context(), nil)
	select {
	case <-f.ended:
	case <-time.After(10 * time.Second):
		t.Fatal("a bridge that has gone is still served")
	}
	if !slices.Equal(store.removed, []string{"bridge-udp-127.0.0.1", "bridge-tcp-127.0.0.1"}) {
		t.Errorf("removed %v from the store, want the pair", store.removed)
	}
}

func TestASocketOfABridgeIsTakenOverFromTheProcessBefore(t *testing.T) {
	files, at := handedIn(t, "127.0.0.1:0", "bridge-udp-127.0.0.1", "bridge-tcp-127.0.0.1")
	files["dns-udp4"] = nil
	files["bridge-udp-172.17.0.1"] = nil // of a bridge that is not there any more
	own, ofBridges := splitBridges(files)
	if _, ok := own["dns-udp4"]; !ok || len(own) != 1 || len(ofBridges) != 3 {
		t.Fatalf("split into %v and %v", own, ofBridges)
	}
	b, store, f := newBridges(ofBridges)
	b.follow(t.Context(), []netip.AddrPort{at})
	if got := <-f.began; got != at.String() {
		t.Errorf("%s is served, want %s", got, at)
	}
	if len(store.stored) != 0 || !slices.Equal(store.removed, []string{"bridge-udp-172.17.0.1"}) {
		t.Errorf("stored %v, removed %v; want the pair taken over, and the other one dropped", store.stored, store.removed)
	}
	b.follow(t.Context(), nil)
}

func TestAnAddressThatCannotBeListenedOnIsTriedAgain(t *testing.T) {
	b, _, f := newBridges(nil)
	held, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	at := addrPort(held.Addr())
	b.follow(t.Context(), []netip.AddrPort{at})
	if len(b.serving) != 0 || b.said[at] == "" {
		t.Errorf("serving %v, said %v; want a taken port noted", b.serving, b.said)
	}
	held.Close()
	b.follow(t.Context(), []netip.AddrPort{at})
	if got := <-f.began; got != at.String() || b.said[at] != "" {
		t.Errorf("%s is served (%q), want %s", got, b.said[at], at)
	}
	b.follow(t.Context(), nil)
}
