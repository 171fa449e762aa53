// Package systemd is the daemon's side of its service manager: it tells systemd how the daemon does, keeps its sockets
// there while it restarts, asks whether it is being stopped or restarted, has a shutdown of the machine wait for it, and writes logs as the journal
// likes them.
//
// It leaves to others when to say what, and what to do on a stop; folder units holds the unit files. It starts no
// goroutines of its own. Files: the socket named by NOTIFY_SOCKET, and the system bus for what is asked (StopRequested, Runs, DelayShutdowns). Everything
// works without systemd too: then notifications go nowhere, nothing is inherited and logs carry their own time.
//
// To match: sd_notify(3), sd_listen_fds(3), sd-daemon(3), and for what systemd 252 makes of it, the tests in test/vm.
package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Notifier sends messages to the service manager. Its zero value has none and does nothing, without error. Safe for
// concurrent use. A message blocks only while the manager's queue is full, at most sendTimeout.
type Notifier struct {
	socket   string        // empty: nobody to tell
	watchdog time.Duration // WATCHDOG_USEC, zero for none
}

// sendTimeout bounds one message: systemd that does not read must not stop DNS.
const sendTimeout = 5 * time.Second

// NewNotifier reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID by getenv, os.Getenv in the daemon. Without a
// NOTIFY_SOCKET the Notifier does nothing.
func NewNotifier(getenv func(string) string) (*Notifier, error) {
	n := &Notifier{}
	switch path := getenv("NOTIFY_SOCKET"); {
	case path == "":
		return n, nil
	case path[0] != '/' && path[0] != '@':
		return nil, fmt.Errorf("NOTIFY_SOCKET: found %q, expected an absolute path or an abstract socket that begins with @", path)
	case len(path) >= len(unix.RawSockaddrUnix{}.Path):
		return nil, fmt.Errorf("NOTIFY_SOCKET: found a path of %d bytes, expected fewer than %d", len(path), len(unix.RawSockaddrUnix{}.Path))
	default:
		n.socket = path
	}
	usec := getenv("WATCHDOG_USEC")
	if pid := getenv("WATCHDOG_PID"); usec == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return n, nil // no watchdog, or it is for another process
	}
	us, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || us <= 0 || us > int64(time.Duration(1<<63-1)/time.Microsecond) {
		return nil, fmt.Errorf("WATCHDOG_USEC: found %q, expected microseconds above zero", usec)
	}
	n.watchdog = time.Duration(us) * time.Microsecond
	return n, nil
}

// Ready says that the daemon does its job, after a start or a reload.
func (n *Notifier) Ready() error { return n.send("READY=1") }

// Status sets the one line that `systemctl status` shows. Line breaks become spaces.
func (n *Notifier) Status(text string) error {
	return n.send("STATUS=" + strings.NewReplacer("\n", " ", "\r", " ").Replace(text))
}

// Reloading says that the daemon reads its configuration again; Ready says that it is done.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the monotonic clock: %w", err)
	}
	return n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the daemon is on its way out.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1") }

// WatchdogInterval is how often to call Watchdog: half of what systemd allows. Zero means that no watchdog is set.
func (n *Notifier) WatchdogInterval() time.Duration { return n.watchdog / 2 }

// Watchdog says that the daemon is alive.
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1") }

// send makes a socket for each message: systemd may have put a new one in place of the last. Not package net's, which
// cannot send descriptors over a connected datagram socket.
func (n *Notifier) send(message string, fds ...int) error {
	if n.socket == "" {
		return nil
	}
	what, _, _ := strings.Cut(message, "=")
	if err := sendTo(n.socket, []byte(message), fds); err != nil {
		return fmt.Errorf("notify systemd of %s: %w", what, err)
	}
	return nil
}

func sendTo(to string, message []byte, fds []int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		// SockaddrUnix makes the abstract socket's 0 byte of an @. EINTR, because the kernel does not resume a call that has
		// a time-out after one of the runtime's own signals.
		err := unix.Sendmsg(fd, message, rights, &unix.SockaddrUnix{Name: to}, 0)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}
