package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacyTables looks at the tables of iptables-legacy through the kernel's own interface, because starting
// iptables-legacy-save makes tables that were not there, and does not work at all without root.
//
// Tables that nobody has used yet are left out, and not brought to life where their list can be read.
func legacyTables(fam Family) (map[string]legacyTable, error) {
	names, err := legacyTableNames(fam)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	fd, err := unix.Socket(legacyDomain(fam), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, kernelError("open a raw socket to read the tables of iptables-legacy", err)
	}
	defer unix.Close(fd)
	tables := map[string]legacyTable{}
	for _, name := range names {
		table, err := readLegacyTable(fd, fam, name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) {
			continue
		}
		if err != nil {
			return nil, kernelError(fmt.Sprintf("read %s table %s of iptables-legacy", fam, name), err)
		}
		tables[name] = table
	}
	return tables, nil
}

// legacyTableNames lists the tables that exist in this network namespace. Only root can read the list: for others all are
// to be tried, which brings a table to life that is built into the kernel, but loads no module.
func legacyTableNames(fam Family) ([]string, error) {
	name := "ip_tables_names"
	if fam == IPv6 {
		name = "ip6_tables_names"
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/%s", unix.Gettid(), name)) // of this thread's namespace
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.Is(err, os.ErrPermission):
		return []string{"filter", "nat", "mangle", "raw"}, nil
	case err != nil:
		return nil, fmt.Errorf("list the tables of iptables-legacy: %w", err)
	}
	return strings.Fields(string(b)), nil
}

// Socket options of ip_tables (include/uapi/linux/netfilter_ipv4/ip_tables.h; the same numbers for IPv6).
const (
	soGetInfo    = 64
	soGetEntries = 65
)

// entriesHead is the length of struct ipt_get_entries before its entries: name[32], size, padding.
const entriesHead = 40

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
	sum    uint64   // of the entries without their counters
}

// readLegacyTable asks the kernel for a table: first its size, then its entries.
func readLegacyTable(fd int, fam Family, name string) (legacyTable, error) {
	level := unix.SOL_IP
	if fam == IPv6 {
		level = unix.SOL_IPV6
	}
	// Asking for entries of the wrong size tells whether the table is there; asking for its size would load its module.
	probe := make([]byte, entriesHead)
	copy(probe[:31], name)
	if err := getsockopt(fd, level, soGetEntries, probe); err != nil && !errors.Is(err, unix.EAGAIN) {
		return legacyTable{}, err
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
	blob := make([]byte, entriesHead+int(size))
	copy(blob[:31], name)
	binary.NativeEndian.PutUint32(blob[32:], size)
	if err := getsockopt(fd, level, soGetEntries, blob); err != nil {
		if errors.Is(err, unix.EAGAIN) { // changed in between: it is in use, and the next look tells more
			return legacyTable{rules: true}, nil
		}
		return legacyTable{}, err
	}
	chains, sum := legacyChains(blob[entriesHead:], fam)
	return legacyTable{chains: chains, rules: true, sum: sum}, nil
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
// carries the name. It also sums up the entries without their counters. Input that is not of that form ends the search.
func legacyChains(entries []byte, fam Family) (names []string, sum uint64) {
	// Offsets of target_offset in struct ipt_entry and ip6t_entry; next_offset follows it.
	offset, size := 88, 112
	if fam == IPv6 {
		offset, size = 140, 168
	}
	h := fnv.New64a()
	for len(entries) >= size {
		target := int(binary.NativeEndian.Uint16(entries[offset:]))
		next := int(binary.NativeEndian.Uint16(entries[offset+2:]))
		if next < size || next > len(entries) || target < size || target > next {
			break
		}
		h.Write(entries[:size-16]) // packets and bytes are counted at the end of the head
		h.Write(entries[size:next])
		// struct xt_error_target: target_size u16, name[29], revision u8, errorname[30]
		if t := entries[target:next]; len(t) >= 32+30 && cString(t[2:31]) == "ERROR" {
			if name := cString(t[32 : 32+30]); name != "ERROR" { // the end mark has that name
				names = append(names, name)
			}
		}
		entries = entries[next:]
	}
	return names, h.Sum64()
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
