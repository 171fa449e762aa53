package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// GatherConfig says where the facts are. Empty paths mean the machine's own.
type GatherConfig struct {
	ResolvConf string // /etc/resolv.conf
	Group      string // /etc/group
	SSHDConfig string // /etc/ssh/sshd_config
	// SSHReport is a file that `WriteSSHReport` made as root, for an agent that cannot ask sshd itself; "" means none.
	SSHReport string
}

// GatherFacts reads what Plan must know from this machine and the network namespace of the calling thread.
//
// It starts at most one short process (sshd -T, where sshd runs and nothing else tells of its ports). What cannot be read is replaced by the careful
// assumption and said in Facts.Notes; the error is for what makes any plan wrong, such as an unreadable resolv.conf.
func GatherFacts(ctx context.Context, cfg GatherConfig) (Facts, error) {
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	def(&cfg.ResolvConf, "/etc/resolv.conf")
	def(&cfg.Group, "/etc/group")
	def(&cfg.SSHDConfig, "/etc/ssh/sshd_config")

	var f Facts
	var err error
	if f.Resolvers, err = readResolvers(cfg.ResolvConf); errors.Is(err, fs.ErrNotExist) {
		f.Notes = append(f.Notes, fmt.Sprintf("%s does not exist: no resolver's queries can be captured", cfg.ResolvConf))
	} else if err != nil {
		return Facts{}, err
	}
	if f.Groups, err = readGroups(cfg.Group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Facts{}, err
	}
	if f.Addrs, f.InterfaceAddrs, err = interfaceAddrs(); err != nil {
		return Facts{}, err
	}
	f.NoIPv6 = noIPv6() || ipv6Disabled()
	var notes []string
	f.SSH, notes = gatherSSH(ctx, cfg, systemHost())
	f.Notes = append(f.Notes, notes...)
	return f, nil
}

// readResolvers reads the servers that resolv.conf names.
func readResolvers(path string) ([]netip.Addr, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the resolvers: %w", err)
	}
	return parseResolvers(string(b)), nil
}

// parseResolvers returns every server of resolv.conf in order, as resolv.conf(5): the word after nameserver at the beginning
// of a line. What is no address is passed over, as the C library does.
func parseResolvers(text string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

// readGroups reads names and gids of /etc/group.
func readGroups(path string) (map[string]uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the groups: %w", err)
	}
	defer f.Close()
	groups := map[string]uint32{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20) // a group of thousands of members is one line
	for lines.Scan() {
		w := strings.Split(lines.Text(), ":")
		if len(w) < 3 || w[0] == "" {
			continue
		}
		if gid, err := strconv.ParseUint(w[2], 10, 32); err == nil {
			if _, twice := groups[w[0]]; !twice { // the first entry counts
				groups[w[0]] = uint32(gid)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the groups: %s: %w", path, err)
	}
	return groups, nil
}

// interfaceAddrs returns all addresses in the kernel's order, and by interface.
func interfaceAddrs() ([]netip.Addr, map[string][]netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list the interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses: %w", err)
	}
	var all []netip.Addr
	byName := map[string][]netip.Addr{}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addr = addr.Unmap()
			all = append(all, addr)
			byName[names[a.LinkIndex]] = append(byName[names[a.LinkIndex]], addr)
		}
	}
	return all, byName, nil
}

// noIPv6 reports whether the kernel has no IPv6 at all.
func noIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, unix.EAFNOSUPPORT)
}

// ipv6Disabled reports whether IPv6 is switched off in this network namespace, loopback included: its rules could be made, but
// not the routes and the address that they lean on.
func ipv6Disabled() bool {
	for _, name := range []string{"all", "lo"} {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
		if err != nil || strings.TrimSpace(string(b)) != "1" {
			return false
		}
	}
	return true
}
