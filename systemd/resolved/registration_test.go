package resolved

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func newTestRegistration(t *testing.T) (*Registration, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	r, err := New(Config{Wish: func() Wish { return Wish{} }, Log: slog.New(slog.NewTextHandler(&log, nil)), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return r, &log
}

// Two programs that undo each other's work must not do so all day long, nor fill the journal.
func TestWhoTakesItAwayAgainAndAgainIsMetLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, log := newTestRegistration(t)
		w := Wish{Registered: true, Domains: Domains{List: []Domain{{"a.example", false}}}}
		undone := done{made: true, calls: []call{{method: "SetLinkDNSEx"}}}
		r.tell(done{made: true, calls: undone.calls}, w)
		r.last = w
		if r.State().Repairs != 0 || r.pace != atMostEach {
			t.Fatalf("the first registration counts as %d repairs, pace %s", r.State().Repairs, r.pace)
		}
		for range 10 {
			time.Sleep(r.pace)
			r.tell(undone, w)
		}
		if r.State().Repairs != 10 || r.pace != lastRetry {
			t.Errorf("after ten repairs: %d counted, pace %s; want 10, %s", r.State().Repairs, r.pace, lastRetry)
		}
		r.tell(done{}, w)
		if r.pace != lastRetry {
			t.Errorf("one look without a repair makes the pace %s, want it kept for %s", r.pace, calmAfter)
		}
		time.Sleep(calmAfter + time.Second)
		r.tell(done{}, w)
		if r.pace != atMostEach {
			t.Errorf("after %s of calm the pace is %s, want %s", calmAfter, r.pace, atMostEach)
		}
		if n := strings.Count(log.String(), "it is set again"); n != 10 {
			t.Errorf("%d lines for ten repairs", n)
		}
		other := w
		other.Domains.List = []Domain{{"b.example", false}}
		r.tell(undone, other)
		if r.State().Repairs != 10 || r.pace != atMostEach {
			t.Errorf("another table counts as a repair: %d, pace %s", r.State().Repairs, r.pace)
		}
	})
}

func TestOneCauseIsOneLine(t *testing.T) {
	r, log := newTestRegistration(t)
	changed := 0
	r.cfg.Changed = func() { changed++ }
	for range 5 {
		r.note(State{Error: "systemd-resolved does not run"})
	}
	if n := strings.Count(log.String(), "does not run"); n != 1 || changed != 1 {
		t.Errorf("%d lines and %d changes for one cause, want 1 and 1:\n%s", n, changed, log)
	}
	r.note(State{Registered: true, Domains: 3})
	if s := r.State(); !s.Registered || s.Link != LinkName || s.Since.IsZero() || s.Error != "" || changed != 2 {
		t.Errorf("state %+v after %d changes", s, changed)
	}
	if n := strings.Count(log.String(), "in order again"); n != 1 {
		t.Errorf("its end is said %d times:\n%s", n, log)
	}
	since := r.State().Since
	r.note(State{Registered: true, Domains: 4})
	if r.State().Since != since {
		t.Error("another table is another registration")
	}
}
