package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wingman/agent/envoy"
	"wingman/agent/envoy/envoytest"
	"wingman/test/netns"
)

func TestEnvoyComesUp(t *testing.T) {
	st := newStation(t).run()
	s := st.awaitLive()
	if got, want := st.phases(), "waiting starting live"; got != want {
		t.Errorf("phases %q, want %q", got, want)
	}
	n := st.note()
	if n.Dir != st.dir || n.UID != os.Geteuid() || !slices.Equal(n.Args, []string{"--config-path", st.dir + "/bootstrap.json"}) {
		t.Errorf("it runs as uid %d in %s with %q", n.UID, n.Dir, n.Args)
	}
	if want := filepath.Join(st.cfg.RunDir, lockFile); n.Lock != want {
		t.Errorf("it inherited %q, want the lock %s", n.Lock, want)
	}
	for _, v := range n.Env {
		if strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			t.Errorf("it could talk to systemd: %s", v)
		}
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || n.Files != limit.Max {
		t.Errorf("it may open %d files, want %d (%v)", n.Files, limit.Max, err)
	}
	seen, err := ReadState(st.cfg.RunDir)
	if err != nil || seen.PID != s.PID || seen.Phase != PhaseLive || seen.Supervisor != os.Getpid() || seen.EnvoyState != "LIVE" {
		t.Errorf("the agent reads %+v (%v), want %+v", seen, err, s)
	}
}

func TestAnEnvoyThatEndsIsStartedAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(st *station, pid int)
		cause string
	}{
		{"killed", func(_ *station, pid int) { kill(t, pid, syscall.SIGKILL) }, "killed by SIGKILL (not by this process: the kernel does that when memory runs out)"},
		{"crashed", func(st *station, _ int) { st.cue("crash") }, "exit status 139; it said: Caught Segmentation fault"},
		{"ended by itself", func(_ *station, pid int) { kill(t, pid, syscall.SIGTERM) }, "it ended by itself, with exit status 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := newStation(t).run()
			first := st.awaitLive()
			tt.end(st, first.PID)
			back := st.await("back-off", func(s State) bool { return s.Phase == PhaseBackoff })
			if back.Cause != tt.cause || back.PID != 0 {
				t.Errorf("cause %q, pid %d; want %q and none", back.Cause, back.PID, tt.cause)
			}
			if wait := back.NextStart.Sub(back.Since); wait > 100*time.Millisecond {
				t.Errorf("the first start again comes after %v, want within 100 ms", wait)
			}
			next := st.await("live again", func(s State) bool { return s.Phase == PhaseLive && s.PID != first.PID })
			if next.Cause != "" || next.Starts != 2 {
				t.Errorf("%+v: want no cause and two starts", next)
			}
		})
	}
}

func TestACrashLoopIsNoStorm(t *testing.T) {
	st := newStation(t, "exits").run(func(s *Supervisor) { s.timings.first = time.Millisecond })
	s := st.await("five starts", func(s State) bool { return s.Starts >= 5 && s.Phase == PhaseBackoff })
	if want := "exit status 1; it said: error initializing configuration '/x': no such thing"; s.Cause != want {
		t.Errorf("cause %q, want %q", s.Cause, want)
	}
	var waits []time.Duration
	st.mu.Lock()
	for _, s := range st.states {
		if s.Phase == PhaseBackoff && !s.NextStart.IsZero() {
			waits = append(waits, s.NextStart.Sub(s.Since))
		}
	}
	st.mu.Unlock()
	want := []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond, 16 * time.Millisecond}
	if !slices.Equal(waits[:len(want)], want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
}

// testHang is long enough for a fake Envoy to come up on a machine with much else to do.
const testHang = 3 * time.Second

