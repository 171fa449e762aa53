package join

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inside tells the test binary that it runs in a namespace of its own.
const inside = "WINGMAN_JOIN_INSIDE"

// The machine's interface there, and the address it has at first.
const (
	link    = "vm0"
	address = "10.99.0.2/24"
)

// TestMain runs the tests in a network namespace of their own: the daemon under test takes rules out of its kernel, and follows its addresses.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := furnish(); err != nil {
			fmt.Fprintln(os.Stderr, "furnish the namespace:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case errors.Is(err, syscall.EPERM) && os.Getenv("CI") != "true" && os.Getenv("REQUIRE_NETNS") != "1":
		fmt.Println("skipped: these tests need a network namespace of their own: run them as root")
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "a network namespace for the tests:", err)
	os.Exit(1)
}

// furnish gives the namespace loopback, an interface with an address, and a default route.
func furnish() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: link}, PeerName: "far0"}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	for _, name := range []string{link, "far0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return setAddress(address)
}

// setAddress makes cidr the only IPv4 address of the machine's interface, with the default route over it.
func setAddress(cidr string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	old, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range old {
		if err := netlink.AddrDel(l, &a); err != nil {
			return err
		}
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.IPv4(10, 99, 0, 1), Src: a.IP})
}
