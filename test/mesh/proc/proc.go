// Package proc runs the programs of a test: each in a process group of its own, with a log file, and gone when the test is.
//
// The kernel kills a program when the thread that started it ends (PR_SET_PDEATHSIG), which covers a test that is killed
// itself. Threads of a Go program come and go, so a Launcher starts programs from one that stays.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Launcher runs functions, one at a time, on one thread that lives as long as the Launcher.
type Launcher struct {
	calls chan func()
	once  sync.Once
	gone  chan struct{} // closed by Close
}

// NewLauncher starts a thread and runs enter on it: the place to change the thread's namespaces, which every program that
// it starts inherits. enter may be nil. When it fails, the thread ends.
func NewLauncher(enter func() error) (*Launcher, error) {
	l := &Launcher{calls: make(chan func()), gone: make(chan struct{})}
	entered := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine, and with it what it started
		if enter != nil {
			if err := enter(); err != nil {
				entered <- err
				return
			}
		}
		entered <- nil
		for {
			select {
			case f := <-l.calls:
				f()
			case <-l.gone:
				return
			}
		}
	}()
	if err := <-entered; err != nil {
		return nil, err
	}
	return l, nil
}

// Do runs f on the Launcher's thread and waits for it. What f starts with go runs elsewhere.
func (l *Launcher) Do(f func() error) error {
	done := make(chan error, 1)
	select {
	case l.calls <- func() { done <- f() }:
		return <-done
	case <-l.gone:
		return errors.New("the launcher is closed")
	}
}

// Close ends the thread, and by that every program started from it that still runs.
func (l *Launcher) Close() { l.once.Do(func() { close(l.gone) }) }

// Spec says what to run.
type Spec struct {
	Path string
	Args []string // without the program's name
	Env  []string // the whole environment, "KEY=value" each
	Dir  string
	Log  string // file that gets standard output and error, appended to; it becomes the program's user's

	Credential *syscall.Credential // nil: root
	Caps       []uintptr           // ambient capabilities (unix.CAP_…)
	Files      []*os.File          // descriptors 3 and up
}

// Process is one run of a program.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // set before done is closed
}

// Start runs a program from l's thread.
func (l *Launcher) Start(s Spec) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(s.Log), 0o755); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	log, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	defer log.Close() // the program has its own descriptor
	if s.Credential != nil {
		// Envoy opens /dev/stdout anew for its access log, which on somebody else's file is refused.
		if err := log.Chown(int(s.Credential.Uid), int(s.Credential.Gid)); err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Path, err)
		}
	}

	cmd := &exec.Cmd{Path: s.Path, Args: append([]string{s.Path}, s.Args...), Env: s.Env, Dir: s.Dir, Stdout: log, Stderr: log, ExtraFiles: s.Files}
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would mean the test's own
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: s.Credential, AmbientCaps: s.Caps,
	}
	if err := l.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Path, err)
	}
	p := &Process{name: filepath.Base(s.Path), log: s.Log, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process's id, which is also its group's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is the file that has the program's output.
func (p *Process) Log() string { return p.log }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the program ended, with the end of its log; nil for status 0. Call it after Done.
func (p *Process) Err() error {
	<-p.done
	if p.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w; its log ends:\n%s", p.name, p.err, p.Tail(20))
}

// Signal sends a signal to the program alone, not to its group. A program that has ended already is no error.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

// Stop sends SIGTERM and waits. When ctx ends first, it kills the group and reports that the program had to be killed.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s went on after SIGTERM and was killed: %w; its log ends:\n%s", p.name, ctx.Err(), p.Tail(20))
	}
}

// Kill ends the program's whole process group with SIGKILL and waits until the program is gone.
func (p *Process) Kill() {
	_ = unix.Kill(-p.PID(), unix.SIGKILL) // fails only when the whole group is gone
	<-p.done
}

// Tail returns the last lines of the log, or why there are none.
func (p *Process) Tail(lines int) string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
