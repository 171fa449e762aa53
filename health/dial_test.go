package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

func TestWhereAProbeLeavesFrom(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: unix.ECONNREFUSED}
	for _, tt := range []struct {
		name    string
		host    string
		results map[string]error // by "source>address"; what is not there fails the test
		dialed  []string         // in order
		fails   bool
	}{
		{"IPv4 from 127.0.0.6", "10.99.0.2", map[string]error{"127.0.0.6>10.99.0.2:80": nil}, []string{"127.0.0.6>10.99.0.2:80"}, false},
		{"another machine, which 127.0.0.6 cannot reach, from anywhere", "10.99.0.9",
			map[string]error{"127.0.0.6>10.99.0.9:80": unix.EINVAL, ">10.99.0.9:80": nil},
			[]string{"127.0.0.6>10.99.0.9:80", ">10.99.0.9:80"}, false},
		{"a refusal is an answer: no second try", "10.99.0.2", map[string]error{"127.0.0.6>10.99.0.2:80": refused}, []string{"127.0.0.6>10.99.0.2:80"}, true},
		{"own IPv6 from ::6", "fd00::2", map[string]error{"::6>[fd00::2]:80": nil}, []string{"::6>[fd00::2]:80"}, false},
		{"IPv6 loopback from ::6", "::1", map[string]error{"::6>[::1]:80": nil}, []string{"::6>[::1]:80"}, false},
		{"without ::6 on the loopback interface, from anywhere", "fd00::2",
			map[string]error{"::6>[fd00::2]:80": unix.EADDRNOTAVAIL, ">[fd00::2]:80": nil}, []string{"::6>[fd00::2]:80", ">[fd00::2]:80"}, false},
		{"another machine's IPv6 is never dialled from ::6", "fd00::9", map[string]error{">[fd00::9]:80": nil}, []string{">[fd00::9]:80"}, false},
		{"IPv4 in IPv6 clothes is IPv4", "::ffff:10.99.0.2", map[string]error{"127.0.0.6>10.99.0.2:80": nil}, []string{"127.0.0.6>10.99.0.2:80"}, false},
		{"of a name the first address that answers", "localhost",
			map[string]error{"::6>[::1]:80": refused, "127.0.0.6>127.0.0.1:80": nil}, []string{"::6>[::1]:80", "127.0.0.6>127.0.0.1:80"}, false},
		{"a name without addresses", "void", nil, nil, true},
		{"a name that is not there", "nowhere", nil, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var dialed []string
			d := dialer{
				lookup: func(_ context.Context, host string) ([]netip.Addr, error) {
					switch host {
					case "localhost":
						return []netip.Addr{netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.1")}, nil
					case "void":
						return nil, nil
					}
					return nil, &net.DNSError{Name: host, IsNotFound: true}
				},
				own: func() ([]netip.Addr, error) {
					return []netip.Addr{netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd00::2")}, nil
				},
				dial: func(_ context.Context, source netip.Addr, address netip.AddrPort) (net.Conn, error) {
					from := ""
					if source.IsValid() {
						from = source.String()
					}
					key := from + ">" + address.String()
					dialed = append(dialed, key)
					err, known := tt.results[key]
					if !known {
						t.Errorf("dialled %s", key)
					}
					if err != nil {
						return nil, fmt.Errorf("connect: %w", err)
					}
					return nil, nil
				},
			}
			_, err := d.connect(t.Context(), tt.host, 80)
			if (err != nil) != tt.fails {
				t.Errorf("error %v, want one: %v", err, tt.fails)
			}
			if !slices.Equal(dialed, tt.dialed) {
				t.Errorf("dialled %q, want %q", dialed, tt.dialed)
			}
		})
	}
}

// The same on a real kernel, between two machines: one namespace with ::6 on its loopback interface, one without.
func TestTheKernelLetsProbesLeaveFromTheirSource(t *testing.T) {
	other := netns.Create(t)
	netns.New(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	address := func(link, cidr string) {
		t.Helper()
		l, err := netlink.LinkByName(link)
		must(err)
		a, err := netlink.ParseAddr(cidr)
		must(err)
		a.Flags = unix.IFA_F_NODAD
		must(netlink.AddrAdd(l, a))
		must(netlink.LinkSetUp(l))
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}))
	there, err := netlink.LinkByName("there")
	must(err)
	must(netlink.LinkSetNsFd(there, other.Fd()))
	address("here", "10.99.0.2/24")
	address("here", "fd00::2/64")
	must(other.Do(func() error { address("there", "10.99.0.9/24"); address("there", "fd00::9/64"); return nil }))

	listen := func() (port uint16, source func() string) {
		l, err := net.Listen("tcp", ":0")
		must(err)
		t.Cleanup(func() { l.Close() })
		sources := make(chan string, 1)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				conn.Close()
				sources <- host
			}
		}()
		return l.Addr().(*net.TCPAddr).AddrPort().Port(), func() string { return <-sources }
	}
	here, hereSource := listen()
	var far uint16
	var farSource func() string
	must(other.Do(func() error { far, farSource = listen(); return nil }))

	for _, tt := range []struct {
		name   string
		with6  bool // ::6 is on the loopback interface
		host   string
		remote bool
		want   string
	}{
		{"own address", false, "10.99.0.2", false, "127.0.0.6"},
		{"loopback", false, "127.0.0.1", false, "127.0.0.6"},
		{"another machine", false, "10.99.0.9", true, "10.99.0.2"},
		{"own IPv6 address, no ::6", false, "fd00::2", false, "fd00::2"},
		{"another machine's IPv6, no ::6", false, "fd00::9", true, "fd00::2"},
		{"own IPv6 address", true, "fd00::2", false, "::6"},
		{"IPv6 loopback", true, "::1", false, "::6"},
		{"another machine's IPv6", true, "fd00::9", true, "fd00::2"},
	} { // not by t.Run, whose goroutine is not in the namespace
		if tt.with6 {
			lo, err := netlink.LinkByName("lo")
			must(err)
			if err := netlink.AddrAdd(lo, &netlink.Addr{
				IPNet: &net.IPNet{IP: net.ParseIP("::6"), Mask: net.CIDRMask(128, 128)},
				Flags: unix.IFA_F_NODAD, // else it cannot be bound for a moment
			}); err != nil && !errors.Is(err, unix.EEXIST) {
				t.Fatal(err)
			}
		}
		port, source := here, hereSource
		if tt.remote {
			port, source = far, farSource
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		conn, err := systemDialer.connect(ctx, tt.host, port)
		cancel()
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		conn.Close()
		if got := source(); got != tt.want {
			t.Errorf("%s: the other side saw %s, want %s", tt.name, got, tt.want)
		}
	}
}
