package push

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process reads the kernel's account of a process.
type process int

// cpu is the time that all threads of the process, ended ones included, have run. Its clock counts nanoseconds of the scheduler
// (clock_getcpuclockid(3)), where /proc/PID/stat has ticks of 10 ms.
func (p process) cpu() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(^int32(p)<<3|schedClock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", p, err)
	}
	return time.Duration(t.Nano()), nil
}

// resetPeak makes the current resident set the peak (proc_pid_clear_refs(5)).
func (p process) resetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p), []byte("5"), 0)
}

// memory returns the resident set and its peak in bytes.
func (p process) memory() (now, peak int, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		key, rest, _ := strings.Cut(s.Text(), ":")
		to := map[string]*int{"VmRSS": &now, "VmHWM": &peak}[key]
		if to == nil {
			continue
		}
		if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
			return 0, 0, fmt.Errorf("%s of process %d: %w", key, p, err)
		}
		*to *= 1024
	}
	return now, peak, s.Err()
}

// What counts as quiet: the agents probe and log now and then.
const (
	quietWindow = 200 * time.Millisecond
	quietUse    = 3 * time.Millisecond // in a window; less is background
	quietCount  = 3                    // windows in a row
	quietMost   = 20 * time.Second
)

// settle waits until the process has come to rest and returns the time it had used by the end of its work.
func (p process) settle(ctx context.Context) (used time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, quietMost)
	defer cancel()
	tick := time.NewTicker(quietWindow)
	defer tick.Stop()
	last, err := p.cpu()
	if err != nil {
		return 0, err
	}
	for quiet := 0; quiet < quietCount; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("process %d does not come to rest: %w", p, ctx.Err())
		}
		now, err := p.cpu()
		if err != nil {
			return 0, err
		}
		if quiet++; now-last > quietUse {
			quiet = 0
		}
		if last = now; quiet <= 1 {
			used = now
		}
	}
	return used, nil
}
