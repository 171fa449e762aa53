package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyTables looks at the tables of iptables-legacy through the kernel's own interface, because starting
// iptables-legacy-save makes tables that were not there, and does not work at all without root.
//
// It returns the chains of ours per table, and whether the tables hold any rule or chain beyond the built-in ones. Tables
// that nobody has used yet are not brought to life.
func legacyTables(fam Family) (oursIn []string, anyRules bool, err error) {
	names, err := legacyTableNames(fam)
	if err != nil || len(names) == 0 {
		return nil, false, err
	}
	fd, err := unix.Socket(legacyDomain(fam), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, false, fmt.Errorf("open a raw socket to read the tables of iptables-legacy (needs CAP_NET_RAW): %w", err)
	}
	defer unix.Close(fd)
	for _, name := range names {
		table, err := readLegacyTable(fd, fam, name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) {
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("read %s table %s of iptables-legacy: %w", fam, name, err)
		}
		anyRules = anyRules || table.rules
		if slices.ContainsFunc(table.chains, ours) {
			oursIn = append(oursIn, name)
		}
	}
	return oursIn, anyRules, nil
}

// legacyTableNames lists the tables that exist in this network namespace. Without root the list cannot be read: then the
// tables whose modules are loaded are taken, in which looking changes nothing.
func legacyTableNames(fam Family) ([]string, error) {
	file, module := "/proc/net/ip_tables_names", "iptable_"
	if fam == IPv6 {
		file, module = "/proc/net/ip6_tables_names", "ip6table_"
	}
	if file, err := threadFile(file); err == nil {
		b, err := os.ReadFile(file)
		if err == nil {
			return strings.Fields(string(b)), nil
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if !errors.Is(err, os.ErrPermission) {
			return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
		}
	}
	var names []string
	for _, name := range []string{"filter", "nat", "mangle", "raw"} {
		if _, err := os.Stat("/sys/module/" + module + name + "/initstate"); err == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// threadFile turns /proc/net/X into the one of the calling thread, whose network namespace may differ from the process's.
func threadFile(path string) (string, error) {
	rest, ok := strings.CutPrefix(path, "/proc/net/")
	if !ok {
		return "", fmt.Errorf("not below /proc/net: %s", path)
	}
	return fmt.Sprintf("/proc/self/task/%d/net/%s", unix.Gettid(), rest), nil
}

// Socket options of ip_tables (include/uapi/linux/netfilter_ipv4/ip_tables.h; the same numbers for IPv6).
const (
	soGetInfo    = 64
	soGetEntries = 65
)

func legacyDomain(fam Family) int {
	if fam == IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// legacyTable is what matters of one table.
type legacyTable struct {
	chains []string // made by users
	rules  bool     // there is a rule, or a chain made by a user
}

// readLegacyTable asks the kernel for a table: first its size, then its entries.
func readLegacyTable(fd int, fam Family, name string) (legacyTable, error) {
	level := unix.SOL_IP
	if fam == IPv6 {
		level = unix.SOL_IPV6
	}
	// struct ipt_getinfo: name[32], valid_hooks, hook_entry[5], underflow[5], num_entries, size
	info := make([]byte, 84)
	copy(info[:31], name)
	if err := getsockopt(fd, level, soGetInfo, info); err != nil {
		return legacyTable{}, err
	}
	hooks := binary.NativeEndian.Uint32(info[32:])
	entries := binary.NativeEndian.Uint32(info[76:])
	size := binary.NativeEndian.Uint32(info[80:])
	if int(entries) <= bits.OnesCount32(hooks)+1 {
		return legacyTable{}, nil // a policy per hook and the end mark
	}
	// struct ipt_get_entries: name[32], size, padding, entries
	const head = 40
	blob := make([]byte, head+int(size))
	copy(blob[:31], name)
	binary.NativeEndian.PutUint32(blob[32:], size)
	if err := getsockopt(fd, level, soGetEntries, blob); err != nil {
		if errors.Is(err, unix.EAGAIN) { // changed in between: it is in use, and the next look tells more
			return legacyTable{rules: true}, nil
		}
		return legacyTable{}, err
	}
	return legacyTable{chains: legacyChains(blob[head:], fam), rules: true}, nil
}

func getsockopt(fd, level, opt int, buf []byte) error {
	n := uint32(len(buf))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(opt),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// legacyChains finds the names of user chains in a table's entries: each begins with an entry whose target is "ERROR" and
// carries the name. Input that is not of that form ends the search.
func legacyChains(entries []byte, fam Family) []string {
	// Offsets of target_offset in struct ipt_entry and ip6t_entry; next_offset follows it.
	offset, size := 88, 112
	if fam == IPv6 {
		offset, size = 140, 168
	}
	var names []string
	for len(entries) >= size {
		target := int(binary.NativeEndian.Uint16(entries[offset:]))
		next := int(binary.NativeEndian.Uint16(entries[offset+2:]))
		if next < size || next > len(entries) || target < size || target > next {
			return names
		}
		// struct xt_error_target: target_size u16, name[29], revision u8, errorname[30]
		if t := entries[target:next]; len(t) >= 32+30 && cString(t[2:31]) == "ERROR" {
			if name := cString(t[32 : 32+30]); name != "ERROR" { // the end mark has that name
				names = append(names, name)
			}
		}
		entries = entries[next:]
	}
	return names
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
