package iptables

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// socket is one TCP socket of this network namespace.
type socket struct {
	listening bool
	local     netip.AddrPort
	peer      netip.AddrPort
	uid       uint32
	inode     uint32
}

// gatherSSH finds out how people reach this machine, from every source that can be read, because each can be wrong alone:
// sshd's configuration changed but not loaded yet, systemd listening in its place, a second sshd. A running sshd is asked
// itself, which starts a process, only when neither its sockets nor its configuration can be read.
func gatherSSH(ctx context.Context, cfg GatherConfig, h *host) (SSH, []string) {
	var ssh SSH
	var notes []string
	add := func(ports []uint16, how string) {
		for _, p := range ports {
			ssh.Listeners = append(ssh.Listeners, Listener{p, how})
		}
	}
	sockets, err := tcpSockets()
	if err != nil {
		notes = append(notes, fmt.Sprintf("the kernel's sockets cannot be read (%v): SSH is guarded by its configuration only", err))
	}
	owned, running := socketsOfSSHD()
	for _, s := range sockets {
		switch {
		case !owned[s.inode]:
		case s.listening:
			add([]uint16{s.local.Port()}, "sshd listens there")
		case !s.peer.Addr().IsLoopback():
			ssh.Sessions = append(ssh.Sessions, Session{s.local.Port(), s.peer.Addr()})
		}
	}
	seen := len(ssh.Listeners) > 0
	if cfg.SSHReport != "" {
		if report, err := readSSHReport(cfg.SSHReport); err == nil {
			ssh.Listeners = append(ssh.Listeners, report.Listeners...)
			ssh.Sessions = append(ssh.Sessions, report.Sessions...)
		}
	}
	if ports, err := readSSHDConfig(cfg.SSHDConfig, 0); err == nil {
		add(ports, cfg.SSHDConfig+" says so")
	} else if running && !seen {
		if ports, err := askSSHD(ctx, h); err == nil {
			add(ports, "sshd -T says so")
		}
	}
	listening := func(p uint16) bool {
		return slices.ContainsFunc(sockets, func(s socket) bool { return s.listening && s.local.Port() == p })
	}
	for _, unit := range []string{"ssh.socket", "sshd.socket"} {
		ports, enabled := socketUnit(systemdDirs, unit)
		add(slices.DeleteFunc(ports, func(p uint16) bool { return !enabled && !listening(p) }), unit+" says so")
	}
	if len(ssh.Listeners) == 0 {
		add([]uint16{22}, "assumed, because sshd cannot be asked")
		for _, s := range sockets {
			if s.listening && s.uid == 0 && s.local.Port() < 1024 && !s.local.Addr().IsLoopback() {
				add([]uint16{s.local.Port()}, "root listens there, and sshd cannot be asked")
			}
		}
		notes = append(notes, "which ports sshd listens on cannot be found out: port 22 and every port below 1024 that root listens on are kept out of capture")
	}
	return ssh, notes
}

// askSSHD returns the ports that sshd's effective configuration names. sshd tells only root, who can read its host keys.
func askSSHD(ctx context.Context, h *host) ([]uint16, error) {
	path, err := h.find("sshd")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out, err := h.run(ctx, "", path, "-T")
	if err != nil {
		return nil, err
	}
	return parseSSHDTest(out)
}

// parseSSHDTest reads the output of sshd -T: lines "port 22" and "listenaddress 0.0.0.0:22" or "[::]:22".
func parseSSHDTest(text string) ([]uint16, error) {
	var out []uint16
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "port":
			out = addPort(out, f[1])
		case "listenaddress":
			out = addPort(out, f[1][strings.LastIndex(f[1], ":")+1:])
		}
	}
	if len(out) == 0 {
		return nil, errors.New("sshd -T names no port")
	}
	return out, nil
}

func addPort(list []uint16, text string) []uint16 {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 || slices.Contains(list, uint16(n)) {
		return list
	}
	return append(list, uint16(n))
}

// maxInclude bounds the depth of Include in sshd_config, as sshd does.
const maxInclude = 16

// readSSHDConfig finds the ports in sshd_config and what it includes; without any it is sshd's default, 22. It stops at the
// first Match, after which no port can stand.
func readSSHDConfig(path string, depth int) ([]uint16, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read sshd's configuration: %w", err)
	}
	ports, includes := parseSSHDConfig(string(b))
	for _, pattern := range includes {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		files, err := filepath.Glob(pattern)
		if err != nil || depth >= maxInclude {
			return nil, fmt.Errorf("read sshd's configuration: %s: cannot follow Include %s", path, pattern)
		}
		for _, file := range files {
			more, err := readSSHDConfig(file, depth+1)
			if err != nil {
				return nil, err
			}
			for _, p := range more {
				if !slices.Contains(ports, p) {
					ports = append(ports, p)
				}
			}
		}
	}
	if depth == 0 && len(ports) == 0 {
		ports = []uint16{22}
	}
	return ports, nil
}