func TestAnEnvoyThatHangsIsEnded(t *testing.T) {
	for _, tt := range []struct {
		name, habit string
		grace       time.Duration
		stopped     bool
		cause       string
	}{
		{"one that aborts", "", time.Hour, false, "Caught Aborted"},
		{"one that is stopped aborts too", "", time.Hour, true, "Caught Aborted"},
		{"one that does not even abort", "stubborn", 100 * time.Millisecond, false, "killed by SIGKILL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := newStation(t, tt.habit)
			st.cfg.HangTimeout = testHang
			st.run(func(s *Supervisor) { s.timings.grace = tt.grace })
			first := st.awaitLive()
			if !tt.stopped {
				st.cue("hang")
			} else if err := syscall.Kill(first.PID, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			st.await("a word on the hang", func(s State) bool { return s.Phase == PhaseHanging && s.PID == first.PID })
			after := st.await("its end", func(s State) bool { return s.Phase == PhaseBackoff })
			if !strings.Contains(after.Cause, tt.cause) || strings.Contains(after.Cause, "memory") {
				t.Errorf("cause %q, want %q", after.Cause, tt.cause)
			}
			st.await("another one, live", func(s State) bool { return s.Phase == PhaseLive && s.PID != first.PID })
		})
	}
}

func TestAnEnvoyThatNeverAnswersHangsToo(t *testing.T) {
	st := newStation(t, "deaf")
	st.cfg.HangTimeout = 200 * time.Millisecond
	st.run()
	st.await("a second start", func(s State) bool { return s.Starts == 2 })
	if got := st.phases(); !strings.HasPrefix(got, "waiting starting hanging back-off") {
		t.Errorf("phases %q", got)
	}
}

func TestAStopDrains(t *testing.T) {
	st := newStation(t)
	st.cfg.Drain = time.Hour
	st.run()
	s := st.awaitLive()
	envoy := mustProcess(t, s.PID)
	st.cue("connections", "n", "2")
	st.stop()
	st.await("draining", func(s State) bool { return s.Phase == PhaseDraining })
	envoytest.Await(t, "the order to drain", func(context.Context) error {
		if calls := st.note().Calls; !slices.Equal(calls, []string{"POST /healthcheck/fail", "POST /drain_listeners?graceful=&inboundonly="}) {
			return fmt.Errorf("calls %q", calls)
		}
		return nil
	})
	if !envoy.alive() {
		t.Fatal("it ended with connections open")
	}
	st.cue("connections", "n", "0")
	st.wait()
	if envoy.alive() {
		t.Error("it still runs")
	}
	if got, want := st.phases(), "waiting starting live draining stopping stopped"; got != want {
		t.Errorf("phases %q, want %q", got, want)
	}
	if s, err := ReadState(st.cfg.RunDir); !errors.Is(err, ErrNoProxy) || s.Phase != PhaseStopped {
		t.Errorf("state after the end: %+v, %v; want it stopped, and %v", s, err, ErrNoProxy)
	}
}

func TestADrainHasAnEnd(t *testing.T) {
	for _, tt := range []struct{ name, connections string }{{"connections that stay", "3"}, {"connections that are not counted", ""}} {
		t.Run(tt.name, func(t *testing.T) {
			st := newStation(t)
			st.cfg.Drain = 600 * time.Millisecond
			st.run()
			st.awaitLive()
			st.cue("connections", "n", tt.connections)
			began := time.Now()
			st.stop()
			st.wait()
			if took := time.Since(began); took < st.cfg.Drain {
				t.Errorf("it ended after %v with connections open, want %v", took, st.cfg.Drain)
			}
		})
	}
}

func TestAnEnvoyThatDoesNotEndIsKilled(t *testing.T) {
	st := newStation(t, "stubborn").run(func(s *Supervisor) { s.timings.grace = 200 * time.Millisecond })
	s := st.awaitLive()
	envoy := mustProcess(t, s.PID)
	st.stop()
	st.wait()
	if envoy.alive() || !strings.Contains(st.logs.String(), "it is killed") {
		t.Errorf("alive %v, said:\n%s", envoy.alive(), st.logs)
	}
}

