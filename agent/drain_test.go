package agent

import (
	"testing"
	"time"
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
