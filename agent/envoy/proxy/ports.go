package proxy

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Port is one that Envoy will listen on.
type Port struct {
	Addr    netip.AddrPort // the unspecified address means every interface
	Purpose string         // "outbound traffic"
	Setting string         // key of wingman.yaml that moves it; empty: none does
	Mesh    bool           // istiod's listener has it: the mesh's config alone moves it
}

// listening is a socket that accepts connections, as /proc/net/tcp has it.
type listening struct {
	addr  netip.AddrPort
	uid   uint32
	inode string
}

// Files with the TCP sockets of the calling thread's network namespace.
var socketTables = []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"}

// checkPorts says which of the ports are taken, and by whom, as far as this user may know; ours are sockets that do not count, by
// their inodes. nil: Envoy can have them all, or it cannot be known; then Envoy's own error comes.
//
// Envoy itself would not always notice: it opens its ports with SO_REUSEPORT, and the kernel lets a second listener of the same
// user in, which then takes half of the connections.
func checkPorts(ports []Port, ours []string) error {
	sockets, err := listeningSockets()
	if err != nil {
		return nil
	}
	var taken []string
	for _, p := range ports {
		for _, s := range sockets {
			if p.conflicts(s.addr) && !slices.Contains(ours, s.inode) {
				taken = append(taken, p.taken(s))
				break
			}
		}
	}
	if len(taken) == 0 {
		return nil
	}
	return errors.New(strings.Join(taken, "; "))
}

func listeningSockets() ([]listening, error) {
	var all []listening
	for _, name := range socketTables {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && strings.HasSuffix(name, "6") {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, err
		}
		sockets, err := parseSockets(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, sockets...)
	}
	return all, nil
}

// overflowUID stands for users that this process's user namespace does not have (user_namespaces(7)), as in the proxy's unit.
const overflowUID = 65534

// parseSockets reads the listening sockets of a table of proc_net(5): a heading, then
// "sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …", addresses as hexadecimal words of the host's order.
func parseSockets(r io.Reader) (sockets []listening, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || f[3] != "0A" { // TCP_LISTEN
			continue
		}
		addr, ok := parseAddr(f[1])
		uid, uidErr := strconv.ParseUint(f[7], 10, 32)
		if ok && uidErr == nil {
			sockets = append(sockets, listening{addr: addr, uid: uint32(uid), inode: f[9]})
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the list of sockets: %w", err)
	}
	return sockets, nil
}

func parseAddr(s string) (netip.AddrPort, bool) {
	host, portText, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(host)
	port, portErr := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil || portErr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, false
	}
	if nativeIsLittle {
		for word := range slices.Chunk(b, 4) {
			slices.Reverse(word)
		}
	}
	addr, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), ok
}

// conflicts reports whether Envoy cannot have p while a socket listens at addr, or should not.
func (p Port) conflicts(addr netip.AddrPort) bool {
	if p.Addr.Port() != addr.Port() {
		return false
	}
	mine, theirs := p.Addr.Addr(), addr.Addr()
	// "::" takes IPv4 too, unless it was told not to: that is not in the table.
	return mine.IsUnspecified() && (mine.Is6() || theirs.Is4() || theirs.IsUnspecified()) ||
		theirs.IsUnspecified() && (theirs.Is6() || mine.Is4()) || mine == theirs
}

// taken names who has the port.
func (p Port) taken(s listening) string {
	hint := "stop it"
	switch {
	case p.Setting != "":
		hint += ", or give Envoy another port with " + p.Setting
	case p.Mesh:
		hint += ", or have it listen elsewhere: istiod chooses this port for the whole mesh"
	}
	return fmt.Sprintf("port %d, Envoy's for %s, is held by %s: %s", p.Addr.Port(), p.Purpose, holder(s), hint)
}

// holder names the process of a socket; the user, where the process is another's and cannot be seen.
func holder(s listening) string {
	link := "socket:[" + s.inode + "]"
	for _, pid := range processes() {
		fds, err := os.ReadDir(filepath.Join("/proc", pid, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if at, err := os.Readlink(filepath.Join("/proc", pid, "fd", fd.Name())); err == nil && at == link {
				return nameOf(pid)
			}
		}
	}
	if s.uid == overflowUID {
		return "another user's process (as root, ss -ltnp names it)"
	}
	return fmt.Sprintf("a process of uid %d (as root, ss -ltnp names it)", s.uid)
}

// nameOf is "nginx (pid 812)".
func nameOf(pid string) string {
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return "pid " + pid
	}
	return strings.TrimSpace(string(comm)) + " (pid " + pid + ")"
}

func processes() []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, e.Name())
		}
	}
	return pids
}
