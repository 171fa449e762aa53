package child

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

// patience bounds what takes milliseconds on a machine that is not overloaded.
const patience = 30 * time.Second

func shell(script string) Command {
	return Command{Argv: []string{"/bin/sh", "-c", script}, Environ: os.Environ()}
}

// within is Run with a limit of time, and what the command printed.
func within(t *testing.T, limit time.Duration, c Command) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return run(ctx, c)
}

// run is Run, and what the command printed.
func run(ctx context.Context, c Command) (string, error) {
	output := End(1 << 10)
	c.Stdout, c.Stderr = output, output
	err := Run(ctx, c)
	return string(output.Bytes()), err
}

func TestHowItEndsIsSaid(t *testing.T) {
	for _, tt := range []struct {
		name    string
		command Command
		want    string
	}{
		{"status 0", shell("exit 0"), ""},
		{"another status", shell("exit 3"), "exit status 3"},
		{"a signal", shell("kill -TERM $$"), "signal: terminated"},
		{"late", shell("sleep 100"), "killed"},
		{"late, whatever it does about it", shell("trap '' TERM INT HUP; while :; do sleep 1; done"), "killed"},
		{"no such program", Command{Argv: []string{"/no/such/check", "-v"}}, "no such file or directory"},
		{"no such program in PATH", Command{Argv: []string{"no-such-check"}}, "executable file not found in $PATH"},
		{"a folder", Command{Argv: []string{"/"}}, "is a directory"},
		{"no input", shell("read line; test $? -ne 0"), ""},
		{"in the root folder", shell(`test "$(pwd)" = /`), ""},
		{"in a process group of its own", shell(`test "$(ps -o pgid= -p $$ | tr -d ' ')" = $$`), ""},
		{"with its own environment alone", Command{Argv: []string{"/bin/sh", "-c", `test "$MINE" = yes && test -z "$HOME"`}, Environ: []string{"MINE=no", "MINE=yes"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := patience
			if tt.want == "killed" {
				limit = 200 * time.Millisecond
			}
			got := ""
			_, err := within(t, limit, tt.command)
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("error %q, want %q", got, tt.want)
			}
			var start *StartError
			if errors.As(err, &start) != (tt.command.Argv[0] != "/bin/sh") {
				t.Errorf("%T for %q: a StartError is for what did not start", err, tt.command.Argv)
			}
			if errors.Is(err, ErrKilled) != (tt.want == "killed") {
				t.Errorf("%v: ErrKilled is for what was late", err)
			}
		})
	}
}

func TestStartedIsToldWhileItRuns(t *testing.T) {
	var told string
	c := shell("read name </proc/$$/comm; until grep -q '100$' /proc/$$/oom_score_adj; do :; done; echo $$")
	c.Started = func(pid int) {
		told = fmt.Sprint(pid)
		if err := os.WriteFile(filepath.Join("/proc", told, "oom_score_adj"), []byte("100"), 0); err != nil {
			t.Error(err)
		}
	}
	if output, err := within(t, patience, c); err != nil || strings.TrimSpace(output) != told {
		t.Errorf("told of %s, process %q, %v", told, output, err)
	}
}

// family runs a command whose processes each hold a pipe open (as file 9) and returns once all of them are gone: the pipe's other end then reads its end.
// The command's time is over when it writes to that pipe; one that does not may end by itself.
func family(t *testing.T, script string) (output string, err error) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, openErr := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0) // opens without waiting for a writer
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer reader.Close()
	writer, openErr := os.OpenFile(fifo, os.O_WRONLY, 0) // until the command has ended: who reads before anybody writes reads the end
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer writer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	written := make(chan error, 1)
	go func() {
		_, err := reader.Read(make([]byte, 1))
		cancel()
		written <- err
	}()
	output, err = run(ctx, shell(fmt.Sprintf("exec 9>%s; %s", fifo, script)))
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Fatalf("%q neither wrote nor ended within %s: %v", script, patience, err)
	}
	if !errors.Is(err, ErrKilled) { // it ended by itself: let the reader go
		if _, err := writer.WriteString("x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	writer.Close()
	if err := reader.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, readErr := io.ReadAll(reader); readErr != nil {
		t.Fatalf("after %v a process of the command is still alive: %v", err, readErr)
	}
	return output, err
}

func TestATimeOutKillsTheWholeProcessGroup(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"the command itself", "echo started >&9; exec sleep 100"},
		{"a child", "sleep 100 & echo started >&9; wait"},
		{"grandchildren in the background", "(sleep 100 & sleep 100) & (trap '' TERM INT HUP; sleep 100 & echo started >&9; wait) & wait"},
		{"a child whose parent is gone", "(sleep 100 &); echo started >&9; sleep 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := family(t, tt.script); !errors.Is(err, ErrKilled) {
				t.Errorf("%v, want %v", err, ErrKilled)
			}
		})
	}
	t.Run("and its output says how far it came", func(t *testing.T) {
		if output, err := family(t, "echo waiting for the lock; echo started >&9; sleep 100"); output != "waiting for the lock\n" || !errors.Is(err, ErrKilled) {
			t.Errorf("output %q, %v", output, err)
		}
	})
}

