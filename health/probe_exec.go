package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxOutput is how much of the end of a command's output a reason quotes, in bytes.
	maxOutput = 400

	// outputGrace is how long output is awaited that a process outside the killed group still holds open.
	outputGrace = 100 * time.Millisecond

	// probeOOMScore makes the kernel prefer a probe's processes to the daemon when memory runs out; the daemon's unit
	// lowers its own score, and children would inherit that.
	probeOOMScore = "500"
)

// execCheck runs a command.
type execCheck struct {
	command []string
	memory  uint64
	environ []string
}

func newExecCheck(e Exec, environ []string) *execCheck {
	return &execCheck{command: e.Command, memory: cmp.Or(e.MemoryLimit, DefaultExecMemory), environ: environ}
}

func (c *execCheck) kind() string { return "exec" }
func (c *execCheck) target() string {
	return "exec " + clip(oneLine(strings.Join(c.command, " ")), 200)
}

func (c *execCheck) run(ctx context.Context) error {
	within := allowance(ctx)
	var output tail
	cmd := exec.Command(c.command[0], c.command[1:]...)
	cmd.Env = c.environ
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = outputGrace
	if err := startWithoutCapabilities(cmd); err != nil {
		return fmt.Errorf("%s: %w", c.target(), startReason(err))
	}
	limit(cmd.Process.Pid, c.memory)

	// The command is not reaped before its group is killed: until then its number, which names the group, cannot pass to
	// another process.
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		awaitExit(cmd.Process.Pid)
	}()
	late := false
	select {
	case <-exited:
	case <-ctx.Done():
		late = true
	}
	// Also after a proper exit: what a probe leaves running piles up, one per period. The command by itself too, in case it
	// moved to another group. ESRCH means that nothing is left.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	<-exited
	err := cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) { // exited with 0, and something that left the group holds the output
		err = nil
	}
	switch {
	case late && output.empty():
		return fmt.Errorf("%s: killed, not done within %s", c.target(), within)
	case late:
		return fmt.Errorf("%s: killed, not done within %s: %s", c.target(), within, output.String())
	case err != nil && output.empty():
		return fmt.Errorf("%s: %w", c.target(), err)
	case err != nil:
		return fmt.Errorf("%s: %w: %s", c.target(), err, output.String())
	}
	return nil
}

// startWithoutCapabilities starts cmd from a thread that has given up its ambient capabilities, so that a probe does not
// inherit the CAP_NET_ADMIN of the daemon. Ambient capabilities belong to the thread: this one ends with its goroutine.
func startWithoutCapabilities(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			started <- fmt.Errorf("clear ambient capabilities: %w", err)
			return
		}
		started <- cmd.Start()
	}()
	return <-started
}

// startReason is short about what os/exec names twice.
func startReason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var name *exec.Error
	if errors.As(err, &name) {
		return name.Err
	}
	return err
}

// limit bounds what the probe with this process id and its future children can take from the machine. Best effort: the
// process may be gone already, and what it forked in its first microseconds keeps the daemon's limits.
func limit(pid int, memory uint64) {
	_ = unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: memory, Max: memory}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(probeOOMScore), 0)
}

// awaitExit blocks until the child has ended and leaves it to be reaped.
func awaitExit(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// daemonVariables are for the process that systemd started, not for its children.
var daemonVariables = []string{
	"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC",
	"MAINPID", "MANAGERPID", "INVOCATION_ID", "SYSTEMD_EXEC_PID", "JOURNAL_STREAM", "FDSTORE", "CREDENTIALS_DIRECTORY",
	"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
}

// probeEnviron is environ without daemonVariables, and with a PATH.
func probeEnviron(environ []string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} // the last value of a key counts
next:
	for _, kv := range environ {
		for _, name := range daemonVariables {
			if strings.HasPrefix(kv, name+"=") {
				continue next
			}
		}
		env = append(env, kv)
	}
	return env
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // output may still come in after a time-out
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > maxOutput {
		p = p[len(p)-maxOutput:]
	}
	if over := len(t.buf) + len(p) - maxOutput; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, p...)
	return n, nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return oneLine(string(t.buf))
}

func (t *tail) empty() bool { return t.String() == "" }