// parseSSHDConfig returns the ports and the Include patterns of one file of sshd_config(5).
func parseSSHDConfig(text string) (ports []uint16, includes []string) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '=' || r == '"' || r == '\n' || r == '\r' })
		if len(f) < 2 {
			continue
		}
		switch strings.ToLower(f[0]) {
		case "port":
			ports = addPort(ports, f[1])
		case "listenaddress": // host, host:port, [host]:port; a bare IPv6 address has several colons
			if ap, err := netip.ParseAddrPort(f[1]); err == nil {
				ports = addPort(ports, strconv.Itoa(int(ap.Port())))
			} else if host, port, ok := strings.Cut(f[1], ":"); ok && host != "" && !strings.Contains(port, ":") {
				ports = addPort(ports, port)
			}
		case "include":
			includes = append(includes, f[1:]...)
		case "match":
			return ports, includes
		}
	}
	return ports, includes
}

// systemdDirs is where units are, strongest first (systemd.unit(5)).
var systemdDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// socketUnit returns the TCP ports of a socket unit and its drop-ins, and whether it is started at boot.
func socketUnit(dirs []string, unit string) (ports []uint16, enabled bool) {
	for _, dir := range dirs {
		if b, err := os.ReadFile(filepath.Join(dir, unit)); err == nil {
			ports = parseListenStream(ports, string(b))
			break
		}
	}
	dropIns := map[string]string{} // by name: the strongest of a name counts
	for _, dir := range slices.Backward(dirs) {
		files, _ := filepath.Glob(filepath.Join(dir, unit+".d", "*.conf"))
		for _, f := range files {
			dropIns[filepath.Base(f)] = f
		}
		if _, err := os.Lstat(filepath.Join(dir, "sockets.target.wants", unit)); err == nil {
			enabled = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropIns)) {
		if b, err := os.ReadFile(dropIns[name]); err == nil {
			ports = parseListenStream(ports, string(b))
		}
	}
	return ports, enabled
}

// parseListenStream adds the ports of ListenStream= in a unit file to those of the files before it; an empty one forgets them.
func parseListenStream(ports []uint16, text string) []uint16 {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.TrimSpace(key) != "ListenStream" {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			ports = nil
			continue
		}
		ports = addPort(ports, value[strings.LastIndex(value, ":")+1:])
	}
	return ports
}

// tcpSockets lists the listening and established TCP sockets of this network namespace (sock_diag(7)); no privilege needed.
func tcpSockets() ([]socket, error) {
	var out []socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.SocketDiagTCP(family)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list TCP sockets: %w", err)
		}
		for _, s := range list {
			if s.State != netlink.TCP_LISTEN && s.State != netlink.TCP_ESTABLISHED {
				continue
			}
			local, _ := netip.AddrFromSlice(s.ID.Source)
			peer, _ := netip.AddrFromSlice(s.ID.Destination)
			out = append(out, socket{
				listening: s.State == netlink.TCP_LISTEN, uid: s.UID, inode: s.INode,
				local: netip.AddrPortFrom(local.Unmap(), s.ID.SourcePort), peer: netip.AddrPortFrom(peer.Unmap(), s.ID.DestinationPort),
			})
		}
	}
	return out, nil
}

// socketsOfSSHD returns the inodes of the sockets that processes of sshd hold, as far as /proc shows them: to root, all. It
// also says whether there may be such a process: without root, yes.
func socketsOfSSHD() (inodes map[uint32]bool, running bool) {
	inodes = map[uint32]bool{}
	running = os.Geteuid() != 0
	proc, err := os.Open("/proc")
	if err != nil {
		return inodes, true
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, pid := range names {
		if pid[0] < '0' || pid[0] > '9' {
			continue
		}
		comm, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil || !strings.HasPrefix(string(comm), "sshd") { // sshd, sshd-session, sshd-auth
			continue
		}
		running = true
		fds, _ := os.ReadDir("/proc/" + pid + "/fd")
		for _, fd := range fds {
			link, err := os.Readlink("/proc/" + pid + "/fd/" + fd.Name())
			if err != nil {
				continue
			}
			if n, ok := strings.CutPrefix(link, "socket:["); ok {
				if inode, err := strconv.ParseUint(strings.TrimSuffix(n, "]"), 10, 32); err == nil {
					inodes[uint32(inode)] = true
				}
			}
		}
	}
	return inodes, running
}

// WriteSSHReport finds out how people reach this machine and writes it to a file that every user may read. The unit runs it
// as root (ExecStartPre=+) so that the agent, which cannot ask sshd, guards the right ports.
func WriteSSHReport(ctx context.Context, path string, cfg GatherConfig) error {
	cfg.SSHReport = ""
	if cfg.SSHDConfig == "" {
		cfg.SSHDConfig = "/etc/ssh/sshd_config"
	}
	ssh, _ := gatherSSH(ctx, cfg, systemHost())
	b, err := json.Marshal(ssh)
	if err != nil {
		return fmt.Errorf("write the SSH report: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".ssh-report-*")
	if err != nil {
		return fmt.Errorf("write the SSH report: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the SSH report: %w", err)
	}
	return nil
}

func readSSHReport(path string) (SSH, error) {
	f, err := os.Open(path)
	if err != nil {
		return SSH{}, fmt.Errorf("read the SSH report: %w", err)
	}
	defer f.Close()
	var r SSH
	if err := json.NewDecoder(bufio.NewReader(f)).Decode(&r); err != nil {
		return SSH{}, fmt.Errorf("read the SSH report: %s: %w", path, err)
	}
	return r, nil
}
