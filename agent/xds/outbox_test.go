package xds

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestOutbox(t *testing.T) {
	sick, well := Health{Reason: "dead"}, Health{Healthy: true}
	// Each script is a sequence: u unhealthy put, h healthy put, n new stream, s take and send; sends are checked.
	for _, tc := range []struct{ name, script, sent string }{
		{"a verdict is sent once", "nhss", "H"},
		{"the same verdict again is no news", "nhshs", "H"},
		{"every change is sent", "nhsushs", "HUH"},
		{"of verdicts that come together the last is sent", "nhus", "U"},
		{"back to what was sent before is still a verdict", "nhsuhs", "HH"},
		{"a new stream is told again", "nhsns", "HH"},
		{"a new stream without a verdict is told nothing", "nsns", ""},
		{"a verdict that came while no stream stood waits", "unsns", "UU"},
		{"a verdict of false and no reason is one", "nus", "U"},
	} {
		o, sent := newOutbox(), ""
		for _, c := range tc.script {
			switch c {
			case 'h':
				o.put(well)
			case 'u':
				o.put(sick)
			case 'n':
				o.newStream()
			case 's':
				if h, count, due := o.take(); due {
					sent += map[bool]string{true: "H", false: "U"}[h.Healthy]
					o.done(count)
				}
			}
		}
		if sent != tc.sent {
			t.Errorf("%s: %s sent %q, want %q", tc.name, tc.script, sent, tc.sent)
		}
	}
}

func TestOutboxWaitsUntilTheLatestIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		o.newStream()
		o.put(Health{Healthy: true})
		_, first, _ := o.take()
		o.put(Health{Reason: "draining"}) // while the first is on its way
		told := make(chan bool, 1)
		go func() { told <- o.wait(t.Context()) }()
		o.done(first)
		synctest.Wait()
		select {
		case <-told:
			t.Fatal("wait returned after the older verdict was sent")
		default:
		}
		h, second, due := o.take()
		if !due || h.Reason != "draining" {
			t.Fatalf("take() = %v, due %v; want the later verdict", h, due)
		}
		o.done(second)
		if !<-told {
			t.Error("wait = false, want true")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		o.put(Health{Healthy: true})
		if o.wait(ctx) {
			t.Error("wait = true although nothing was sent and ctx ended")
		}
	})
}
