package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockFile = "lock"
	// leftoverGrace is how long an Envoy without a supervisor has to end.
	leftoverGrace = 2 * time.Second
	lockPoll      = 10 * time.Millisecond
)

// process names a process for as long as it lives; another one that gets its number later started at another time.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // ticks after boot, proc_pid_stat(5)
}

// owners is what the lock file says: who holds the lock.
type owners struct {
	Supervisor process `json:"supervisor"`
	Envoy      process `json:"envoy"` // zero while there is none
}

// lock is held by a supervisor and, because it inherits the descriptor, by its Envoy: it is free only when neither is left.
type lock struct {
	file *os.File
	// mark is the same file, opened again and not inherited: a record lock on it (F_OFD_SETLK, fcntl(2)) lives as long as the supervisor.
	mark *os.File
}

// takeLock makes this process the only supervisor of dir.
//
// Another supervisor that lives is an error that names it. An Envoy whose supervisor is gone is ended: nobody reads what it
// says or would drain it, and a second Envoy beside it would share its ports.
func takeLock(ctx context.Context, dir string, log *slog.Logger) (*lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	l := &lock{file: f}
	if err := l.acquire(ctx, log); err != nil {
		return nil, errors.Join(err, l.close())
	}
	if err := l.note(process{}); err != nil {
		return nil, errors.Join(err, l.close())
	}
	if l.mark, err = markAlive(f.Name()); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// markAlive marks the lock's file as one whose supervisor lives.
func markAlive(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return nil, errors.Join(fmt.Errorf("mark %s: %w", name, err), f.Close())
	}
	return f, nil
}

// supervised reports whether a supervisor of dir lives. /proc would not say: its unit gives it a user namespace of its own, and hides
// processes of other ones (PrivateUsers=, ProtectProc=invisible).
func supervised(dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDONLY|unix.O_NONBLOCK, 0) // root asks too, in a folder that is not its own
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	held := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &held); err != nil {
		return false, fmt.Errorf("ask for the lock %s: %w", f.Name(), err)
	}
	return held.Type != unix.F_UNLCK, nil
}

func (l *lock) acquire(ctx context.Context, log *slog.Logger) error {
	asked := time.Time{} // since when the one left over is to end
	began := time.Now()
	for {
		err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", l.file.Name(), err)
		}
		o := l.read()
		alive, err := supervised(filepath.Dir(l.file.Name()))
		switch {
		case err != nil:
			return err
		case alive:
			return fmt.Errorf("another wingman proxy runs with this root (pid %d): stop it first", o.Supervisor.PID)
		case o.Envoy.alive() && asked.IsZero():
			log.Warn("an Envoy is left over; it is ended", "pid", o.Envoy.PID, "supervisor", o.Supervisor.PID)
			asked = time.Now()
			o.Envoy.signal(unix.SIGTERM)
		case o.Envoy.alive() && time.Since(asked) > leftoverGrace:
			o.Envoy.signal(unix.SIGKILL)
		case !o.Envoy.alive() && time.Since(began) > 2*leftoverGrace:
			return fmt.Errorf("the lock %s is held by a process that is not known: fuser %s names it", l.file.Name(), l.file.Name())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

// note writes who holds the lock.
func (l *lock) note(envoy process) error {
	self, err := processOf(os.Getpid())
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	b, err := json.Marshal(owners{Supervisor: self, Envoy: envoy})
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if _, err := l.file.WriteAt(append(b, '\n'), 0); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	return nil
}

// read returns what the holder wrote; nothing of use while it is writing.
func (l *lock) read() (o owners) {
	b, err := io.ReadAll(io.NewSectionReader(l.file, 0, 4096))
	if err != nil || json.Unmarshal(b, &o) != nil {
		return owners{}
	}
	return o
}

func (l *lock) close() error {
	if l.mark == nil {
		return l.file.Close()
	}
	return errors.Join(l.mark.Close(), l.file.Close())
}

// processOf looks a process up.
func processOf(pid int) (process, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, err
	}
	state, start, ok := parseStat(string(b))
	if !ok || state == "Z" || state == "X" {
		return process{}, fmt.Errorf("process %d has ended", pid)
	}
	return process{PID: pid, Start: start}, nil
}

// parseStat reads state and start time of proc_pid_stat(5). The name, in parentheses, may hold anything.
func parseStat(s string) (state string, start uint64, ok bool) {
	end := strings.LastIndexByte(s, ')')
	if end < 0 {
		return "", 0, false
	}
	f := strings.Fields(s[end+1:]) // from field 3 on
	if len(f) < 20 {
		return "", 0, false
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return f[0], start, err == nil
}

func (p process) alive() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := processOf(p.PID)
	return err == nil && now.Start == p.Start
}

// signal reaches this process and no other that got its number meanwhile.
func (p process) signal(sig unix.Signal) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if p.alive() {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0) // it has ended: just as well
	}
}