func TestAnEnvoyWithoutConfigurationHasNothingToDrain(t *testing.T) {
	st := newStation(t, "cold")
	st.cfg.Drain = time.Hour
	st.run()
	s := st.await("PRE_INITIALIZING", func(s State) bool { return s.EnvoyState == "PRE_INITIALIZING" })
	if s.Phase != PhaseStarting {
		t.Errorf("phase %s, want starting", s.Phase)
	}
	st.stop()
	st.wait()
	if got, want := st.phases(), "waiting starting stopping stopped"; got != want {
		t.Errorf("phases %q, want %q", got, want)
	}
}

func TestAProgramIsWaitedFor(t *testing.T) {
	st := newStation(t)
	path := filepath.Join(st.dir, "envoy")
	st.cfg.Program = func() (string, error) {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%w: nothing at %s", envoy.ErrNoProgram, path)
		}
		return path, nil
	}
	st.run(func(s *Supervisor) { s.timings.retry = 50 * time.Millisecond })
	s := st.await("a cause", func(s State) bool { return s.Cause != "" })
	if s.Phase != PhaseWaiting || !strings.Contains(s.Cause, "nothing at "+path) || s.Starts != 0 {
		t.Errorf("%+v", s)
	}
	if strings.Contains(st.logs.String(), "level=WARN") {
		t.Errorf("a machine without Envoy is nothing to warn of:\n%s", st.logs)
	}
	if err := os.Symlink("/proc/self/exe", path); err != nil {
		t.Fatal(err)
	}
	// The link is read by the process that starts it: this test binary.
	st.awaitLive()
	if n := strings.Count(st.logs.String(), "is not started"); n != 1 {
		t.Errorf("said %d times, want once:\n%s", n, st.logs)
	}
}

func TestAPortThatIsTakenIsNamed(t *testing.T) {
	st := newStation(t)
	l, err := net.Listen("tcp", st.admin.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	st.run(func(s *Supervisor) { s.timings.retry = 50 * time.Millisecond })
	s := st.await("a cause", func(s State) bool { return s.Cause != "" })
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("port %d, Envoy's for its admin interface, is held by %s (pid %d): stop it, or give Envoy another port with envoy.adminPort",
		st.admin.Port(), strings.TrimSpace(string(comm)), os.Getpid())
	if s.Cause != want || s.Starts != 0 {
		t.Errorf("cause %q after %d starts, want %q and none", s.Cause, s.Starts, want)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	st.awaitLive()
}

func TestThereIsOneSupervisor(t *testing.T) {
	st := newStation(t).run()
	first := st.awaitLive()
	other, err := New(st.cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = other.Run(t.Context())
	if want := fmt.Sprintf("another wingman proxy runs with this root (pid %d): stop it first", os.Getpid()); err == nil || err.Error() != want {
		t.Errorf("the second one: %v, want %s", err, want)
	}
	if now := st.s.State(); now.PID != first.PID || now.Phase != PhaseLive {
		t.Errorf("the first one's Envoy suffered: %+v", now)
	}
}

// elsewhere starts a supervisor of this station in another process, and returns it and its Envoy.
func (st *station) elsewhere(orphan bool) (supervisor *exec.Cmd, itself, envoy process) {
	st.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), superviseVar+"="+st.dir, "HABITS="+st.habits)
	if orphan {
		cmd.Env = append(cmd.Env, "ORPHAN=1")
	}
	cmd.Stderr = st.logs
	if err := cmd.Start(); err != nil {
		st.t.Fatal(err)
	}
	st.t.Cleanup(func() {
		_ = cmd.Process.Kill() // most often it is dead already
		_ = cmd.Wait()
	})
	envoytest.Await(st.t, "the other supervisor's Envoy", func(context.Context) error {
		s, err := ReadState(st.cfg.RunDir)
		if err != nil || s.Phase != PhaseLive {
			return fmt.Errorf("%+v, %w", s, err)
		}
		envoy, err = processOf(s.PID)
		return err
	})
	st.t.Cleanup(func() { envoy.signal(syscall.SIGKILL) })
	return cmd, mustProcess(st.t, cmd.Process.Pid), envoy
}

// superviseElsewhere is what the other process does.
func superviseElsewhere(dir string) {
	st := &station{dir: dir}
	st.habits = os.Getenv("HABITS")
	s, err := New(st.config())
	if err != nil {
		panic(err)
	}
	s.orphan = os.Getenv("ORPHAN") != ""
	panic(s.Run(context.Background()))
}

func TestEnvoyDiesWithItsSupervisor(t *testing.T) {
	st := newStation(t)
	supervisor, _, envoy := st.elsewhere(false)
	if err := supervisor.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, "Envoy's end", envoy)
}

