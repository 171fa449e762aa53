// Package child runs a command for the daemon and ends it: without the daemon's capabilities, in a process group of its own that is killed with it and with what left it,
// and with its output bounded.
//
// It owns how such a command is started, awaited and killed. What runs, with which environment, for how long, and what its end means is the caller's:
// probes (health) and programs that print a token (bootstrap/identity). Run has one goroutine of its own while the command runs, and one for a moment
// at its start. No files, no ports, no state. To match: nothing of Istio's, which starts probes with all that pilot-agent has.
//
// A process that the command puts into a group of its own (setsid) is known by a variable of its environment, and killed too. One that has emptied or
// overwritten that, or that nobody may look into (PR_SET_DUMPABLE), is not: nothing else that an unprivileged service may use ties it to the command. A child
// subreaper would be given such orphans without a word about whose they were, and would have to tell them from its own children; a cgroup would have to be
// delegated to the service, a PID namespace needs a capability that the unit does not have. It does not hold up Run, and ends with the service, by systemd.
package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outputGrace is how long output is awaited that a process outside the killed group still holds open.
const outputGrace = 100 * time.Millisecond

// ErrKilled means that the command was not done when its context ended.
var ErrKilled = errors.New("killed")

// A Command is what Run runs. It has no input, and the root folder as its working one.
type Command struct {
	Argv    []string      // not empty; no shell. A name without a slash is looked for in the daemon's PATH
	Environ []string      // all of its environment; of a name that comes twice the last value counts
	Stdout  io.Writer     // one goroutine writes at a time, none after Run, where both are the same value too
	Stderr  io.Writer     //
	Started func(pid int) // called once it runs, when not nil. It may have forked already
}

// Run runs c until it ends or ctx does, and kills then what is left of its processes: what a command leaves running piles up otherwise, one per run.
//
// The error is a *StartError when it did not start, ErrKilled when ctx ended first, an *exec.ExitError (its status or signal) when it did not end
// with status 0. Output that a process outside the group still holds open is awaited for 100 ms and no error. Safe for concurrent use.
func Run(ctx context.Context, c Command) error {
	cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
	mark := newMark()
	cmd.Env = append(slices.Clone(c.Environ), mark)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = c.Stdout, c.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = outputGrace
	if err := startWithoutCapabilities(cmd); err != nil {
		return &StartError{err}
	}
	if c.Started != nil {
		c.Started(cmd.Process.Pid)
	}
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
	// The command by itself too, in case it moved to another group. ESRCH means that nothing is left.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	<-exited
	killMarked(mark)
	switch err := cmd.Wait(); {
	case late:
		return ErrKilled
	case errors.Is(err, exec.ErrWaitDelay): // it ended with 0, and something that left the group holds the output
		return nil
	default:
		return err
	}
}

// startWithoutCapabilities starts cmd from a thread that has given up its ambient capabilities, so that it does not inherit
// the CAP_NET_ADMIN of the daemon. Ambient capabilities belong to the thread: this one ends with its goroutine.
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

// awaitExit blocks until the child has ended and leaves it to be reaped.
func awaitExit(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// A StartError says why a command did not start. Its text does not name the command, which os/exec does twice.
type StartError struct{ err error }

func (e *StartError) Error() string { return e.Unwrap().Error() }

func (e *StartError) Unwrap() error {
	var path *os.PathError
	if errors.As(e.err, &path) {
		return path.Err
	}
	var name *exec.Error
	if errors.As(e.err, &name) {
		return name.Err
	}
	return e.err
}
