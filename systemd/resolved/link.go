package resolved

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// LinkName is the network interface that stands for the mesh's names, and peerName the other end of it: what is up on one end only has no carrier. Nobody
// else's interface is called so, and nothing is sent there.
const (
	LinkName = "wingman-dns"
	peerName = "wingman-dns-far"
)

// linkAddr is the link's address, for systemd-resolved asks no server of an interface that has none with global scope. It is one of the link-local range
// (RFC 3927), whatever its scope says: what looks for the machine's own address passes over it.
var linkAddr = netip.MustParsePrefix("169.254.115.53/32")

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no address of IPv6's own making.
const addrGenModeNone = 1

// errStranger means that an interface of our name is not of our making.
var errStranger = errors.New("an interface of this name is there, and no veth pair of this agent's: remove or rename it")

// makeLink sees to it that the link is there and as it should be, and returns its index. made says that it had to be made.
func makeLink() (index int, made bool, err error) {
	link, err := findLink()
	if err != nil {
		return 0, false, err
	}
	if link == nil {
		if err := addVeth(); err != nil {
			if errors.Is(err, unix.EPERM) {
				err = fmt.Errorf("%w: the agent needs CAP_NET_ADMIN for it", err)
			}
			return 0, false, fmt.Errorf("make interface %s: %w", LinkName, err)
		}
		made = true
		if link, err = findLink(); err == nil && link == nil {
			err = errors.New("it is gone already")
		}
		if err != nil {
			return 0, made, fmt.Errorf("make interface %s: %w", LinkName, err)
		}
	}
	peer, err := netlink.LinkByName(peerName)
	if err != nil {
		return 0, made, fmt.Errorf("interface %s: %w", peerName, err)
	}
	for _, l := range []netlink.Link{link, peer} {
		if err := quieten(l); err != nil {
			return 0, made, fmt.Errorf("set up interface %s: %w", l.Attrs().Name, err)
		}
	}
	if err := addAddress(link); err != nil {
		return 0, made, fmt.Errorf("give interface %s its address: %w", LinkName, err)
	}
	return link.Attrs().Index, made, nil
}

// addVeth makes the pair. Not by netlink.LinkAdd, which brings the code for every other kind of interface into the binary: 130 kB.
func addVeth() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(LinkName)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(peerName))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// quieten brings an end up that takes part in nothing: no ARP, no multicast, no address of IPv6's own making.
func quieten(l netlink.Link) error {
	flags, raw := l.Attrs().Flags, l.Attrs().RawFlags
	if flags&net.FlagUp == 0 {
		// Before it is up: then there would be an address already. A kernel without IPv6 knows no such mode, nor needs it.
		if err := netlink.LinkSetIP6AddrGenMode(l, addrGenModeNone); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	if raw&unix.IFF_NOARP == 0 {
		if err := netlink.LinkSetARPOff(l); err != nil {
			return err
		}
	}
	if flags&net.FlagMulticast != 0 {
		if err := netlink.LinkSetMulticastOff(l); err != nil {
			return err
		}
	}
	if flags&net.FlagUp == 0 {
		return netlink.LinkSetUp(l)
	}
	return nil
}

func addAddress(l netlink.Link) error {
	have, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	want := &net.IPNet{IP: linkAddr.Addr().AsSlice(), Mask: net.CIDRMask(linkAddr.Bits(), 32)}
	for _, a := range have {
		if a.IPNet.String() == want.String() && a.Scope == unix.RT_SCOPE_UNIVERSE {
			return nil
		}
	}
	return netlink.AddrReplace(l, &netlink.Addr{IPNet: want, Scope: unix.RT_SCOPE_UNIVERSE})
}

// findLink returns the link; nil when there is none.
func findLink() (netlink.Link, error) {
	link, err := netlink.LinkByName(LinkName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", LinkName, err)
	}
	if link.Type() != "veth" {
		return nil, fmt.Errorf("interface %s, a %s: %w", LinkName, link.Type(), errStranger)
	}
	return link, nil
}

// Remove takes the link away, and with it all that systemd-resolved was told, whoever made it. removed is false when there was none.
func Remove() (removed bool, err error) {
	link, err := findLink()
	if link == nil || err != nil {
		return false, err
	}
	if err := netlink.LinkDel(link); err != nil {
		return false, fmt.Errorf("remove interface %s: %w", LinkName, err)
	}
	return true, nil
}

// followLinks sends news when a link of our names changes or goes, until done is closed.
func followLinks(news chan<- struct{}, done <-chan struct{}) error {
	updates := make(chan netlink.LinkUpdate, 16)
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	go func() { // ends with updates, which the library closes
		for u := range updates {
			if name := u.Attrs().Name; name == LinkName || name == peerName {
				poke(news)
			}
		}
	}()
	return nil
}

// poke leaves a message for who looks at news, which has room for one.
func poke(news chan<- struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}
