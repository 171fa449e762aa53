package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// firstFD is where inherited descriptors begin, SD_LISTEN_FDS_START.
	firstFD = 3

	// maxFDName is the longest name systemd takes, FDNAME_MAX.
	maxFDName = 255

	// unnamed is the name of a descriptor that came without one, as in sd_listen_fds_with_names(3).
	unnamed = "unknown"
)

// StoreFDs gives systemd a copy of each file to keep under name while the daemon restarts: the unit's
// FileDescriptorStoreMax= has to allow for all of them. systemd does not answer, and what it already has it does not store
// twice. The files stay open and as they are.
//
// name is up to 255 printable ASCII characters without a colon.
func (n *Notifier) StoreFDs(name string, files ...*os.File) error {
	if err := checkFDName(name); err != nil {
		return err
	}
	if len(files) == 0 || n.socket == "" {
		return nil
	}
	// FDPOLL=0: else systemd drops a socket that it sees an error on, and a UDP socket gets one from each ICMP message.
	message := "FDSTORE=1\nFDNAME=" + name + "\nFDPOLL=0"
	fds := make([]int, 0, len(files))
	// Each descriptor is valid only inside its Control, so they are nested. File.Fd would be simpler, but it makes the
	// socket blocking for everybody who shares it.
	var nest func(rest []*os.File) error
	nest = func(rest []*os.File) error {
		if len(rest) == 0 {
			return n.send(message, fds...)
		}
		raw, err := rest[0].SyscallConn()
		if err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		var inner error
		if err := raw.Control(func(fd uintptr) {
			fds = append(fds, int(fd))
			inner = nest(rest[1:])
		}); err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		return inner
	}
	return nest(files)
}

// RemoveFDs makes systemd close everything that it keeps under name.
func (n *Notifier) RemoveFDs(name string) error {
	if err := checkFDName(name); err != nil {
		return err
	}
	return n.send("FDSTOREREMOVE=1\nFDNAME=" + name)
}

func checkFDName(name string) error {
	if name == "" || len(name) > maxFDName {
		return fmt.Errorf("descriptor name %q: found %d bytes, expected 1 to %d", name, len(name), maxFDName)
	}
	for _, c := range []byte(name) {
		if c < ' ' || c > '~' || c == ':' {
			return fmt.Errorf("descriptor name %q: expected printable ASCII without a colon", name)
		}
	}
	return nil
}

// Inherited returns the descriptors that systemd handed to this process, from its FD store or from socket units, by name.
// They are marked close-on-exec, and LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are unset by unsetenv, so that neither
// reaches a child. Call it once, before anything else opens a file. getenv and unsetenv are os.Getenv and os.Unsetenv in
// the daemon.
//
// Several descriptors may have one name. Do not lean on their order: systemd hands the store out in reverse, and another
// way after it re-executed itself. Without a name a descriptor is called "unknown". Nothing inherited is an empty map.
// With an error, which names everything that is wrong, the map still holds each descriptor that can be used.
func Inherited(getenv func(string) string, unsetenv func(string) error) (map[string][]*os.File, error) {
	return inherited(firstFD, getenv, unsetenv)
}

func inherited(first int, getenv func(string) string, unsetenv func(string) error) (map[string][]*os.File, error) {
	names, err := listenNames(getenv("LISTEN_PID"), os.Getpid(), getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES"))
	problems := []error{err}
	files := map[string][]*os.File{}
	for i, name := range names {
		fd := first + i
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			problems = append(problems, fmt.Errorf("LISTEN_FDS: descriptor %d (%s): %w", fd, name, err))
			continue
		}
		files[name] = append(files[name], os.NewFile(uintptr(fd), name))
	}
	for _, key := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := unsetenv(key); err != nil {
			problems = append(problems, fmt.Errorf("unset %s: %w", key, err))
		}
	}
	return files, errors.Join(problems...)
}

// maxFDs is more than any unit may store, and keeps a bad count from being believed.
const maxFDs = 1024

// listenNames returns the name of each descriptor, in their order, from the values of LISTEN_PID, LISTEN_FDS and
// LISTEN_FDNAMES: none if they are meant for another process. Names come also with an error about them.
func listenNames(listenPID string, self int, fds, fdNames string) ([]string, error) {
	if listenPID == "" || fds == "" {
		return nil, nil
	}
	pid, err := strconv.Atoi(listenPID)
	if err != nil || pid <= 0 {
		return nil, fmt.Errorf("LISTEN_PID: found %q, expected a process id", listenPID)
	}
	if pid != self {
		return nil, nil
	}
	count, err := strconv.Atoi(fds)
	if err != nil || count < 0 || count > maxFDs {
		return nil, fmt.Errorf("LISTEN_FDS: found %q, expected 0 to %d", fds, maxFDs)
	}
	names := make([]string, count)
	for i := range names {
		names[i] = unnamed
	}
	if fdNames == "" {
		return names, nil
	}
	given := strings.Split(fdNames, ":")
	if len(given) != count {
		err = fmt.Errorf("LISTEN_FDNAMES: found %d names for %d descriptors", len(given), count)
	}
	for i := range min(len(given), count) {
		if given[i] != "" {
			names[i] = given[i]
		}
	}
	return names, err
}
