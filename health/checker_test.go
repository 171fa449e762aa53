package health

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// fakeCheck answers as answer says, and notes when it was asked. It fails the test when asked twice at a time.
type fakeCheck struct {
	t      *testing.T
	answer func(ctx context.Context, n int) error // n counts from 0

	mu    sync.Mutex // guards everything below
	began []time.Time
	busy  bool
}

func (f *fakeCheck) kind() string   { return "tcp" }
func (f *fakeCheck) target() string { return "fake" }

func (f *fakeCheck) run(ctx context.Context) error {
	f.mu.Lock()
	if f.busy {
		f.t.Error("asked while it was still being asked")
	}
	f.busy = true
	n := len(f.began)
	f.began = append(f.began, time.Now())
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.busy = false
		f.mu.Unlock()
	}()
	return f.answer(ctx, n)
}

// at returns when it was asked, in seconds after start.
func (f *fakeCheck) at(start time.Time) []float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var s []float64
	for _, t := range f.began {
		s = append(s, t.Sub(start).Seconds())
	}
	return s
}

// checkerOf is New with its probes replaced.
func checkerOf(t *testing.T, cfg Config, pollers ...*poller) *Checker {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pollers {
		if p.thresholds == (rule{}) {
			p.thresholds = rule{1, 1}
		}
		c.watchers = append(c.watchers, p)
	}
	c.verdict = newVerdict(c.watchers, cfg.Damping)
	return c
}

// hearing has a Checker with cfg tell what heard returns: each report, in order.
func hearing(cfg *Config) (heard func() []Report) {
	var mu sync.Mutex
	var told []Report
	cfg.OnReport = func(r Report) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r)
	}
	return func() []Report {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(told)
	}
}

// last is the newest of some reports; its zero value: there is none.
func last(reports []Report) Report {
	if len(reports) == 0 {
		return Report{}
	}
	return reports[len(reports)-1]
}

// running starts Run and returns what ends it and waits for its end.
func running(t *testing.T, c *Checker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run returned %v, want nil", err)
		}
	}
}

// advance lets the clock of a synctest bubble run for d, and all goroutines come to rest.
func advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestProbesKeepTheirSchedule(t *testing.T) {
	for _, tt := range []struct {
		name   string
		poller poller
		answer func(ctx context.Context, n int) error
		want   []float64 // when asked within 31 s
	}{
		{"at once, then once per period", poller{every: 10 * time.Second, within: time.Second},
			func(context.Context, int) error { return nil }, []float64{0, 10, 20, 30}},
		{"after the initial delay", poller{delay: 7 * time.Second, every: 10 * time.Second, within: time.Second},
			func(context.Context, int) error { return nil }, []float64{7, 17, 27}},
		{"a failure changes nothing", poller{every: 10 * time.Second, within: time.Second},
			func(context.Context, int) error { return errors.New("no") }, []float64{0, 10, 20, 30}},
		{"one that hangs is cut at its time-out and does not delay the next", poller{every: 10 * time.Second, within: 2 * time.Second},
			func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, []float64{0, 10, 20, 30}},
		{"one that takes longer than a period is not overtaken", poller{every: 10 * time.Second, within: 15 * time.Second},
			func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, []float64{0, 15, 30}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := &fakeCheck{t: t, answer: tt.answer}
				p := tt.poller
				p.check = fake
				start := time.Now()
				stop := running(t, checkerOf(t, Config{}, &p))
				advance(31 * time.Second)
				stop()
				if got := fake.at(start); !slices.Equal(got, tt.want) {
					t.Errorf("asked at %v s, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestAProbeThatCannotBeStoppedIsAFailureAndIsNotDoubled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		fake := &fakeCheck{t: t, answer: func(_ context.Context, n int) error {
			if n == 1 {
				<-release // like a process in an uninterruptible sleep
			}
			return nil
		}}
		var cfg Config
		heard := hearing(&cfg)
		c := checkerOf(t, cfg, &poller{check: fake, every: 10 * time.Second, within: time.Second})
		start := time.Now()
		stop := running(t, c)
		advance(11500 * time.Millisecond)
		report := last(heard())
		if want := "fake: not done after 1.3s, and cannot be stopped"; report.Healthy || report.Reason != want {
			t.Errorf("while it hangs: %+v, want unhealthy with %q", report, want)
		}
		advance(30 * time.Second)
		if got := fake.at(start); len(got) != 2 {
			t.Errorf("asked at %v s while the second was stuck, want twice", got)
		}
		if n := c.verdict.probes[0].failures; n != 4 {
			t.Errorf("%d failures in a row, want one per period: 4", n)
		}
		close(release)
		advance(10 * time.Second)
		if report := last(heard()); !report.Healthy {
			t.Errorf("after it came loose: %+v, want healthy", report)
		}
		stop()
	})
}

func TestRunEndsThoughAProbeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		fake := &fakeCheck{t: t, answer: func(context.Context, int) error { <-release; return nil }}
		stop := running(t, checkerOf(t, Config{}, &poller{check: fake, every: 10 * time.Second, within: time.Second}))
		synctest.Wait()
		start := time.Now()
		stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("Run took %s to end", took)
		}
		close(release)
	})
}

// Promise 6: health is the truth istiod sees. Each change is told, once, in order, with its cause.
func TestEachChangeIsReportedOnceWithItsCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		script := "huuuhh"
		fake := &fakeCheck{t: t, answer: func(_ context.Context, n int) error {
			if n < len(script) && script[n] == 'u' {
				return fmt.Errorf("fake: refusal %d", n)
			}
			return nil
		}}
		registry := prometheus.NewRegistry()
		cfg := Config{Metrics: registry}
		heard := hearing(&cfg)
		c := checkerOf(t, cfg, &poller{check: fake, every: time.Second, within: time.Second, thresholds: rule{success: 2, failure: 2}})
		stop := running(t, c)
		advance(1500 * time.Millisecond)
		if early := heard(); len(early) > 0 {
			t.Errorf("told %+v with one result of two", early)
		}
		advance(8 * time.Second)
		stop()
		var told []string
		for _, r := range heard() {
			told = append(told, fmt.Sprintf("%v %s", r.Healthy, r.Reason))
		}
		want := []string{"false fake: refusal 2", "true fake succeeded"}
		if !slices.Equal(told, want) {
			t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
		}
		metrics := map[string]float64{
			`wingman_health_changes_total{verdict="healthy"}`:          1,
			`wingman_health_changes_total{verdict="unhealthy"}`:        1,
			`wingman_health_healthy{}`:                                 1,
			`wingman_health_probes_total{result="failure",type="tcp"}`: 3,
			`wingman_health_probes_total{result="success",type="tcp"}`: 7,
		}
		if got := gather(t, registry); !maps.Equal(got, metrics) {
			t.Errorf("metrics %v, want %v", got, metrics)
		}
	})
}

// gather returns the value of each counter and gauge by its name and labels.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			values[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

func TestWithoutAProbeTheWorkloadIsHealthyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cfg Config
		heard := hearing(&cfg)
		start := time.Now()
		stop := running(t, checkerOf(t, cfg))
		synctest.Wait()
		if want := (Report{Healthy: true, Reason: "no probe configured", At: start}); last(heard()) != want {
			t.Errorf("verdicts %+v, want %+v", heard(), want)
		}
		stop()
	})
}

func TestDampingIsReleasedByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeCheck{t: t, answer: func(_ context.Context, n int) error {
			if n == 1 || n == 3 {
				return errors.New("fake: refused")
			}
			return nil
		}}
		cfg := Config{Damping: Damping{Changes: 2, Window: time.Hour, Hold: 25 * time.Second}}
		heard := hearing(&cfg)
		c := checkerOf(t, cfg, &poller{check: fake, every: 10 * time.Second, within: time.Second})
		start := time.Now()
		stop := running(t, c)
		advance(70 * time.Second)
		stop()
		if want := (Report{Healthy: true, Reason: "probes passed for 25s", At: start.Add(65 * time.Second)}); last(heard()) != want {
			t.Errorf("reports %+v, want the last to be %+v", heard(), want)
		}
	})
}

func TestASharedRegistryIsAnError(t *testing.T) {
	registry := prometheus.NewRegistry()
	if _, err := New(Config{Metrics: registry}); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Metrics: registry}); err == nil {
		t.Error("a second Checker on the same registry went unnoticed")
	}
}
