package identity

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// backdated is how far istiod sets NotBefore back (Istio: security/pkg/pki/util/generate_cert.go).
const backdated = 2 * time.Minute

// leastOff is from when on a clock that differs from the CA's is worth a word: a request takes seconds.
const leastOff = time.Minute

// clockBehind is how far this machine's clock is behind the CA's, by a leaf received at now; zero when it cannot be told. Only a
// NotBefore in our future is proof for every CA.
func clockBehind(leaf *x509.Certificate, now time.Time) time.Duration {
	if !now.Before(leaf.NotBefore) {
		return 0
	}
	return leaf.NotBefore.Add(backdated).Sub(now)
}

// clockAhead is how far this machine's clock is ahead of the CA's, by a leaf received at now for which a life of asked was asked; zero when it cannot
// be told. CAs backdate by other amounts, so a NotBefore in the past says nothing, unless the dates are istiod's own arithmetic: the life
// that was asked for, from two minutes ago on.
func clockAhead(leaf *x509.Certificate, asked time.Duration, now time.Time) time.Duration {
	if leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Second) != (asked + backdated).Round(time.Second) {
		return 0
	}
	return max(now.Sub(leaf.NotBefore.Add(backdated)), 0)
}

// clockOff says what is wrong with the clock, "" when nothing is.
func clockOff(leaf *x509.Certificate, asked time.Duration, now time.Time) string {
	if d := clockBehind(leaf, now); d > 0 {
		return "the clock is " + span(d) + " behind istiod"
	}
	if d := clockAhead(leaf, asked, now); d >= leastOff {
		return "the clock is " + span(d) + " ahead of istiod"
	}
	return ""
}

// A clockWatch tells when the wall clock did something else than run: it was set, or the machine was suspended.
type clockWatch interface {
	changed() <-chan struct{}
	stop()
}

// A timerWatch is a timer of the kernel that is cancelled when that happens (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET; a resume counts).
type timerWatch struct {
	file   *os.File
	events chan struct{}
	done   chan struct{}
}

// newClockWatch starts a watch. Where the kernel has none to give, the clock is only looked at every half minute.
func newClockWatch(log *slog.Logger) clockWatch {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		log.Warn("clock is not watched, only looked at now and then", "every", longestSleep, "cause", err)
		return blindClock{}
	}
	w := &timerWatch{file: os.NewFile(uintptr(fd), "timerfd"), events: make(chan struct{}, 1), done: make(chan struct{})}
	if err := w.arm(); err != nil {
		w.file.Close()
		log.Warn("clock is not watched, only looked at now and then", "every", longestSleep, "cause", err)
		return blindClock{}
	}
	go w.run() // ends with stop
	return w
}

// arm sets the timer to a time that never comes.
func (w *timerWatch) arm() error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = conn.Control(func(fd uintptr) {
		never := unix.ItimerSpec{Value: unix.NsecToTimespec(1 << 62)}
		setErr = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
	})
	return errors.Join(err, setErr)
}

func (w *timerWatch) run() {
	defer close(w.done)
	var expirations [8]byte
	for {
		_, err := w.file.Read(expirations[:])
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			return // closed
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
		if w.arm() != nil {
			return
		}
	}
}

func (w *timerWatch) changed() <-chan struct{} { return w.events }

func (w *timerWatch) stop() {
	w.file.Close()
	<-w.done
}

// suspended is how long this machine has slept since its boot.
func suspended() time.Duration {
	var boot, awake unix.Timespec
	// The one that is ahead is read last: the difference is never negative.
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil {
		return 0
	}
	return time.Duration(boot.Nano() - awake.Nano())
}

// A jump is what the wall clock did beside running.
type jump struct {
	slept time.Duration // the machine was suspended
	set   time.Duration // the clock was set by so much, forward or back
}

// jumpOf decides what happened between two looks: wall is what the wall clock moved by, awake what timers did, asleep what was slept.
func jumpOf(wall, awake, asleep time.Duration) (jump, bool) {
	j := jump{slept: asleep, set: wall - awake - asleep}
	if j.slept < jumpSize {
		j.set, j.slept = j.set+j.slept, 0
	}
	if j.set.Abs() < jumpSize {
		j.set = 0
	}
	return j, j != jump{}
}

// A blindClock never tells anything.
type blindClock struct{}

func (blindClock) changed() <-chan struct{} { return nil }
func (blindClock) stop()                    {}