func TestWhatACommandLeavesRunningIsKilledToo(t *testing.T) {
	if _, err := family(t, "sleep 100 & exit 0"); err != nil {
		t.Errorf("%v, want success", err)
	}
}

// Whatever a command starts in sessions of its own ends with it: in time or late, with or without a parent, in the middle of a fork, in any number.
func TestWhatLeftTheGroupIsKilledToo(t *testing.T) {
	setsid := netns.Tool(t, "setsid")
	// What each of them does once it is in its session; the command ends when n have.
	t.Setenv("STAYS", `echo >>$DIR/left; exec sleep 1000`)
	const leave = "\n" + `until test "$(cat "$DIR/left" 2>/dev/null | wc -l)" = $n; do sleep 0.05; done; exit 0`
	for _, tt := range []struct{ name, script string }{
		{"a daemon", `n=1; ` + setsid + ` sh -c "$STAYS" &` + leave},
		{"one that forks twice", `n=1; (` + setsid + ` sh -c "(exec sh -c '$STAYS') & exit 0" &)` + leave},
		{"a family of three sessions", `n=2; ` + setsid + ` sh -c "` + setsid + ` sh -c '$STAYS' & ` + setsid + ` sh -c '$STAYS'" &` + leave},
		{"one with other variables", `n=1; A=b ` + setsid + ` env -u HOME sh -c "$STAYS" &` + leave},
		{"when the command is late", setsid + ` sh -c "echo started >&9; exec sleep 1000" & sleep 1000`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DIR", t.TempDir())
			var want error
			if strings.HasSuffix(tt.name, "late") {
				want = ErrKilled
			}
			if _, err := family(t, tt.script); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

// A run ends its own processes alone.
func TestAnotherRunsProcessesAreLeft(t *testing.T) {
	setsid := netns.Tool(t, "setsid")
	dir := t.TempDir()
	other := make(chan error, 1)
	go func() {
		_, err := within(t, patience, shell(fmt.Sprintf("%s sh -c 'until test -e %s/end; do sleep 0.01; done; echo alive >%s/said' & echo >%s/began; wait", setsid, dir, dir, dir)))
		other <- err
	}()
	for deadline := time.Now().Add(patience); ; {
		if _, err := os.Stat(filepath.Join(dir, "began")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the other command does not begin")
		}
	}
	if _, err := within(t, patience, shell("exit 0")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-other; err != nil {
		t.Error(err)
	}
	if said, _ := os.ReadFile(filepath.Join(dir, "said")); string(said) != "alive\n" {
		t.Errorf("the process of another run said %q: it was killed", said)
	}
}

func TestAProcessThatCannotBeToldDoesNotHoldTheCommand(t *testing.T) {
	setsid := netns.Tool(t, "setsid")
	pidFile := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	_, err := within(t, patience, shell(fmt.Sprintf("env -i %s sh -c 'echo $$ >%s; exec sleep 1000' & while ! test -s %s; do :; done; exit 0", setsid, pidFile, pidFile)))
	if err != nil {
		t.Errorf("%v, want success: the command exited with 0", err)
	}
	if took := time.Since(start); took > patience {
		t.Errorf("took %s, held up by a process that kept the output open", took)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if _, err := fmt.Sscan(string(pid), &n); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Errorf("kill the process that left: %v", err)
	}
}

func TestNoZombiesAreLeft(t *testing.T) {
	for range 5 {
		_, _ = within(t, patience, shell("sleep 100 & exit 1"))
		_, _ = within(t, 20*time.Millisecond, shell("sleep 100"))
	}
	// Every child of this process has been waited for: none is left, dead or alive.
	var status unix.WaitStatus
	if pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child is left: pid %d, error %v, want none", pid, err)
	}
}

// A daemon with ambient capabilities, as the unit gives them: this test's own binary, run as another user.
func TestACommandHasNoneOfTheDaemonsCapabilities(t *testing.T) {
	const script = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -d '\\t'"
	if os.Getenv("CHILD_TEST_DAEMON") == "1" {
		own, err := os.ReadFile("/proc/thread-self/status")
		if err != nil {
			t.Fatal(err)
		}
		output, err := within(t, patience, shell(script))
		fmt.Printf("daemon: %s\ncommand: %v %s\n", strings.Join(strings.Fields(string(own)), " "), err, output)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "child.test") // where another user can read it
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(binary, data, 0o755), os.Chmod(binary, 0o755)); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	for dir := filepath.Dir(binary); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "-test.run=^"+t.Name()+"$")
	cmd.Env = []string{"CHILD_TEST_DAEMON=1"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		netns.Skip(t, "not allowed to start a process as another user with capabilities (run as root)")
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	daemon, command, _ := strings.Cut(string(out), "command:")
	if !strings.Contains(daemon, "CapAmb: 0000000000003000") {
		t.Fatalf("the daemon of this test has no ambient capabilities, so this shows nothing: %s", daemon)
	}
	const none = "0000000000000000"
	for _, set := range []string{"CapPrm:", "CapEff:", "CapAmb:"} {
		if !strings.Contains(command, set+none) {
			t.Errorf("the command has capabilities, want %s%s in: %s", set, none, command)
		}
	}
}
