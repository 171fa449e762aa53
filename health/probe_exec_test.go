package health

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/test/netns"
)

func shell(script string) Probe {
	return Probe{Exec: &Exec{Command: []string{"/bin/sh", "-c", script}}}
}

func TestExecAnswers(t *testing.T) {
	dir := t.TempDir()
	notExecutable := filepath.Join(dir, "check")
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	noInterpreter := filepath.Join(dir, "script")
	if err := os.WriteFile(noInterpreter, []byte("#!/no/such/shell\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		probe Probe
		want  string
	}{
		{"status 0", shell("exit 0"), ""},
		{"status 0 with output", shell("echo fine"), ""},
		{"another status", shell("exit 3"), "exec /bin/sh -c exit 3: exit status 3"},
		{"its output is quoted", shell("echo one; echo two >&2; exit 1"), "exec /bin/sh -c echo one; echo two >&2; exit 1: exit status 1: one | two"},
		{"a signal", shell("kill -TERM $$"), "exec /bin/sh -c kill -TERM $$: signal: terminated"},
		{"no such program", Probe{Exec: &Exec{Command: []string{"/no/such/check", "-v"}}}, "exec /no/such/check -v: no such file or directory"},
		{"no such program in PATH", Probe{Exec: &Exec{Command: []string{"no-such-check"}}}, "exec no-such-check: executable file not found in $PATH"},
		{"not executable", Probe{Exec: &Exec{Command: []string{notExecutable}}}, "exec " + notExecutable + ": permission denied"},
		{"no interpreter", Probe{Exec: &Exec{Command: []string{noInterpreter}}}, "exec " + noInterpreter + ": no such file or directory"},
		{"arguments are not for a shell", Probe{Exec: &Exec{Command: []string{"/usr/bin/test", "$HOME", "=", "$HOME"}}}, ""},
		{"no input", shell("read line; test $? -ne 0"), ""},
		{"in the root folder", shell(`test "$(pwd)" = /`), ""},
		{"in a process group of its own", shell(`test "$(ps -o pgid= -p $$ | tr -d ' ')" = $$`), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := ask(t, tt.probe, ""); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestExecOutputIsBounded(t *testing.T) {
	reason := ask(t, shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1"), "")
	if !strings.HasSuffix(reason, "x | the end") {
		t.Errorf("reason %q, want the end of the output", reason)
	}
	if len(reason) > 2*maxOutput {
		t.Errorf("reason of %d bytes, want at most %d of output", len(reason), maxOutput)
	}
}

// family runs a probe whose processes each hold a pipe open and returns its reason once all of them are gone: the pipe's
// other end then reads its end.
func family(t *testing.T, script string, timeout time.Duration) (reason string) {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "alive")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0) // opens without waiting for a writer
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	p := shell(fmt.Sprintf("exec 9>%s; echo started >&9; %s", fifo, script))
	p.Timeout = timeout
	reason = ask(t, p, "")
	if err := reader.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := readAll(reader)
	if err != nil {
		t.Fatalf("after %q a process of the probe is still alive: %v", reason, err)
	}
	if !strings.HasPrefix(got, "started") {
		t.Fatalf("the probe did not start: %q, reason %q", got, reason)
	}
	return reason
}

func readAll(f *os.File) (string, error) {
	var all []byte
	buf := make([]byte, 256)
	for {
		n, err := f.Read(buf)
		all = append(all, buf[:n]...)
		if n == 0 && (err == nil || err.Error() == "EOF") {
			return string(all), nil
		}
		if err != nil {
			return string(all), err
		}
	}
}

func TestATimeOutKillsTheWholeProcessGroup(t *testing.T) {
	for _, tt := range []struct{ name, script string }{
		{"the command itself", "exec sleep 100"},
		{"a child", "sleep 100"},
		{"grandchildren in the background", "(sleep 100 & sleep 100) & (trap '' TERM INT HUP; sleep 100 & wait) & wait"},
		{"a child whose parent is gone", "(sleep 100 &); sleep 100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reason := family(t, tt.script, 500*time.Millisecond)
			if !strings.HasSuffix(reason, ": killed, not done within 500ms") {
				t.Errorf("reason %q, want it to end with killed, not done within 500ms", reason)
			}
		})
	}
	t.Run("and its output says how far it came", func(t *testing.T) {
		reason := family(t, "echo waiting for the lock; sleep 100", time.Second)
		if !strings.HasSuffix(reason, ": killed, not done within 1s: waiting for the lock") {
			t.Errorf("reason %q, want it to end with the output", reason)
		}
	})
}

func TestWhatAProbeLeavesRunningIsKilledToo(t *testing.T) {
	if reason := family(t, "sleep 100 & exit 0", 20*time.Second); reason != "" {
		t.Errorf("reason %q, want success", reason)
	}
}

func TestAProcessThatLeftTheGroupDoesNotHoldTheProbe(t *testing.T) {
	setsid, err := exec.LookPath("setsid")
	if err != nil {
		netns.Skip(t, "setsid is not installed")
	}
	pidFile := filepath.Join(t.TempDir(), "pid")
	start := time.Now()
	reason := ask(t, shell(fmt.Sprintf("%s sh -c 'echo $$ >%s; exec sleep 100' & while ! test -s %s; do :; done; exit 0", setsid, pidFile, pidFile)), "")
	if reason != "" {
		t.Errorf("reason %q, want success: the command exited with 0", reason)
	}
	if took := time.Since(start); took > 8*time.Second {
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

func TestProbesLeaveNoZombies(t *testing.T) {
	for range 5 {
		ask(t, shell("sleep 100 & exit 1"), "")
		p := shell("sleep 100")
		p.Timeout = 20 * time.Millisecond
		ask(t, p, "")
	}
	// Every child of this process that was started by a probe has been waited for: none is left, dead or alive.
	var status unix.WaitStatus
	if pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a child is left: pid %d, error %v, want none", pid, err)
	}
}

func TestAProbesEnvironment(t *testing.T) {
	got := probeEnviron([]string{"HOME=/root", "NOTIFY_SOCKET=/run/n", "LISTEN_FDS=2", "LISTEN_FDNAMES=a", "PATH=/opt/bin", "JOURNAL_STREAM=1:2", "LISTEN_FDS_OF_MINE=1"})
	want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "PATH=/opt/bin", "LISTEN_FDS_OF_MINE=1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	c, err := New(Config{Probe: shell(`test "$MINE" = yes && test -z "$NOTIFY_SOCKET"`), LegacyLocalhost: true, Environ: []string{"MINE=yes", "NOTIFY_SOCKET=/run/n"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.watchers[0].(*poller).run(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAProbeCannotTakeTheMachinesMemory(t *testing.T) {
	p := shell(`x=0123456789abcdef; while :; do x=$x$x; done`)
	p.Exec.MemoryLimit = 64 << 20
	if reason := ask(t, p, ""); reason == "" || strings.Contains(reason, "not done within") {
		t.Errorf("reason %q, want it to run out of memory", reason)
	}
	// The limits are set just after the start: the script waits for them.
	p.Exec.Command[2] = `until grep -qE 'Max data size +67108864 +67108864' /proc/$$/limits &&
		grep -qE 'Max core file size +0 +0' /proc/$$/limits && grep -qx 500 /proc/$$/oom_score_adj; do :; done`
	if reason := ask(t, p, ""); reason != "" {
		t.Errorf("the limits did not come: %s", reason)
	}
}

// A daemon with ambient capabilities, as the unit gives them: this test's own binary, run as another user.
func TestAProbeHasNoneOfTheDaemonsCapabilities(t *testing.T) {
	const script = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | tr -d '\\t'; exit 1"
	if os.Getenv("HEALTH_TEST_PROBE") == "1" {
		own, err := os.ReadFile("/proc/thread-self/status")
		if err != nil {
			t.Fatal(err)
		}
		c := newExecCheck(Exec{Command: []string{"/bin/sh", "-c", script}}, nil)
		fmt.Printf("daemon: %s\nprobe: %v\n", strings.Join(strings.Fields(string(own)), " "), c.run(context.Background()))
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "health.test") // where another user can read it
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(binary); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "-test.run=^"+t.Name()+"$")
	cmd.Env = []string{"HEALTH_TEST_PROBE=1"}
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
	daemon, probe, _ := strings.Cut(string(out), "probe:")
	if !strings.Contains(daemon, "CapAmb: 0000000000003000") {
		t.Fatalf("the daemon of this test has no ambient capabilities, so this shows nothing: %s", daemon)
	}
	const none = "0000000000000000"
	for _, set := range []string{"CapPrm:", "CapEff:", "CapAmb:"} {
		if !strings.Contains(probe, set+none) {
			t.Errorf("the probe has capabilities, want %s%s in: %s", set, none, probe)
		}
	}
}
