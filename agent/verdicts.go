package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"wingman/health"
)

const (
	// verdictsFile is below the state folder: why a machine was unhealthy is asked for mostly after it was restarted.
	verdictsFile = "health.json"
	verdictsKept = 50
	// verdictsPause is the least time between two saves: a workload that flaps must not wear out a disk.
	verdictsPause = 5 * time.Second
)

// verdicts are the last changes of what istiod was told of this machine's health, over reloads, restarts and reboots. Make them with newVerdicts.
type verdicts struct {
	path string
	log  *slog.Logger
	news chan struct{} // buffered 1: there is something to save

	mu   sync.Mutex      // guards everything below
	list []health.Report // oldest first, at most verdictsKept
}

// newVerdicts reads what earlier runs saved. What cannot be used is left behind.
func newVerdicts(stateDir string, log *slog.Logger) *verdicts {
	v := &verdicts{path: filepath.Join(stateDir, verdictsFile), log: log, news: make(chan struct{}, 1)}
	b, err := os.ReadFile(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return v
	}
	var saved []health.Report
	if err == nil {
		err = json.Unmarshal(b, &saved)
	}
	if err != nil {
		log.Warn("earlier verdicts are lost", "cause", err)
		return v
	}
	v.list = saved[max(0, len(saved)-verdictsKept):]
	return v
}

// add takes a verdict in; one that changes nothing, or only the reason for health, is none.
func (v *verdicts) add(r health.Report) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if n := len(v.list); n > 0 {
		last := v.list[n-1]
		if last.Healthy == r.Healthy && (r.Healthy || last.Reason == r.Reason) {
			return
		}
	}
	v.list = append(slices.Clone(v.list[max(0, len(v.list)+1-verdictsKept):]), r)
	select {
	case v.news <- struct{}{}:
	default:
	}
}

// all returns them, oldest first.
func (v *verdicts) all() []health.Report {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]health.Report{}, v.list...)
}

// run saves what comes until ctx ends, and the rest then.
func (v *verdicts) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			select {
			case <-v.news:
				return v.save()
			default:
				return nil
			}
		case <-v.news:
		}
		if err := v.save(); err != nil {
			v.log.Warn("verdicts are not saved", "cause", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(verdictsPause):
		}
	}
}

func (v *verdicts) save() error {
	b, err := json.Marshal(v.all())
	if err == nil {
		err = writeFile(v.path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("save verdicts: %w", err)
	}
	return nil
}
