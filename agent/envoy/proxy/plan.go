package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"wingman/agent/envoy"
	"wingman/bootstrap"
	"wingman/internal/child"
)

// plan is an Envoy that could be started.
type plan struct {
	command
	program string // as State names it
	facts   envoy.Facts
	ports   []Port
}

// plan looks for everything that Envoy needs. find names its program, and the path by which that is run.
func (s *Supervisor) plan(ctx context.Context, find func() (program, path string, err error)) (p plan, err error) {
	path := ""
	if p.program, path, err = find(); err != nil {
		return plan{}, err
	}
	file, err := s.cfg.Bootstrap(ctx)
	if err != nil {
		return plan{}, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return plan{}, fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	if p.facts, err = envoy.FactsOf(content); err != nil {
		return plan{}, err
	}
	p.ports = s.cfg.Ports(p.facts)
	args, err := s.cfg.Args(p.facts)
	if err != nil {
		return plan{}, err
	}
	p.command = command{
		path: path, args: append([]string{"--config-path", file}, args...), env: child.Environ(s.cfg.Env), dir: s.cfg.Dir,
		user: s.cfg.User, lock: s.lock.file, stdout: s.cfg.Stdout, log: s.cfg.EnvoyLog, orphan: s.orphan,
	}
	return p, nil
}

// Try has a program show, as this process's user, that it runs on this machine and takes a bootstrap file with the flags that a supervisor gives it. It opens
// no port. Blocks for a second or two, at most for 30 s.
func Try(ctx context.Context, cfg *bootstrap.Config, program, file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("envoy's bootstrap file: %w", err)
	}
	facts, err := envoy.FactsOf(content)
	if err != nil {
		return err
	}
	args, err := argumentsOf(cfg, facts)
	if err != nil {
		return err
	}
	p := plan{program: program, command: command{path: program, args: append([]string{"--config-path", file}, args...), env: child.Environ(os.Environ()), dir: cfg.Root}}
	return p.try(ctx)
}

// Numbers of a trial.
const (
	trialMost = 30 * time.Second // with a large file on a busy machine
	trialSaid = 1 << 16
)

// try has a program show that it runs here and takes the bootstrap file and flags. It opens no port and serves nothing.
func (p plan) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, trialMost)
	defer cancel()
	for _, args := range [][]string{{"--version"}, append([]string{"--mode", "validate"}, p.args...)} {
		cmd := exec.CommandContext(ctx, p.path, args...)
		cmd.Dir, cmd.Env, cmd.WaitDelay = p.dir, p.env, time.Second
		var said tail
		cmd.Stdout, cmd.Stderr = &said, &said
		if p.user != nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: p.user.UID, Gid: p.user.GID}}
		}
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return fmt.Errorf("%s %s: %w%s", p.program, strings.Join(args[:min(2, len(args))], " "), err, said.last())
		}
	}
	return nil
}

// tail keeps what a program said last.
type tail struct{ bytes.Buffer }

func (t *tail) Write(b []byte) (int, error) {
	if t.Len() > trialSaid {
		t.Reset()
	}
	return t.Buffer.Write(b)
}

// last is the end of it, as a part of a sentence.
func (t *tail) last() string {
	lines := strings.Split(strings.TrimSpace(t.String()), "\n")
	said := lines[len(lines)-1]
	for _, l := range lines { // Envoy's own verdict, where there is one
		if strings.HasPrefix(l, "critical") || strings.HasPrefix(l, "error") {
			said = l
		}
	}
	const most = 400
	if said = strings.ToValidUTF8(said[:min(len(said), most)], ""); said == "" {
		return ""
	}
	return "; it said: " + strings.Join(strings.Fields(said), " ")
}

// A spare is a program that did: the one that was replaced last, whatever lies at its path now.
type spare struct {
	file    *os.File // nil: none
	program string   // its path, as State names it
	used    bool     // it is what is started
}

// keep takes the program of a running process. Without one there is nothing to go back to.
func (s *spare) keep(pid int, program string) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err
	}
	s.drop()
	s.file, s.program = f, program
	return nil
}

func (s *spare) drop() {
	if s.file != nil {
		_ = s.file.Close() // it was only read
	}
	*s = spare{}
}

// program is what is started: the settings' word, but for a spare in use.
func (s *Supervisor) program() (program, path string, err error) {
	if s.spare.used {
		return s.spare.program, fmt.Sprintf("/proc/self/fd/%d", s.spare.file.Fd()), nil
	}
	return s.wanted()
}

func (s *Supervisor) wanted() (program, path string, err error) {
	program, err = s.cfg.Program()
	return program, program, err
}

// outdated says that a process does not run the file that lies at its program's path; empty where it does, or that cannot be known.
func outdated(pid int, program string) string {
	runs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	lies, err := os.Stat(program)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return program + " is gone: Envoy goes on, and cannot be started again"
	case err != nil || os.SameFile(runs, lies):
		return ""
	}
	return "another file lies at " + program + " now: wingman envoy replace"
}
