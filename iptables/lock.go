package iptables

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockAddress is an abstract socket that whoever changes our rules holds meanwhile. Abstract names belong to the network
// namespace, as the rules do, and the kernel lets go of them when their holder dies.
const lockAddress = "@wingman-rules"

// ErrBusy means that another process is changing the rules and did not finish in time.
var ErrBusy = errors.New("another process is changing the rules")

// acquire waits until nobody else changes our rules in this network namespace and returns what lets go of them again.
//
// It must be called in the namespace; it gives up after wait, naming the other process. Any user can take an abstract name:
// a holder that is neither root nor this user is a nuisance, not a lock, and is passed by.
func acquire(parent context.Context, wait time.Duration) (release func(), err error) {
	ctx, cancel := context.WithTimeout(parent, wait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var holder *unix.Ucred
	for {
		l, err := net.Listen("unix", lockAddress)
		if err == nil {
			return func() { l.Close() }, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("lock the rules: %w", err)
		}
		if cred := socketHolder(); cred != nil {
			holder = cred
		}
		if holder != nil && holder.Uid != 0 && int(holder.Uid) != os.Geteuid() {
			return func() {}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if parent.Err() != nil {
				return nil, fmt.Errorf("lock the rules: %w", parent.Err())
			}
			if holder == nil { // bound, but never listening: none of ours
				return func() {}, nil
			}
			return nil, fmt.Errorf("%w: waited %s for %s; try again when it is done", ErrBusy, wait, processName(int(holder.Pid)))
		}
	}
}

// socketHolder returns who listens on lockAddress, nil when nobody does.
func socketHolder() *unix.Ucred {
	conn, err := net.Dial("unix", lockAddress)
	if err != nil {
		return nil
	}
	defer conn.Close()
	return peer(conn)
}

// peer returns the process at the other end of a unix socket; for a connection that was dialled, whoever listens.
func peer(conn net.Conn) *unix.Ucred {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) { cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred
}

// xtablesLock is the file that the commands of iptables-legacy lock.
func xtablesLock() string { return cmp.Or(os.Getenv("XTABLES_LOCKFILE"), "/run/xtables.lock") }

// awaitXtables waits until nobody holds the lock of iptables-legacy, and lets go of it: the commands take it themselves. It is for
// changes that must not stop half-way at that lock. Where the file cannot be opened, the commands will say why.
func awaitXtables(ctx context.Context, wait time.Duration) error {
	f, err := os.OpenFile(xtablesLock(), os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return nil // closing the file unlocks it
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: waited %s, nothing was changed: %s", ErrBusy, wait, lockHolder())
		}
	}
}

// lockHolder says who holds the lock file of iptables-legacy, as far as /proc tells.
func lockHolder() string {
	const advice = "wait until it is done, or see why it hangs"
	path := xtablesLock()
	info, err := os.Stat(path)
	if err != nil {
		return "another process holds the xtables lock: " + advice
	}
	stat := info.Sys().(*syscall.Stat_t)
	f, err := os.Open("/proc/locks")
	if err != nil {
		return "another process holds " + path + ": " + advice
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 1: FLOCK  ADVISORY  WRITE 708 08:01:1234 0 EOF
		w := strings.Fields(lines.Text())
		if len(w) < 6 || w[1] != "FLOCK" || !strings.HasSuffix(w[5], ":"+strconv.FormatUint(stat.Ino, 10)) {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil {
			return processName(pid) + " holds " + path + ": " + advice
		}
	}
	return "another process holds " + path + ": " + advice
}

// processName is "name (pid N)", or only the number where /proc hides the process.
func processName(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("pid %d", pid)
	}
	return fmt.Sprintf("%s (pid %d)", strings.TrimSpace(string(comm)), pid)
}
