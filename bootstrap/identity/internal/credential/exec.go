package credential

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"wingman/internal/child"
)

const (
	// DefaultExecTimeout bounds one run of a program.
	DefaultExecTimeout = 10 * time.Second
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

// run returns what the program printed on its standard output.
func (s *execSource) run(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	began := time.Now()
	stdout, stderr := child.Beginning(MaxToken+1), child.Beginning(maxComplaint)
	err := child.Run(ctx, child.Command{Argv: s.Command, Environ: s.environ(), Stdout: stdout, Stderr: stderr})
	complaint := ""
	if text := stderr.Bytes(); len(bytes.TrimSpace(text)) > 0 {
		complaint = ": " + quoted(string(text))
	}
	var start *child.StartError
	switch {
	case errors.As(err, &start):
		return nil, fmt.Errorf("cannot be run: %w", err)
	case errors.Is(err, child.ErrKilled):
		return nil, fmt.Errorf("%w, not done within %s%s", err, time.Since(began).Round(time.Second), complaint)
	case err != nil:
		return nil, fmt.Errorf("%w%s", err, complaint)
	case len(stdout.Bytes()) > MaxToken:
		return nil, fmt.Errorf("it printed more than %d kB", MaxToken>>10)
	}
	return stdout.Bytes(), nil
}

func (s *execSource) environ() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "KUBERNETES_EXEC_INFO=" + execInfo}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		env = append(env, name+"="+s.Env[name]) // the last value of a name counts
	}
	return env
}

// CheckCommand says what is wrong with an argv, nil when nothing is.
func CheckCommand(argv []string) error {
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return fmt.Errorf("command %q: expected a list that begins with the absolute path of a program", slices.Concat(argv, []string{""})[0])
	}
	return nil
}
