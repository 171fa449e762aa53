package proxy

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// User is whom Envoy runs as.
type User struct{ UID, GID uint32 }

// command is all that a start needs.
type command struct {
	path   string
	args   []string
	env    []string
	dir    string
	user   *User    // nil: this process's own
	lock   *os.File // inherited, so that it is held for as long as Envoy lives
	stdout io.Writer
	log    *slog.Logger // for what Envoy says
	orphan bool         // tests only: Envoy outlives this process
}

// running is an Envoy.
type running struct {
	pid   int
	relay *relay
	ended chan error // gets one value, nil for exit status 0, once the process is gone and its output read
	proc  *os.Process
}

// outputGrace is how long the output is read after Envoy's end, should somebody else still hold it open.
const outputGrace = time.Second

// start runs Envoy. It dies when this process dies, whatever from.
//
// Its output are pipes that this user made: Envoy opens /dev/stdout by name for access logs, which works with such a pipe and with
// neither the journal's socket nor a pipe or file of another user.
func (c command) start() (*running, error) {
	outR, outW, err := c.pipe()
	if err != nil {
		return nil, err
	}
	errR, errW, err := c.pipe()
	if err != nil {
		return nil, errors.Join(err, outR.Close(), outW.Close())
	}
	cmd := exec.Command(c.path, c.args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.dir, c.env, outW, errW
	cmd.ExtraFiles = []*os.File{c.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, // Ctrl-C asks the supervisor, not Envoy: it drains first
	}
	if !c.orphan {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if c.user != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.user.UID, Gid: c.user.GID}
	}
	r := &running{relay: &relay{log: c.log}, ended: make(chan error, 1)}
	started := make(chan error)
	go func() { // sends to ended last of all
		runtime.LockOSThread() // Pdeathsig means the death of the thread that started it
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err = errors.Join(err, outW.Close(), errW.Close()); err != nil && cmd.Process == nil {
			err = errors.Join(err, outR.Close(), errR.Close())
			started <- err
			return
		}
		r.pid, r.proc = cmd.Process.Pid, cmd.Process
		started <- nil
		var reading sync.WaitGroup
		reading.Go(func() { copyLines(c.stdout, outR, c.log) })
		reading.Go(func() { r.relay.run(errR) })
		err = cmd.Wait()
		for _, f := range []*os.File{outR, errR} {
			_ = f.SetReadDeadline(time.Now().Add(outputGrace)) // a pipe can
		}
		reading.Wait()
		outR.Close()
		errR.Close()
		r.ended <- r.explain(err)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start envoy: %w", err)
	}
	return r, nil
}

// pipe makes a pipe that Envoy's user may open by name.
func (c command) pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe for envoy's output: %w", err)
	}
	if c.user != nil {
		if err := w.Chown(int(c.user.UID), int(c.user.GID)); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("pipe for envoy's output: %w", err), r.Close(), w.Close())
		}
	}
	return r, w, nil
}

// killedBy begins what explain says of a signal.
const killedBy = "killed by "

// explain says why Envoy ended, with its own last words.
func (r *running) explain(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		text = exit.String()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			text = killedBy + unix.SignalName(status.Signal())
		}
	}
	if said := r.relay.lastError(); said != "" {
		const most = 400
		if len(said) > most {
			said = strings.ToValidUTF8(said[:most], "") + " …"
		}
		text += "; it said: " + said
	}
	return errors.New(text)
}

// signal sends to Envoy and nobody else: the process is not waited for until ended.
func (r *running) signal(sig syscall.Signal) {
	_ = r.proc.Signal(sig) // it has ended: that is on its way through ended
}

// raiseFileLimit lets Envoy have as many files as this process may give it: a connection takes two. Go keeps its own limit from
// children unless it was set.
func raiseFileLimit() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("limit of open files: %w", err)
	}
	return limit.Cur, nil
}