// Should an Envoy outlive its supervisor after all, it is found by the lock it holds, and ended.
func TestAnEnvoyLeftOverIsEnded(t *testing.T) {
	for _, habit := range []string{"", "stubborn"} {
		t.Run("habit "+habit, func(t *testing.T) {
			st := newStation(t)
			st.habits = habit
			supervisor, itself, envoy := st.elsewhere(true)
			if err := supervisor.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = supervisor.Wait() // killed
			if itself.alive() || !envoy.alive() {
				t.Fatal("the test needs an Envoy without a supervisor")
			}
			st.run()
			s := st.awaitLive()
			if envoy.alive() || s.PID == envoy.PID {
				t.Errorf("the one left over lives, with pid %d; now it is %d", envoy.PID, s.PID)
			}
			if !strings.Contains(st.logs.String(), "left over") {
				t.Errorf("it is not said:\n%s", st.logs)
			}
		})
	}
}

func TestRootRunsEnvoyAsAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		netns.Skip(t, "other users' processes take root")
	}
	const user = 4001
	st := newStation(t)
	st.cfg.User = &User{UID: user, GID: user}
	for _, path := range []string{st.dir, filepath.Join(st.dir, "bootstrap.json")} {
		if err := os.Chown(path, user, user); err != nil {
			t.Fatal(err)
		}
	}
	st.run()
	st.awaitLive()
	if n := st.note(); n.UID != user {
		t.Errorf("it runs as uid %d, want %d", n.UID, user)
	}
	st.cue("print", "text", "an access log line\n") // which opens /dev/stdout
	awaitOutput(t, st.out, "an access log line\n")
}

func TestNoStateMeansNoProxy(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadState(dir); !errors.Is(err, ErrNoProxy) {
		t.Errorf("an empty folder: %v, want %v", err, ErrNoProxy)
	}
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), fmt.Appendf(nil, `{"phase":"live","supervisor":%d}`, cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := ReadState(dir); !errors.Is(err, ErrNoProxy) || s.Phase != PhaseLive {
		t.Errorf("a supervisor that is gone: %+v, %v; want %v", s, err, ErrNoProxy)
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); err == nil || errors.Is(err, ErrNoProxy) {
		t.Errorf("a damaged file: %v", err)
	}
}

// Under its unit the supervisor has a user namespace of its own, and the agent's /proc does not show such processes.
func TestASupervisorIsKnownByItsLockNotByItsPid(t *testing.T) {
	dir := t.TempDir()
	l, err := takeLock(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const hidden = 1 << 22 // above every pid there is: kernel.pid_max
	writeState(dir, State{Phase: PhaseLive, Supervisor: hidden}, slog.New(slog.DiscardHandler))
	if s, err := ReadState(dir); err != nil || s.Supervisor != hidden {
		t.Errorf("a supervisor that /proc does not show: %+v, %v; want it to be known", s, err)
	}
	writeState(dir, State{Phase: PhaseLive, Supervisor: os.Getpid()}, slog.New(slog.DiscardHandler))
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); !errors.Is(err, ErrNoProxy) {
		t.Errorf("a process that has the pid and not the lock: %v, want %v", err, ErrNoProxy)
	}
}
