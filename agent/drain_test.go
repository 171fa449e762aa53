package agent

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"wingman/bootstrap"
)

func TestStopTimes(t *testing.T) {
	const s = time.Second
	for _, tc := range []struct {
		name                      string
		propagation, drain, limit time.Duration
		spread, shed              time.Duration
	}{
		{"the defaults", 5 * s, 5 * s, 90 * s, 5 * s, 5 * s},
		{"nobody kills", 600 * s, 3600 * s, 0, 600 * s, 3600 * s},
		{"a long drain", 5 * s, 600 * s, 90 * s, 5 * s, 75 * s},
		{"long news", 600 * s, 5 * s, 90 * s, 80 * s, 0},
		{"a limit of an operator", 5 * s, 5 * s, 20 * s, 5 * s, 5 * s},
		{"a short one", 5 * s, 5 * s, 16 * s, 5 * s, 3 * s},
		{"a very short one", 5 * s, 5 * s, 6 * s, 3 * s, 0},
		{"no news", 0, 5 * s, 90 * s, 0, 5 * s},
	} {
		spread, shed := stopTimes(tc.propagation, tc.drain, tc.limit)
		if spread != tc.spread || shed != tc.shed {
			t.Errorf("%s: %s for the news and %s for the drain, want %s and %s", tc.name, spread, shed, tc.spread, tc.shed)
		}
	}
}

// Without a stream a drain holds all the same, and that is said: who reads of a failure would drain again, or think that traffic still comes.
func TestADrainThatIstiodCannotBeToldOfHolds(t *testing.T) {
	cfg := &bootstrap.Config{Paths: bootstrap.Paths{StateDir: t.TempDir()}}
	a := &Agent{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	err := a.drain(t.Context(), "kernel update")
	const want = "this machine is drained, and stays so over restarts until undrain, but istiod cannot be told now: it will be as soon as there is a stream to it"
	if !errors.Is(err, errNotTold) || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	if d, err := readDrained(cfg.Paths.StateDir); err != nil || d.verdict() != "drained by hand: kernel update" {
		t.Errorf("noted: %+v, %v", d, err)
	}
	if err := a.undrain(t.Context()); !errors.Is(err, errNotTold) || !strings.HasPrefix(err.Error(), "this machine is drained no more, but ") {
		t.Errorf("undrain: %v", err)
	}
	if d, err := readDrained(cfg.Paths.StateDir); d != nil || err != nil {
		t.Errorf("still noted: %+v, %v", d, err)
	}
}
