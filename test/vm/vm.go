// Package vm gives tests real machines: Debian 12, or 13 where a test says so, booted by systemd-nspawn with systemd as process 1.
//
//	segment := vm.NewSegment(t)                     // an Ethernet segment in a namespace of its own
//	m := segment.Machine(t, "forum", "10.99.0.2/24")
//	m.CopyIn("bin/wingman", "/usr/bin/wingman", 0o755)
//	m.Boot()
//	m.Run("systemctl", "start", "wingman")
//	m.PowerCut()
//	m.Boot()
//	for _, entry := range m.Journal("wingman") { … }
//
// It needs root, systemd-nspawn and debootstrap, and takes them for granted: tests run only where WINGMAN_VM=1 asks for
// them (see Require), and what is missing then is a failure. The image is made once, in about 75 s, and kept as a tarball
// in WINGMAN_CACHE (default $XDG_CACHE_HOME/wingman, ~/.cache/wingman); a machine is unpacked from it in a fraction of a
// second and boots in another.
//
// A machine's processes live in cgroups of its own, its cable ends in the segment's namespace, its files in the test's
// temporary folder; all go with the test. Should the test be killed its machines are killed too; their files stay in /tmp.
package vm

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"wingman/test/netns"
)

// Require skips the test unless WINGMAN_VM=1 says that this machine can boot machines.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv("WINGMAN_VM") != "1" {
		t.Skip("real machines are tested only with WINGMAN_VM=1")
	}
	if os.Geteuid() != 0 {
		t.Fatal("WINGMAN_VM=1 needs root: systemd-nspawn and debootstrap do")
	}
}

// bridge is the name of a segment's switch.
const bridge = "segment"

// A Segment is an Ethernet segment that machines hang on. It ends with the test.
type Segment struct {
	*netns.NS // the switch is here; an address for the test itself too, if AddAddress put one
}

// NewSegment makes an empty segment.
func NewSegment(t testing.TB) *Segment {
	t.Helper()
	Require(t)
	s := &Segment{netns.Create(t)}
	if err := s.Do(func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}); err != nil {
			return err
		}
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	}); err != nil {
		t.Fatalf("make a segment: %v", err)
	}
	return s
}

// AddAddress gives the test itself an address on the segment ("10.99.0.1/24"), for servers opened inside s.Do.
func (s *Segment) AddAddress(t testing.TB, prefix string) {
	t.Helper()
	if err := s.Do(func() error {
		link, err := netlink.LinkByName(bridge)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	}); err != nil {
		t.Fatalf("add address %s to the segment: %v", prefix, err)
	}
}

// Machine unpacks a machine that is switched off. name is its host name, at most 11 letters; prefix its address on the
// segment, which it has from systemd-networkd. Its resolver is systemd-resolved, which asks resolvers on the segment.
func (s *Segment) Machine(t testing.TB, name, prefix string, resolvers ...string) *Machine {
	t.Helper()
	return s.machine(t, image(t), name, prefix, resolvers...)
}

// MachineOf is Machine of a release that the test chooses.
func (s *Segment) MachineOf(t testing.TB, release Release, name, prefix string, resolvers ...string) *Machine {
	t.Helper()
	m := s.machine(t, imageOf(t, release), name, prefix, resolvers...)
	m.release = release
	return m
}

func (s *Segment) machine(t testing.TB, image, name, prefix string, resolvers ...string) *Machine {
	t.Helper()
	m := &Machine{t: t, owner: t, name: name, segment: s, root: filepath.Join(t.TempDir(), name)}
	unpack(t, image, m.root)
	m.settleAt(prefix, resolvers...)
	return m
}

// settleAt writes the machine's name and address onto its disk.
func (m *Machine) settleAt(prefix string, resolvers ...string) {
	m.t.Helper()
	if len(m.name) > 11 {
		m.t.Fatalf("machine %s: found a name of %d letters, expected at most 11 (it names a network interface)", m.name, len(m.name))
	}
	address, err := netip.ParsePrefix(prefix)
	if err != nil {
		m.t.Fatalf("machine %s: %v", m.name, err)
	}
	m.Write("/etc/hostname", m.name+"\n", 0o644)
	m.Write("/etc/hosts", fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", address.Addr(), m.name), 0o644)
	m.Write("/etc/systemd/network/10-host0.network", fmt.Sprintf(
		"[Match]\nName=host0\n[Network]\nAddress=%s\nDNS=%s\nIPv6AcceptRA=no\n", prefix, strings.Join(resolvers, " ")), 0o644)
}
