package iptables

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// cgroupRoots is where the cgroup v2 hierarchy may be: alone, or beside v1.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// maxCgroupDepth is deeper than systemd nests units: user.slice/user-0.slice/user@0.service/app.slice/x.service.
const maxCgroupDepth = 6

// cgroupPaths finds the paths of cgroups by their number, which is the inode number of their directory.
func cgroupPaths(roots []string, wanted map[uint64]bool) map[uint64]string {
	found := map[uint64]string{}
	var walk func(dir, path string, depth int)
	walk = func(dir, path string, depth int) {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || len(found) == len(wanted) {
			return
		}
		if stat := info.Sys().(*syscall.Stat_t); wanted[stat.Ino] {
			found[stat.Ino] = cmp.Or(path, "/")
		}
		if depth == maxCgroupDepth {
			return
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				walk(filepath.Join(dir, e.Name()), path+"/"+e.Name(), depth+1)
			}
		}
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err == nil { // v2: at its root, too
			walk(root, "", 0)
		}
	}
	return found
}

// How the cgroup of a socket that root listens on speaks for sshd.
type sshCgroup int

const (
	cgroupOther  sshCgroup = iota // a service of another name, or unknown
	cgroupSSHD                    // sshd's service
	cgroupByHand                  // started from somebody's session: it may be an sshd, and only root could see
)

// judgeCgroup tells by the path of a cgroup. Pure.
func judgeCgroup(path string) sshCgroup {
	parts := strings.Split(path, "/")
	for _, p := range parts {
		unit, isService := strings.CutSuffix(p, ".service")
		if isService && (unit == "ssh" || strings.HasPrefix(unit, "ssh@") || strings.HasPrefix(unit, "sshd") || strings.HasPrefix(unit, "dropbear")) {
			return cgroupSSHD
		}
	}
	if slices.Contains(parts, "user.slice") && strings.HasSuffix(path, ".scope") {
		return cgroupByHand
	}
	return cgroupOther
}

// byCgroup judges every listener of root. A connection belongs to the cgroup of the listener that accepted it, wherever the
// session's processes live.
func byCgroup(sockets []socket, roots []string) map[uint64]sshCgroup {
	wanted := map[uint64]bool{}
	for _, s := range sockets {
		if s.listening && s.uid == 0 && s.cgroup != 0 {
			wanted[s.cgroup] = true
		}
	}
	out := map[uint64]sshCgroup{}
	if len(wanted) == 0 {
		return out
	}
	for id, path := range cgroupPaths(roots, wanted) {
		out[id] = judgeCgroup(path)
	}
	return out
}

// listenersOfRoot sums up where root listens for others, and in which cgroups. It changes when an sshd comes, goes or moves; one
// dump of listening sockets, no privilege, no process.
func listenersOfRoot() (uint64, error) {
	sockets, err := tcpSockets(tcpListen)
	if err != nil {
		return 0, err
	}
	var lines []string
	for _, s := range sockets {
		if s.uid == 0 && !s.local.Addr().IsLoopback() {
			lines = append(lines, fmt.Sprintf("%s %d", s.local, s.cgroup))
		}
	}
	slices.Sort(lines)
	h := fnv.New64a()
	for _, l := range slices.Compact(lines) {
		fmt.Fprintln(h, l)
	}
	return h.Sum64(), nil
}
