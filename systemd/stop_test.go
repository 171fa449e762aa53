package systemd

import (
	"context"
	"errors"
	"math"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

func TestOnlyAStopJobOfOurOwnIsAStop(t *testing.T) {
	const unit = "wingman.service"
	job := func(unit, kind string) dbus.JobStatus {
		return dbus.JobStatus{Unit: unit, JobType: kind, Status: "running"}
	}
	for _, tt := range []struct {
		name string
		jobs []dbus.JobStatus
		want bool
	}{
		{"no job: a plain signal", nil, false},
		{"stop", []dbus.JobStatus{job(unit, "stop")}, true},
		{"restart", []dbus.JobStatus{job(unit, "restart")}, false},
		{"a stop that a start came after", []dbus.JobStatus{job(unit, "start")}, false},
		{"reload", []dbus.JobStatus{job(unit, "reload")}, false},
		{"another unit's stop", []dbus.JobStatus{job("wingman-proxy.service", "stop")}, false},
		{"ours among the jobs of a shutdown", []dbus.JobStatus{job("poweroff.target", "start"), job("sshd.service", "stop"), job(unit, "stop")}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := stopJob(tt.jobs, unit); got != tt.want {
				t.Errorf("stop %v, want %v", got, tt.want)
			}
		})
	}
}

func TestWithoutAnAnswerItIsARestart(t *testing.T) {
	dir := t.TempDir()
	silent, err := net.Listen("unix", filepath.Join(dir, "silent")) // takes connections and never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, tt := range []struct{ name, address string }{
		{"no bus", filepath.Join(dir, "none")},
		{"a bus that hangs", filepath.Join(dir, "silent")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+tt.address)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			start := time.Now()
			stop, err := StopRequested(ctx)
			if stop || err == nil {
				t.Errorf("stop %v, error %v, want no stop and the reason", stop, err)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("took %s, want it to end with its context", took)
			}
			if tt.name == "a bus that hangs" && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v, want it to say that time was up", err)
			}
		})
	}
}

func TestStopLimit(t *testing.T) {
	for v, want := range map[any]time.Duration{
		uint64(90_000_000):     90 * time.Second,
		uint64(math.MaxUint64): 0, // infinity
		uint64(math.MaxInt64):  0, // more than a Duration holds
		"90s":                  0,
		uint64(0):              0, // TimeoutStopSec=0 is infinity too
		uint64(1_500_000):      1500 * time.Millisecond,
	} {
		if got := stopLimit(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if limit, err := StopLimit(t.Context()); err == nil {
		t.Errorf("without a bus: %s, want an error", limit)
	}
}
