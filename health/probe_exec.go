package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wingman/internal/child"
)

const (
	// maxOutput is how much of the end of a command's output a reason quotes, in bytes.
	maxOutput = 400

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
	output := child.End(maxOutput)
	err := child.Run(ctx, child.Command{
		Argv: c.command, Environ: c.environ, Stdout: output, Stderr: output,
		Started: func(pid int) { limit(pid, c.memory) },
	})
	if err == nil {
		return nil
	}
	if errors.Is(err, child.ErrKilled) {
		err = fmt.Errorf("%w, not done within %s", err, within)
	}
	if said := oneLine(string(output.Bytes())); said != "" {
		return fmt.Errorf("%s: %w: %s", c.target(), err, said)
	}
	return fmt.Errorf("%s: %w", c.target(), err)
}

// limit bounds what the probe with this process id and its future children can take from the machine. Best effort: the
// process may be gone already, and what it forked in its first microseconds keeps the daemon's limits.
func limit(pid int, memory uint64) {
	_ = unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: memory, Max: memory}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	_ = os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "oom_score_adj"), []byte(probeOOMScore), 0)
}

// probeEnviron is a probe's environment where the daemon has environ: without what is the daemon's alone, and with a PATH.
func probeEnviron(environ []string) []string {
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, child.Environ(environ)...) // the last value of a key counts
}
