package iptables

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"wingman/internal/plainfile"

	"golang.org/x/sys/unix"
)

// gatherSSH finds out how people reach this machine, from every source that can be read, because each can be wrong alone:
// sshd's configuration changed but not loaded yet, or overruled on its command line, systemd listening in its place, a second
// sshd. A running sshd is asked itself, which starts a process, only when neither its sockets nor its configuration can be read.
//
// Whose a socket is /proc tells root; the others learn it from the cgroup that it was made in, which is that of sshd's unit.
func gatherSSH(ctx context.Context, cfg GatherConfig, h *host) (SSH, []string) {
	var ssh SSH
	var notes []string
	add := func(ports []uint16, how string) {
		for _, p := range ports {
			ssh.Listeners = append(ssh.Listeners, Listener{p, how})
		}
	}
	sockets, err := tcpSockets(tcpListen, tcpEstablished)
	if err != nil {
		notes = append(notes, fmt.Sprintf("the kernel's sockets cannot be read (%v): SSH is guarded by its configuration only", err))
	}
	listening := func(p uint16) bool {
		return slices.ContainsFunc(sockets, func(s socket) bool { return s.listening && s.local.Port() == p })
	}
	owned, running := h.socketsOfSSHD()
	units := byCgroup(sockets, cgroupRoots)
	var seen, byHand []uint16 // ports of sshd; ports that could be
	for _, s := range sockets {
		mine := owned[s.inode] || (s.uid == 0 && units[s.cgroup] == cgroupSSHD)
		switch port := s.local.Port(); {
		case mine && s.listening:
			seen = append(seen, port)
		case mine && !s.peer.Addr().IsLoopback():
			ssh.Sessions = append(ssh.Sessions, Session{port, s.peer.Addr()})
		case s.listening && s.uid == 0 && len(owned) == 0 && running && units[s.cgroup] == cgroupByHand && !s.local.Addr().IsLoopback():
			byHand = append(byHand, port)
		}
	}
	add(seen, "sshd listens there")
	reported := false
	if cfg.SSHReport != "" {
		if report, err := readSSHReport(cfg.SSHReport); err == nil {
			reported = len(report.Listeners) > 0
			ssh.Listeners = append(ssh.Listeners, report.Listeners...)
			ssh.Sessions = append(ssh.Sessions, report.Sessions...)
		}
	}
	configured, err := readSSHDConfig(cfg.SSHDConfig, 0)
	if err == nil {
		add(configured, cfg.SSHDConfig+" says so")
		if note := doubt(cfg.SSHDConfig, configured, seen, reported, listening); note != "" {
			notes = append(notes, note)
		}
	} else if running && len(seen) == 0 {
		if ports, err := askSSHD(ctx, h); err == nil {
			add(ports, "sshd -T says so")
		}
	}
	for _, unit := range []string{"ssh.socket", "sshd.socket"} {
		ports, enabled := socketUnit(systemdDirs, unit)
		add(slices.DeleteFunc(ports, func(p uint16) bool { return !enabled && !listening(p) }), unit+" says so")
	}
	add(byHand, "root listens there from a session, and whether that is an sshd only root can tell")
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

// doubt is what a person should know when sshd's configuration is all there is, or when sshd does otherwise; "" when all is
// well, or when nothing listens at all. Pure.
func doubt(path string, configured, seen []uint16, reported bool, listening func(uint16) bool) string {
	var missing []uint16
	for _, p := range configured {
		if !slices.Contains(seen, p) {
			missing = append(missing, p)
		}
	}
	extra := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(seen))), func(p uint16) bool { return slices.Contains(configured, p) })
	switch {
	case len(extra) > 0:
		return fmt.Sprintf("sshd listens on %s, which %s does not say: both its ports and those of the file are kept out of capture", portNames(extra), path)
	case len(seen) == 0 && !reported && !slices.ContainsFunc(missing, listening):
		return fmt.Sprintf("no sshd was seen, and %s is all that tells of its ports (%s): one that listens elsewhere is not guarded until it can be seen", path, portNames(missing))
	}
	return ""
}

func portNames(ports []uint16) string {
	var names []string
	for _, p := range ports {
		names = append(names, strconv.Itoa(int(p)))
	}
	if len(names) == 1 {
		return "port " + names[0]
	}
	return "ports " + strings.Join(names, ", ")
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
		if !strings.HasPrefix(commOf(pid), "sshd") { // sshd, sshd-session, sshd-auth
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

// commOf returns the name of a process, "" when it is gone. With plain system calls, because it is asked of every process there is,
// and package os takes eight for a file.
func commOf(pid string) string {
	fd, err := unix.Open("/proc/"+pid+"/comm", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	var name [16]byte
	n, _ := unix.Read(fd, name[:])
	return string(name[:max(n, 0)])
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

// mostSSHReport is more bytes than a report has of a thousand sessions.
const mostSSHReport = 1 << 20

func readSSHReport(path string) (SSH, error) {
	b, _, err := plainfile.Read(path, mostSSHReport) // root reads it too, and its folder is the agent's
	if err != nil {
		return SSH{}, fmt.Errorf("read the SSH report: %w", err)
	}
	var r SSH
	if err := json.Unmarshal(b, &r); err != nil {
		return SSH{}, fmt.Errorf("read the SSH report: %s: %w", path, err)
	}
	return r, nil
}
