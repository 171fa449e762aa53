package proxy

import (
	"testing"
	"time"
)

// Systemd's watchdog is told by the loop that looks after Envoy, in each of its phases: what hangs it must be noticed.
func TestTheLoopItselfSaysThatItLives(t *testing.T) {
	st := newStation(t)
	beats, hang := make(chan struct{}), make(chan struct{})
	st.cfg.BeatEvery = 10 * time.Millisecond
	st.cfg.Beat = func() {
		select {
		case beats <- struct{}{}:
		case <-hang:
		}
	}
	expect := func(what string) {
		t.Helper()
		select {
		case <-beats:
		case <-time.After(20 * time.Second):
			t.Fatalf("no beat %s", what)
		}
	}
	st.run()
	expect("before Envoy is live")
	close(hang) // from now on a beat is told or lost: the loop must go on
	s := st.awaitLive()
	expect("while Envoy is live")
	if s.PID == 0 {
		t.Error("no Envoy")
	}
}
