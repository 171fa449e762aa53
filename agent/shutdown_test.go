package agent

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestAStopCountsWhatAShutdownHasWaitedAlready(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{log: slog.New(slog.DiscardHandler)}
		look := func(when string, heard time.Duration, reason string) {
			t.Helper()
			if h, r := a.heardSince(), a.farewellReason(); h != heard || r != reason {
				t.Errorf("%s: peers have heard for %s, istiod is told %q; want %s and %q", when, h, r, heard, reason)
			}
		}
		const stops = "wingman on this machine stops"
		look("no shutdown", 0, stops)
		a.goodbye(t.Context()) // no member yet: nobody to tell, and nothing to wait for
		<-time.After(3 * time.Second)
		look("a shutdown", 3*time.Second, shutdownReason)
		a.hereAgain()
		look("a shutdown that was called off", 0, stops)
		a.leaving = true
		a.goodbye(t.Context())
		look("a stop that came first", 0, stops)
	})
}

func TestOnlyAShutdownsWordIsTakenBack(t *testing.T) {
	for _, tt := range []struct {
		told, want string
	}{
		{shutdownReason, ""},
		{"wingman on this machine stops", "wingman on this machine stops"},
		{"this machine joins again, with other labels", "this machine joins again, with other labels"},
	} {
		v := verdict{leaving: tt.told}
		if v.callOff(); v.leaving != tt.want {
			t.Errorf("told %q, after the shutdown was called off %q, want %q", tt.told, v.leaving, tt.want)
		}
	}
}
