package child

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of each process of a run: whatever group and session it moves to, and whoever is its parent, it has that from the command.
const markVariable = "WINGMAN_RUN"

// newMark is a mark that no other run has.
func newMark() string { return markVariable + "=" + rand.Text() }

// mostRounds bounds how often killMarked looks again: processes that multiply faster than they are killed are left to the limit of the service's tasks.
const mostRounds = 50

// killMarked kills every process that has the mark in its environment, until a look finds none. Processes of other users, and those that have emptied or
// overwritten their environment, cannot be told.
func killMarked(mark string) {
	proc, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer proc.Close()
	buf := make([]byte, 16<<10)
	killed := map[int]bool{} // one that was killed forks no more, and may take a moment to go
	for range mostRounds {
		if _, err := proc.Seek(0, io.SeekStart); err != nil {
			return
		}
		names, _ := proc.Readdirnames(-1)
		found := false
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() && !killed[pid] && kill(pid, mark, buf) {
				killed[pid], found = true, true
			}
		}
		if !found {
			return
		}
	}
}

// kill kills a process that has the mark, and reports whether it had.
func kill(pid int, mark string, buf []byte) bool {
	if !marked(pid, mark, buf) {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) { // before Linux 5.3 there is only the number
		return unix.Kill(pid, unix.SIGKILL) == nil
	}
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// Once more: the number may have become another's before it was opened.
	return marked(pid, mark, buf) && unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// marked looks for the mark in the environment that a process was started with.
func marked(pid int, mark string, buf []byte) bool {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/environ", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	entry := append([]byte(mark), 0) // it follows a variable or stands first; its name is no other's end
	kept := 0                        // bytes at the start of buf that were read before: an entry may be cut
	for {
		n, err := unix.Read(fd, buf[kept:])
		if n <= 0 || err != nil {
			return false
		}
		seen := buf[:kept+n]
		if bytes.Contains(seen, entry) {
			return true
		}
		kept = copy(buf, seen[max(0, len(seen)-len(entry)):])
	}
}
