package identity

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWhatTheClockDid(t *testing.T) {
	const h = time.Hour
	tests := []struct {
		name                string
		wall, awake, asleep time.Duration
		want                jump
	}{
		{"it ran", 30 * time.Second, 30 * time.Second, 0, jump{}},
		{"NTP slews", 30 * time.Second, 31 * time.Second, 0, jump{}},
		{"a night's sleep", 8*h + 10*time.Second, 10 * time.Second, 8 * h, jump{slept: 8 * h}},
		{"set forward", 2*h + time.Second, time.Second, 0, jump{set: 2 * h}},
		{"set back", -2*h + time.Second, time.Second, 0, jump{set: -2 * h}},
		{"a battery that forgot the time", -1000 * h, time.Second, 8 * h, jump{slept: 8 * h, set: -1008*h - time.Second}},
		{"a nap of four seconds and a small step", 8 * time.Second, time.Second, 4 * time.Second, jump{set: 7 * time.Second}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, jumped := jumpOf(tt.wall, tt.awake, tt.asleep); got != tt.want || jumped != (tt.want != jump{}) {
				t.Errorf("got %+v, %v; want %+v", got, jumped, tt.want)
			}
		})
	}
}

// TestTheKernelTellsOfAClockThatWasSet sets the clock forward and back by a nanosecond, the least that counts as setting it.
func TestTheKernelTellsOfAClockThatWasSet(t *testing.T) {
	w := newClockWatch(slog.New(slog.DiscardHandler))
	defer w.stop()
	if _, ok := w.(*timerWatch); !ok {
		t.Fatal("the clock is not watched")
	}
	forth, back := unix.Timeval{Usec: 1}, unix.Timeval{Sec: -1, Usec: 999_999_999} // nanoseconds, by ADJ_NANO
	for _, by := range []unix.Timeval{forth, back, forth, back} {
		select {
		case <-w.changed():
			t.Fatal("told of nothing")
		default:
		}
		if _, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: by}); errors.Is(err, unix.EPERM) {
			t.Skip("needs CAP_SYS_TIME: ", err)
		} else if err != nil {
			t.Fatal(err)
		}
		within(t, 30*time.Second, w.changed(), "the kernel's word")
	}
	if suspended() < 0 {
		t.Error("asleep for less than nothing")
	}
}
