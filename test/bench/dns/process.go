package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a DNS server of one process.
type server struct {
	name  string
	addr  string // "127.0.0.1:port"
	argv  []string
	env   []string // beside the bench's own
	dir   string   // to run in; empty: the bench's
	after func(context.Context) (stop func(), err error)
	cmd   *exec.Cmd
	ended []func()
}

// launch starts the process.
func (s *server) launch(ctx context.Context, dir string) error {
	log, err := os.Create(s.log(dir))
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	s.cmd.Stdout, s.cmd.Stderr, s.cmd.Dir, s.cmd.Env = log, log, dir, append(os.Environ(), s.env...)
	if s.dir != "" {
		s.cmd.Dir = s.dir
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return s.cmd.Start()
}

func (s *server) log(dir string) string { return filepath.Join(dir, s.name+".log") }

const startTimeout = 20 * time.Second

// start starts the server and waits until it answers.
func (s *server) start(ctx context.Context, dir string) error {
	if err := s.launch(ctx, dir); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err := error(nil)
	if s.after != nil {
		var stop func()
		if stop, err = s.after(ctx); err == nil {
			s.ended = append(s.ended, stop)
		}
	}
	if err == nil {
		if err = s.await(ctx, address(1)); err == nil {
			return nil
		}
	}
	s.stop()
	text, _ := os.ReadFile(s.log(dir))
	return fmt.Errorf("%w; it says:\n%s", err, text)
}

// await waits until the server answers for the first service with the given address.
func (s *server) await(ctx context.Context, want string) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", s.addr)
	}}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		addrs, err := resolver.LookupHost(attempt, host(1)+".")
		cancel()
		if err == nil && len(addrs) == 1 && addrs[0] == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer %s for %s: %v, %w", s.name, want, host(1), addrs, err)
		case <-tick.C:
		}
	}
}

func (s *server) stop() {
	for _, f := range s.ended {
		f()
	}
	s.ended = nil
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL) // its children too: pilot-agent has one in Envoy's place
	_ = s.cmd.Wait()
}

// cpu is the time that all threads of the process, ended ones included, have run. Its clock counts nanoseconds of the scheduler
// (clock_getcpuclockid(3)), where /proc/PID/stat has ticks of 10 ms.
func (s *server) cpu() (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of linux/posix-timers.h
	var t unix.Timespec
	if err := unix.ClockGettime(^int32(s.cmd.Process.Pid)<<3|schedClock, &t); err != nil {
		return 0, fmt.Errorf("CPU clock of %s: %w", s.name, err)
	}
	return time.Duration(t.Nano()), nil
}

// settle waits until the process has come to rest and returns the time it had used by then.
func (s *server) settle(ctx context.Context) (used time.Duration, err error) {
	const (
		window = 100 * time.Millisecond
		quiet  = 2 * time.Millisecond // in a window; agents probe and log now and then
		rows   = 3                    // of quiet windows
	)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(window)
	defer tick.Stop()
	last, err := s.cpu()
	if err != nil {
		return 0, err
	}
	for n := 0; n < rows; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("%s does not come to rest: %w", s.name, ctx.Err())
		}
		now, err := s.cpu()
		if err != nil {
			return 0, err
		}
		if now-last > quiet {
			n = -1
		}
		last = now
	}
	return last, nil
}

// resident is the process's memory in MB (10^6 bytes).
func (s *server) resident() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(fields[1], 64)
			return kib * 1024 / 1e6
		}
	}
	return 0
}

// loadAverage is that of the last minute: other work on the machine makes times and ratios doubtful.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}
