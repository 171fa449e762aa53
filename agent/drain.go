package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"wingman/systemd"
)

// drainedFile is below the state folder while an operator has taken this machine out of load balancing.
const drainedFile = "drained.json"

// drained is the content of drainedFile.
type drained struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // the operator's words; may be empty
}

// verdict is what istiod is told.
func (d *drained) verdict() string {
	if d == nil {
		return ""
	}
	if d.Reason == "" {
		return "drained by hand"
	}
	return "drained by hand: " + d.Reason
}

// readDrained returns nil when the machine is not drained. A file that cannot be read still drains it: bringing traffic to a machine that somebody
// wanted without would be worse.
func readDrained(stateDir string) (*drained, error) {
	b, err := os.ReadFile(filepath.Join(stateDir, drainedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	d := &drained{}
	if err == nil {
		err = json.Unmarshal(b, d)
	}
	if err != nil {
		return d, fmt.Errorf("read whether this machine is drained: %w", err)
	}
	return d, nil
}

// drain takes this machine out of load balancing, over restarts, until undrain: istiod is told that it is unhealthy, and the news gets
// drain.propagation to reach every peer. Nothing else changes: connections that stand go on, and names resolve.
func (a *Agent) drain(ctx context.Context, reason string) error {
	d := &drained{At: time.Now(), Reason: reason}
	b, err := json.Marshal(d)
	if err == nil {
		err = writeFile(filepath.Join(a.config().Paths.StateDir, drainedFile), append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember that this machine is drained: %w", err)
	}
	a.log.Info("drained", "reason", reason)
	if err := a.setDrained(ctx, d); err != nil {
		return fmt.Errorf("this machine is drained, and stays so over restarts until undrain, but %w", err)
	}
	select {
	case <-time.After(a.config().DrainPropagation):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// undrain is the way back. It returns once istiod was told what the workload says of itself.
func (a *Agent) undrain(ctx context.Context) error {
	err := os.Remove(filepath.Join(a.config().Paths.StateDir, drainedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget that this machine is drained: %w", err)
	}
	a.log.Info("drained no more")
	if err := a.setDrained(ctx, nil); err != nil {
		return fmt.Errorf("this machine is drained no more, but %w", err)
	}
	return nil
}

// errNotTold means that a verdict waits for a stream: it is sent on the next one.
var errNotTold = errors.New("istiod cannot be told now: it will be as soon as there is a stream to it")

func (a *Agent) setDrained(ctx context.Context, d *drained) error {
	a.mu.Lock()
	a.drained = d
	m := a.member
	a.mu.Unlock()
	defer a.poke()
	if m == nil {
		return errNotTold
	}
	m.mu.Lock()
	m.drained = d.verdict()
	m.mu.Unlock()
	m.tellHealth()
	if client := m.client(); client == nil || !sent(ctx, client) {
		return errNotTold
	}
	return nil
}

// spread waits until peers have heard that this machine is unhealthy, where it leaves with an Envoy that they send to: what comes later would meet
// closed ports. One that was drained before, and one that istiod does not know to serve, has nobody to tell.
func (a *Agent) spread(m *member, most time.Duration) {
	if m == nil || !m.wasHealthy() {
		return
	}
	<-time.After(most)
}

const (
	// stopUsually is how long a stop may take where nobody says: TimeoutStopSec= of our unit.
	stopUsually = 90 * time.Second
	// stopReserve is what a stop needs beside the news and the drain: istiod has to be told, rules have to come out, tasks to end.
	stopReserve = 10 * time.Second
)

// stopTimes shares a stop's time between the spread of the news and Envoy's drain. It is pure.
//
// limit is when systemd kills the unit; zero: never. Rules must be out before: a shorter limit takes from the drain first, whose connections know
// that they end, and then from the news.
func stopTimes(propagation, drain, limit time.Duration) (spread, shed time.Duration) {
	if limit <= 0 {
		return propagation, drain
	}
	left := max(0, limit-min(stopReserve, limit/2))
	spread = min(propagation, left)
	return spread, min(drain, left-spread)
}

// stopLimit asks systemd for the time that this process has.
func (a *Agent) stopLimit() time.Duration {
	if a.opts.Getenv("NOTIFY_SOCKET") == "" {
		return 0
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	limit, err := systemd.StopLimit(ctx)
	if err != nil {
		a.log.Warn("systemd does not say how long a stop may take", "cause", err, "taken", stopUsually)
		return stopUsually
	}
	return limit
}

func (a *Agent) drainedNow() *drained {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.drained
}
