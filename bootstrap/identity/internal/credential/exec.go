package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// DefaultExecTimeout bounds one run of a program.
	DefaultExecTimeout = 10 * time.Second
	// outputGrace is how long output is awaited that a process outside the killed group still holds open.
	outputGrace = 100 * time.Millisecond
	// maxComplaint is how much of a program's standard error is kept.
	maxComplaint = 4 << 10
	// execMargin is how long before its end a token is not given out again.
	execMargin = 10 * time.Second
)

// An Exec is a program that prints a token.
type Exec struct {
	Command []string          // argv; no shell. The program's path is absolute
	Env     map[string]string // added to PATH, HOME and KUBERNETES_EXEC_INFO; nothing else of ours is passed on
	Timeout time.Duration     // zero means DefaultExecTimeout
}

// execInfo is what kubectl tells its plugins.
const execInfo = `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"interactive":false}}`

// execSource runs a program when a token is needed, and gives the same token again until shortly before its end.
type execSource struct {
	Exec
	mu      sync.Mutex // guards cached; held while the program runs
	cached  Token
	expires time.Time // of cached; zero: do not give it again
}

// NewExec is the source "exec".
func NewExec(e Exec) Source {
	if e.Timeout == 0 {
		e.Timeout = DefaultExecTimeout
	}
	return &execSource{Exec: e}
}

func (*execSource) Name() string    { return "exec" }
func (s *execSource) Where() string { return s.Command[0] }
func (*execSource) Local() bool     { return false }

func (s *execSource) Token(ctx context.Context) (Token, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Round(0).Add(execMargin).Before(s.expires) {
		return s.cached, nil
	}
	out, err := s.run(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", s.Where(), err)
	}
	jwt, expires, err := execAnswer(out)
	if err == nil && !looksLikeJWT(string(jwt)) {
		err = errors.New("the token that it printed is not a JWT")
	}
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", s.Where(), err)
	}
	s.cached, s.expires = Token{JWT: Hide(string(jwt))}, expires
	return s.cached, nil
}

// Forget drops the token that was kept: it was refused.
func (s *execSource) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cached, s.expires = Token{}, time.Time{}
}

// run returns what the program printed on its standard output. When the time is over, or the program ends, its whole process group is killed.
func (s *execSource) run(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	began := time.Now()
	stdout, stderr := &limited{most: MaxToken + 1}, &limited{most: maxComplaint}
	cmd := exec.Command(s.Command[0], s.Command[1:]...)
	cmd.Env = s.environ()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = outputGrace
	if err := startWithoutCapabilities(cmd); err != nil {
		return nil, startReason(err)
	}
	// The program is not reaped before its group is killed: until then its number, which names the group, cannot pass to another.
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		for {
			if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	late := false
	select {
	case <-exited:
	case <-ctx.Done():
		late = true
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
	<-exited
	err := cmd.Wait()
	complaint := ""
	if text := stderr.text(); len(bytes.TrimSpace(text)) > 0 {
		complaint = ": " + quoted(string(text))
	}
	switch {
	case late:
		return nil, fmt.Errorf("killed, not done within %s%s", time.Since(began).Round(time.Second), complaint)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, fmt.Errorf("%w%s", err, complaint)
	case len(stdout.text()) > MaxToken:
		return nil, fmt.Errorf("it printed more than %d kB", MaxToken>>10)
	}
	return stdout.text(), nil
}

func (s *execSource) environ() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "KUBERNETES_EXEC_INFO=" + execInfo}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		env = append(env, name+"="+s.Env[name]) // the last value of a name counts
	}
	return env
}

// startWithoutCapabilities starts cmd from a thread that has given up its ambient capabilities: a program that prints a token needs
// none of the daemon's. They belong to the thread, and this one ends with its goroutine.
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
		return fmt.Errorf("cannot be run: %w", path.Err)
	}
	return fmt.Errorf("cannot be run: %w", err)
}

// CheckCommand says what is wrong with an argv, nil when nothing is.
func CheckCommand(argv []string) error {
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return fmt.Errorf("command %q: expected a list that begins with the absolute path of a program", slices.Concat(argv, []string{""})[0])
	}
	return nil
}

// limited keeps the beginning of what is written to it.
type limited struct {
	most int
	mu   sync.Mutex // output may still come in after a time-out
	buf  []byte
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p[:min(len(p), l.most-len(l.buf))]...)
	return len(p), nil
}

func (l *limited) text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf)
}
