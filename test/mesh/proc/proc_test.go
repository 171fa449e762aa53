package proc

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func launch(t *testing.T) *Launcher {
	t.Helper()
	l, err := NewLauncher(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func start(t *testing.T, l *Launcher, script string) *Process {
	t.Helper()
	p, err := l.Start(Spec{Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "logs", "log")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// awaitLine waits until a program has said something: it creates no other sign.
func awaitLine(t *testing.T, p *Process, line string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, p.Log(), unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.Tail(10), line) {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
			t.Fatalf("the program never said %q (poll: %v)", line, err)
		}
		if _, err := unix.Read(fd, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
}

func gone(t *testing.T, pidfd int) {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Errorf("the process still runs after 10 s (poll: %v)", err)
	}
}

func pidfd(t *testing.T, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestErrHasTheEndOfTheLog(t *testing.T) {
	p := start(t, launch(t), "echo one; echo two >&2; exit 3")
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.HasSuffix(err.Error(), "one\ntwo") {
		t.Errorf("error is %v, want status 3 and both lines", err)
	}
	if err := start(t, launch(t), "exit 0").Err(); err != nil {
		t.Errorf("status 0 is the error %v", err)
	}
}

func TestStopIsPoliteFirst(t *testing.T) {
	p := start(t, launch(t), "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.01; done")
	awaitLine(t, p, "up")
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := p.Tail(1); got != "asked" {
		t.Errorf("the program's last word is %q, want asked", got)
	}
}

func TestStopKillsWhatWillNotGoAndSaysSo(t *testing.T) {
	p := start(t, launch(t), "trap '' TERM; echo up; while :; do sleep 0.01; done")
	awaitLine(t, p, "up")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Stop(ctx); err == nil || !strings.Contains(err.Error(), "went on after SIGTERM") {
		t.Errorf("error is %v, want that it had to be killed", err)
	}
}

func TestClosingTheLauncherEndsWhatItStarted(t *testing.T) {
	l := launch(t)
	p := start(t, l, "exec sleep 1000")
	fd := pidfd(t, p.PID())
	l.Close()
	gone(t, fd)
	if err := l.Do(func() error { return nil }); err == nil {
		t.Error("a closed launcher still works")
	}
}
