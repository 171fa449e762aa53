package machine

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// device is the machine's one network device.
const device = "eth0"

// connect lays the cable: a veth pair with the outer end in the caller's namespace and eth0 in the machine's.
func (m *Machine) connect() error {
	outer := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: m.cfg.Name, MTU: 1500},
		PeerName:      device,
		PeerNamespace: netlink.NsPid(m.holder.Process.Pid),
	}
	if err := netlink.LinkAdd(outer); err != nil {
		return fmt.Errorf("add veth %s: %w", m.cfg.Name, err)
	}
	if err := raise(m.cfg.Name, netip.PrefixFrom(m.Gateway(), m.cfg.Addr.Bits())); err != nil {
		return err
	}
	return m.Do(func() error {
		if err := raise(device, m.cfg.Addr); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: net.IP(m.Gateway().AsSlice())}); err != nil {
			return fmt.Errorf("add default route: %w", err)
		}
		return nil
	})
}

// disconnect takes the cable out, if it is there. The kernel would, some time after the machine's namespace is gone: too late
// for the next machine of that name.
func disconnect(name string) {
	if link, err := netlink.LinkByName(name); err == nil {
		_ = netlink.LinkDel(link) // an error means that the kernel was faster
	}
}

// raise gives a device of the current thread's namespace an address and brings it up.
func raise(name string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), addr.Addr().BitLen())}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", name, addr, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}
