// Package memory gives back what a quiet daemon does not need.
package memory

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// GiveBack returns memory that is not needed now: garbage, and pages of the program that were used once. The kernel maps a program in large steps
// and counts every page as resident for ever, initialisation above all: 15 MB here. They are clean copies of the file; what is needed
// again is mapped again without a read, from the page cache, within microseconds. To be done once what only a start does is over, and now and then.
func GiveBack() error {
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, r := range readOnlyParts(f, program) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}

// part is a range of addresses.
type part struct{ start, end uintptr }

// readOnlyParts finds the mappings of program that cannot have been written to (proc_pid_maps(5)).
func readOnlyParts(maps io.Reader, program string) (parts []part) {
	for s := bufio.NewScanner(maps); s.Scan(); {
		// address perms offset dev inode pathname
		f := strings.Fields(s.Text())
		if len(f) != 6 || f[5] != program || len(f[1]) != 4 || f[1][1] == 'w' {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if ok && err1 == nil && err2 == nil && start < end {
			parts = append(parts, part{uintptr(start), uintptr(end)})
		}
	}
	return parts
}
