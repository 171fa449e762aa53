package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestFailedTaskIsRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t.Context(), quiet())
		var starts []time.Duration
		began := time.Now()
		g.start(task{name: "flaky", run: func(ctx context.Context) error {
			starts = append(starts, time.Since(began))
			if len(starts) < 4 {
				return errors.New("port taken")
			}
			<-ctx.Done()
			return nil
		}})
		<-time.After(50 * time.Millisecond) // synctest's clock
		if tr := g.troubles(); tr["flaky"] != "port taken" {
			t.Errorf("troubles = %v while it waits, want the cause", tr)
		}
		<-time.After(10 * time.Second)
		synctest.Wait()
		if len(starts) != 4 {
			t.Fatalf("%d starts, want 4", len(starts))
		}
		if gap := starts[3] - starts[2]; gap < 2*taskFirstWait {
			t.Errorf("third wait %v, want at least twice the first one's lower half", gap)
		}
		if tr := g.troubles(); len(tr) != 0 {
			t.Errorf("troubles = %v after it runs, want none", tr)
		}
		if err := g.stop(time.Second); err != nil {
			t.Error(err)
		}
	})
}

func TestPanicOfATaskIsItsFailureAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t.Context(), quiet())
		g.start(task{name: "bug", run: func(context.Context) error { panic("nil map") }})
		<-time.After(50 * time.Millisecond)
		if tr := g.troubles(); !strings.Contains(tr["bug"], "nil map") {
			t.Errorf("troubles = %v, want the panic", tr)
		}
		if err := g.stop(time.Second); err != nil {
			t.Error(err)
		}
	})
}

func TestEssentialTaskEndsTheDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t.Context(), quiet())
		g.start(task{name: "dns", essential: true, run: func(context.Context) error { return nil }})
		err := <-g.fatal
		if !errors.Is(err, errReturned) || !strings.Contains(err.Error(), "dns") {
			t.Errorf("fatal = %v, want dns and that it stopped by itself", err)
		}
		if err := g.stop(time.Second); err != nil {
			t.Error(err)
		}
	})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t.Context(), quiet())
		hang := make(chan struct{})
		g.start(task{name: "hangs", run: func(context.Context) error { <-hang; return nil }})
		synctest.Wait()
		if err := g.stop(time.Second); err == nil {
			t.Error("stop = nil although a task hangs, want an error after the limit")
		}
		close(hang)
	})
}
