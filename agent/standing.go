package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"wingman/bootstrap"
)

// This file is for the commands that make a machine a member and undo it (package enrol): what they ask of a daemon that may or may not run.

// Member reports whether the machine of that root has joined a mesh, now or in an earlier run.
func Member(root string) bool {
	j, err := readJoined(bootstrap.DefaultPaths(root).StateDir)
	return j != nil || err != nil
}

// TakeOver waits until no daemon of that root runs and keeps any from starting until the returned function is called. The error names the process that
// still runs when ctx ends.
func TakeOver(ctx context.Context, root string) (release func(), err error) {
	runDir := bootstrap.DefaultPaths(root).RunDir
	for {
		lock, err := takeLock(runDir)
		if err == nil {
			return func() { lock.Close() }, nil
		}
		if !errors.Is(err, errAnotherRuns) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the daemon to end: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ForeignRules reports whether the operator keeps the rules of that root (ISTIO_CUSTOM_IP_TABLES): then none are ours to take out. Settings that cannot
// be read do not say so.
func ForeignRules(root string) bool {
	cfg, _ := bootstrap.Load(root)
	return cfg != nil && cfg.Capture.CustomTables
}

// CleanRunDir removes what a daemon that ran without systemd left in its run folder, the folder too if it is empty then. Call it inside TakeOver.
func CleanRunDir(root string) error {
	return os.RemoveAll(bootstrap.DefaultPaths(root).RunDir)
}
