package systemd

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// StopRequested reports whether systemd is stopping this process for good, by `systemctl stop` or a shutdown, rather than
// to start it again. Ask after SIGTERM.
//
// It asks over the system bus for the job of the process's own unit. Only a job of type stop is a stop: a restart, a plain
// signal and a stop that was followed by a start are not. When systemd cannot be asked the answer is false, with the
// reason as error: leaving the mesh by mistake costs more than staying for the few seconds that the mesh grants. Blocks for
// some milliseconds, at most until ctx ends.
func StopRequested(ctx context.Context) (stop bool, err error) {
	defer func() {
		if err != nil && ctx.Err() != nil { // which closed the connection
			err = fmt.Errorf("ask systemd whether to stop: %w", context.Cause(ctx))
		}
	}()
	bus, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return false, fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close()
	unit, err := bus.GetUnitNameByPID(ctx, 0) // 0 is whoever asks, also from another pid namespace
	if err != nil {
		return false, fmt.Errorf("ask systemd for the unit of this process: %w", err)
	}
	jobs, err := bus.ListJobsContext(ctx)
	if err != nil {
		return false, fmt.Errorf("ask systemd for its jobs: %w", err)
	}
	return stopJob(jobs, unit), nil
}

func stopJob(jobs []dbus.JobStatus, unit string) bool {
	for _, job := range jobs {
		if job.Unit == unit {
			return job.JobType == "stop"
		}
	}
	return false
}

// StopLimit returns how long systemd waits for this process's unit to stop before it kills it (TimeoutStopSec=), at a shutdown too; zero: for ever.
// Blocks as StopRequested does.
func StopLimit(ctx context.Context) (time.Duration, error) {
	bus, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close()
	unit, err := bus.GetUnitNameByPID(ctx, 0)
	if err != nil {
		return 0, fmt.Errorf("ask systemd for the unit of this process: %w", err)
	}
	p, err := bus.GetUnitTypePropertyContext(ctx, unit, "Service", "TimeoutStopUSec")
	if err != nil {
		return 0, fmt.Errorf("ask systemd how long %s may take to stop: %w", unit, err)
	}
	return stopLimit(p.Value.Value()), nil
}

// stopLimit reads a property of microseconds, whose largest value is systemd's infinity.
func stopLimit(v any) time.Duration {
	us, ok := v.(uint64)
	if !ok || us > uint64(math.MaxInt64/time.Microsecond) {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}
