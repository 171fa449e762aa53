package agent

import (
	"testing"
	"time"
)

func TestWayToEntry(t *testing.T) {
	plain := &entryFacts{Labels: map[string]string{"security.istio.io/tlsMode": "disabled"}, Probe: true}
	mutual := &entryFacts{Labels: map[string]string{}, Probe: true}
	now, grace := time.Unix(1000, 0), 12*time.Second
	tests := []struct {
		name          string
		known, wanted *entryFacts
		left          time.Time // when istiod saw the last stream end
		visit         bool
		wait          time.Duration
	}{
		{"a first join", nil, mutual, time.Time{}, false, 0},
		{"the same entry", mutual, &entryFacts{Labels: map[string]string{}, Probe: true}, time.Time{}, false, 0},
		{"another label, and istiod has just seen the end", plain, mutual, now, false, grace},
		{"another label, a moment later", plain, mutual, now.Add(-5 * time.Second), false, 7 * time.Second},
		{"another label, and the entry is gone", plain, mutual, now.Add(-grace), false, 0},
		{"another label, and istiod was away: it counts nothing yet", plain, mutual, time.Time{}, true, 0},
		{"a probe that was not there", &entryFacts{Labels: map[string]string{}}, mutual, time.Time{}, true, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			visit, wait := wayToEntry(tt.known, tt.wanted, tt.left, grace, now)
			if visit != tt.visit || wait != tt.wait {
				t.Errorf("visit %t, wait %s; want %t, %s", visit, wait, tt.visit, tt.wait)
			}
		})
	}
}
