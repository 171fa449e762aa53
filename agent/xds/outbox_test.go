package xds

import (
	"context"
	"testing"
	"testing/synctest"
)

func TestOutbox(t *testing.T) {
	sick, well := Health{Reason: "dead"}, Health{Healthy: true}
	// Each script is a sequence: u unhealthy put, h healthy put, n new stream, s the stream tells what is due; tellings are checked.
	for _, tc := range []struct{ name, script, sent string }{
		{"a verdict is sent once", "nhss", "H"},
		{"the same verdict again is no news", "nhshs", "H"},
		{"every change is sent", "nhsushs", "HUH"},
		{"of verdicts that come together the last is sent", "nhus", "U"},
		{"a new stream is told again", "nhsns", "HH"},
		{"a new stream without a verdict is told nothing", "nsns", ""},
		{"a verdict that came while no stream stood waits", "unsns", "UU"},
		{"a verdict of false and no reason is one", "nus", "U"},
	} {
		o, sent, told := newOutbox(), "", uint64(0)
		for _, c := range tc.script {
			switch c {
			case 'h':
				o.put(well)
			case 'u':
				o.put(sick)
			case 'n':
				told = 0
				o.told(0)
			case 's':
				if h, count, due, _ := o.due(told); due {
					sent += map[bool]string{true: "H", false: "U"}[h.Healthy]
					told = count
					o.told(count)
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
		o.put(Health{Healthy: true})
		_, first, _, _ := o.due(0)
		o.put(Health{Reason: "draining"}) // while the first is on its way
		waited := make(chan bool, 1)
		go func() { waited <- o.wait(t.Context()) }()
		synctest.Wait()
		o.told(first)
		synctest.Wait()
		select {
		case <-waited:
			t.Fatal("wait returned after the older verdict was sent")
		default:
		}
		h, second, due, _ := o.due(first)
		if !due || h.Reason != "draining" {
			t.Fatalf("due = %v, %v; want the later verdict", h, due)
		}
		o.told(second)
		if !<-waited {
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
