package resolved

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

// Effects on a real kernel, in a namespace of the test's own.
func TestTheLinkIsMadeOnceAndQuiet(t *testing.T) {
	netns.New(t)
	index, made, err := makeLink()
	if err != nil || !made {
		t.Fatalf("makeLink = %d, %t, %v; want it made", index, made, err)
	}
	again, made, err := makeLink()
	if err != nil || made || again != index {
		t.Fatalf("a second makeLink = %d, %t, %v; want the same link %d", again, made, err, index)
	}
	for _, name := range []string{LinkName, peerName} {
		if len(name) > 15 {
			t.Errorf("interface name %s has %d letters, the kernel takes 15", name, len(name))
		}
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if a := l.Attrs(); a.Flags&net.FlagUp == 0 || a.Flags&net.FlagMulticast != 0 || a.RawFlags&unix.IFF_NOARP == 0 || a.RawFlags&unix.IFF_LOWER_UP == 0 {
			t.Errorf("%s has flags %v %#x, want it up with a carrier, without ARP and multicast", name, a.Flags, a.RawFlags)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range addrs {
			if a.Scope != unix.RT_SCOPE_UNIVERSE {
				t.Errorf("%s has %s with scope %d, want global", name, a.IPNet, a.Scope)
			}
			got = append(got, a.IPNet.String())
		}
		if want := map[string]int{LinkName: 1, peerName: 0}[name]; len(got) != want || want == 1 && got[0] != linkAddr.String() {
			t.Errorf("%s has addresses %v", name, got)
		}
	}
}

func TestWhatOthersChangedIsPutRight(t *testing.T) {
	netns.New(t)
	index, _, err := makeLink()
	if err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName(LinkName)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName(peerName)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetDown(peer), netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: linkAddr.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}})); err != nil {
		t.Fatal(err)
	}
	if again, made, err := makeLink(); err != nil || made || again != index {
		t.Fatalf("makeLink = %d, %t, %v; want link %d put right", again, made, err, index)
	}
	if peer, err = netlink.LinkByName(peerName); err != nil || peer.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("%s is not up again: %v", peerName, err)
	}
	if addrs, err := netlink.AddrList(l, netlink.FAMILY_V4); err != nil || len(addrs) != 1 {
		t.Errorf("%s has addresses %v: %v", LinkName, addrs, err)
	}
}

func TestRemoveTakesBothEnds(t *testing.T) {
	netns.New(t)
	if removed, err := Remove(); err != nil || removed {
		t.Fatalf("Remove of nothing = %t, %v", removed, err)
	}
	if _, _, err := makeLink(); err != nil {
		t.Fatal(err)
	}
	if removed, err := Remove(); err != nil || !removed {
		t.Fatalf("Remove = %t, %v", removed, err)
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
		t.Errorf("links %v: %v; want lo alone", links, err)
	}
}

// An interface that happens to have our name is neither used nor removed.
func TestAStrangersInterfaceIsLeftAlone(t *testing.T) {
	netns.New(t)
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: LinkName}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := makeLink(); !errors.Is(err, errStranger) {
		t.Errorf("makeLink = %v, want %v", err, errStranger)
	}
	if _, err := Remove(); !errors.Is(err, errStranger) {
		t.Errorf("Remove = %v, want %v", err, errStranger)
	}
	if _, err := netlink.LinkByName(LinkName); err != nil {
		t.Errorf("the stranger's interface: %v", err)
	}
}

func TestNewsOfTheLinkIsHeard(t *testing.T) {
	netns.New(t)
	heard := func(what string, change func() error) {
		t.Helper()
		news, done := make(chan struct{}, 1), make(chan struct{})
		defer close(done)
		if err := errors.Join(followLinks(news, done), change()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-news:
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing was heard of %s", what)
		}
	}
	heard("a new link", func() error { _, _, err := makeLink(); return err })
	heard("one that is gone", func() error { _, err := Remove(); return err })
}
