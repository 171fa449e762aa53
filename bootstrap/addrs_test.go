package bootstrap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

func addrsOf(list string) []netip.Addr {
	var addrs []netip.Addr
	for _, s := range strings.Fields(list) {
		addrs = append(addrs, netip.MustParseAddr(s))
	}
	return addrs
}

func TestChooseAddrs(t *testing.T) {
	on := func(link, kind, addrs string) []localAddr {
		var list []localAddr
		for _, a := range addrsOf(addrs) {
			list = append(list, localAddr{addr: a, link: link, kind: kind, up: true})
		}
		return list
	}
	lo := on("lo", "", "127.0.0.1 ::1")
	eth := on("eth0", "", "10.0.0.5 fd00::5 fe80::5")
	temporary := localAddr{addr: netip.MustParseAddr("fd00::abcd"), link: "eth0", up: true, temporary: true}
	for _, tt := range []struct {
		name   string
		fixed  string
		dual   bool
		addrs  [][]localAddr
		target string // sources of the routes to istiod
		route  string // sources of the default routes
		want   string
		err    string
	}{
		{"the source of the route to istiod", "", false, [][]localAddr{lo, eth, on("eth1", "", "192.168.0.5")}, "192.168.0.5", "10.0.0.5", "192.168.0.5", ""},
		{"istiod behind a tunnel on loopback: that of the default route", "", false, [][]localAddr{lo, eth}, "127.0.0.1", "10.0.0.5 fd00::5", "10.0.0.5", ""},
		{"istiod on a bridge of this machine: that of the default route", "", false, [][]localAddr{lo, eth, on("docker0", "bridge", "172.17.0.1")}, "172.17.0.1", "10.0.0.5", "10.0.0.5", ""},
		{"istiod unknown: that of the default route", "", false, [][]localAddr{lo, eth}, "", "10.0.0.5", "10.0.0.5", ""},
		{"IPv6 alone", "", false, [][]localAddr{lo, on("eth0", "", "fd00::5 fe80::5")}, "", "fd00::5", "fd00::5", ""},
		{"a lasting address in place of a temporary one", "", false, [][]localAddr{{temporary}, eth}, "fd00::abcd", "", "fd00::5", ""},
		{"a link-local source is none", "", false, [][]localAddr{lo, eth}, "fe80::5", "fd00::5", "fd00::5", ""},
		{"no route at all, but only one address", "", false, [][]localAddr{lo, on("eth0", "", "10.0.0.5 fe80::5"), on("docker0", "bridge", "172.17.0.1")}, "", "", "10.0.0.5", ""},
		{"no route at all, and one address of each family: IPv4", "", false, [][]localAddr{lo, eth}, "127.0.0.1", "", "10.0.0.5", ""},
		{"dual stack: the other family's default route", "", true, [][]localAddr{lo, eth}, "10.0.0.5", "10.0.0.5 fd00::5", "10.0.0.5 fd00::5", ""},
		{"dual stack where istiod is reached by IPv6", "", true, [][]localAddr{lo, eth}, "fd00::5", "10.0.0.5 fd00::5", "fd00::5 10.0.0.5", ""},
		{"dual stack on a machine that has one family", "", true, [][]localAddr{lo, on("eth0", "", "10.0.0.5")}, "10.0.0.5", "10.0.0.5", "10.0.0.5", ""},
		{"dual stack: the other family without a route", "", true, [][]localAddr{lo, eth}, "10.0.0.5", "10.0.0.5", "10.0.0.5 fd00::5", ""},
		{"ISTIO_SVC_IP and dual stack: only the other family is looked for", "203.0.113.7", true, [][]localAddr{lo, eth}, "10.0.0.5", "10.0.0.5 fd00::5", "203.0.113.7 fd00::5", ""},
		{"a source that is not this machine's is none", "", false, [][]localAddr{lo, eth}, "192.0.2.1", "10.0.0.5", "10.0.0.5", ""},
		{"nothing but loopback", "", false, [][]localAddr{lo}, "127.0.0.1", "", "",
			"no instance address: this machine has only loopback addresses; set ISTIO_SVC_IP in sidecar.env, or workload.addresses in wingman.yaml"},
		{"nothing but link-local", "", false, [][]localAddr{lo, on("eth0", "", "fe80::5 169.254.3.4")}, "fe80::5", "", "",
			"no instance address: fe80::5 on eth0 is link-local, 169.254.3.4 on eth0 is link-local; set ISTIO_SVC_IP in sidecar.env, or workload.addresses in wingman.yaml"},
		{"several and no route", "", false, [][]localAddr{lo, on("eth0", "", "10.0.0.5"), on("eth1", "", "10.1.0.5"), on("virbr0", "bridge", "192.168.122.1")}, "", "", "",
			"no instance address: 10.0.0.5 on eth0 is one of several, and no route chooses, 10.1.0.5 on eth1 is one of several, and no route chooses, " +
				"192.168.122.1 on virbr0 is of a bridge; set ISTIO_SVC_IP in sidecar.env, or workload.addresses in wingman.yaml"},
		{"a link that is down", "", false, [][]localAddr{{{addr: netip.MustParseAddr("10.0.0.5"), link: "eth0"}}}, "", "", "",
			"no instance address: 10.0.0.5 on eth0 is on a link that is down; set ISTIO_SVC_IP in sidecar.env, or workload.addresses in wingman.yaml"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			facts := addrFacts{toTarget: addrsOf(tt.target), byRoute: addrsOf(tt.route)}
			for _, list := range tt.addrs {
				facts.addrs = append(facts.addrs, list...)
			}
			got, err := chooseAddrs(addrsOf(tt.fixed), tt.dual, facts)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err || !errors.Is(err, ErrNoInstanceAddr) {
					t.Errorf("got %v and error %q, want %q", got, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(addrsOf(tt.want), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
}

// wire is one interface of a test's namespace.
type wire struct {
	name, kind string // veth or bridge
	addrs      string // with prefix length
}

// plug makes interfaces with addresses in the current namespace.
func plug(t *testing.T, wires ...wire) {
	t.Helper()
	for _, w := range wires {
		var link netlink.Link = &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: w.name}, PeerName: w.name + "p"}
		if w.kind == "bridge" {
			link = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: w.name}}
		}
		if err := netlink.LinkAdd(link); err != nil {
			netns.Skip(t, fmt.Sprintf("this kernel makes no %s: %v", w.kind, err))
		}
		for _, name := range []string{w.name, w.name + "p"} {
			if l, err := netlink.LinkByName(name); err == nil {
				if err := netlink.LinkSetUp(l); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, text := range strings.Fields(w.addrs) {
			addr, err := netlink.ParseAddr(text)
			if err != nil {
				t.Fatal(err)
			}
			addr.Flags = unix.IFA_F_NODAD
			l, err := netlink.LinkByName(w.name)
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.AddrAdd(l, addr); err != nil {
				t.Fatalf("add %s to %s: %v", text, w.name, err)
			}
		}
	}
}

// route adds a route by a gateway; dst empty is the default.
func route(t *testing.T, dst, gateway string) {
	t.Helper()
	r := &netlink.Route{Gw: net.ParseIP(gateway)}
	if dst != "" {
		_, network, err := net.ParseCIDR(dst)
		if err != nil {
			t.Fatal(err)
		}
		r.Dst = network
	}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatalf("add route to %q by %s: %v", dst, gateway, err)
	}
}

// TestInstanceAddrsOnKernel asks a real kernel in a namespace of its own.
func TestInstanceAddrsOnKernel(t *testing.T) {
	eth0 := wire{"eth0", "veth", "10.99.0.2/24 fd00:99::2/64"}
	eth1 := wire{"eth1", "veth", "192.168.7.2/24"}
	docker := wire{"docker0", "bridge", "172.17.0.1/16"}
	for _, tt := range []struct {
		name    string
		wires   []wire
		routes  [][2]string
		targets string
		dual    bool
		want    string
	}{
		{"istiod on the same network", []wire{eth1, eth0}, nil, "10.99.0.1", false, "10.99.0.2"},
		{"istiod by a gateway of the second interface", []wire{eth0, eth1}, [][2]string{{"", "10.99.0.1"}, {"203.0.113.0/24", "192.168.7.1"}}, "203.0.113.9", false, "192.168.7.2"},
		{"istiod on 127.0.0.1, as the fixture's hosts file has it", []wire{eth0, docker}, [][2]string{{"", "10.99.0.1"}}, "127.0.0.1", false, "10.99.0.2"},
		{"istiod on 127.0.0.1, two networks, the default route by the second", []wire{eth0, eth1}, [][2]string{{"", "192.168.7.1"}}, "127.0.0.1", false, "192.168.7.2"},
		{"istiod on 127.0.0.1, no default route, one network", []wire{{"eth0", "veth", "10.99.0.2/24"}, docker}, nil, "127.0.0.1", false, "10.99.0.2"},
		{"istiod in a container behind a bridge", []wire{docker, eth0}, [][2]string{{"", "10.99.0.1"}}, "172.17.0.9", false, "10.99.0.2"},
		{"the first target has no route, the second has", []wire{eth1, eth0}, nil, "203.0.113.9 10.99.0.1", false, "10.99.0.2"},
		{"istiod by IPv6", []wire{eth1, eth0}, nil, "fd00:99::1", false, "fd00:99::2"},
		{"dual stack", []wire{eth0, eth1}, [][2]string{{"", "10.99.0.1"}, {"", "fd00:99::1"}}, "10.99.0.1", true, "10.99.0.2 fd00:99::2"},
		{"istiod on this very machine", []wire{eth0}, nil, "10.99.0.2", false, "10.99.0.2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netns.New(t)
			plug(t, tt.wires...)
			for _, r := range tt.routes {
				route(t, r[0], r[1])
			}
			got, err := InstanceAddrs(t.Context(), &Config{DualStack: tt.dual}, addrsOf(tt.targets))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(addrsOf(tt.want), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("only a bridge: nothing may stand in for an address", func(t *testing.T) {
		netns.New(t)
		plug(t, docker)
		got, err := InstanceAddrs(t.Context(), &Config{}, addrsOf("172.17.0.9"))
		if !errors.Is(err, ErrNoInstanceAddr) || !strings.Contains(err.Error(), "172.17.0.1 on docker0 is of a bridge") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("a namespace with nothing but loopback, and an address that is none", func(t *testing.T) {
		netns.New(t)
		if got, err := InstanceAddrs(t.Context(), &Config{}, []netip.Addr{{}}); !errors.Is(err, ErrNoInstanceAddr) {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("ISTIO_SVC_IP needs no kernel", func(t *testing.T) {
		netns.New(t)
		got, err := InstanceAddrs(t.Context(), &Config{InstanceIPs: addrsOf("203.0.113.7")}, addrsOf("127.0.0.1"))
		if err != nil || len(got) != 1 || got[0] != netip.MustParseAddr("203.0.113.7") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("a temporary address gives way to a lasting one", func(t *testing.T) {
		netns.New(t)
		plug(t, wire{"eth0", "veth", "fd00:99::2/64"})
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		addr, _ := netlink.ParseAddr("fd00:99::abcd/64")
		addr.Flags, addr.PreferedLft, addr.ValidLft = unix.IFA_F_NODAD, 0, int(time.Hour.Seconds()) // deprecated at once, as a temporary one gets
		if err := netlink.AddrAdd(l, addr); err != nil {
			t.Fatal(err)
		}
		got, err := InstanceAddrs(t.Context(), &Config{}, nil)
		if err != nil || len(got) != 1 || got[0] != netip.MustParseAddr("fd00:99::2") {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
