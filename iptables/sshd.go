package iptables

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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
