package health

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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

func TestALateCommandSaysHowFarItCame(t *testing.T) {
	for script, want := range map[string]string{
		"exec sleep 100":                       "exec /bin/sh -c exec sleep 100: killed, not done within 4s",
		"echo waiting for the lock; sleep 100": "exec /bin/sh -c echo waiting for the lock; sleep 100: killed, not done within 4s: waiting for the lock",
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			p := shell(script)
			p.Timeout = 4 * time.Second // for a shell to start on a loaded machine
			if got := ask(t, p, ""); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
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
