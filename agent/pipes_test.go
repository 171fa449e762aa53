package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wingman/agent/envoy/proxy"
	"wingman/bootstrap"
)

// The agent's user owns the folders of these files, and commands of root read them: `wingman join`, adopt, envoy replace (in the scripts of a package).
func TestAPipeInTheAgentsFoldersHoldsNobodyUp(t *testing.T) {
	root := t.TempDir()
	paths := bootstrap.DefaultPaths(root)
	runDir := proxy.RunDir(&bootstrap.Config{Paths: paths})
	pipe := func(file string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	noPlain := func(file string) string { return file + " is not a regular file" }
	trial, locks, state := filepath.Join(root, "trial"), t.TempDir(), filepath.Join(runDir, "state.json")
	for _, tt := range []struct {
		name, file, want string
		read             func() error
	}{
		{"the token", paths.Token, noPlain(paths.Token), func() error { return Check(root).Err() }},
		{"that it has joined", filepath.Join(paths.StateDir, joinedFile), noPlain(filepath.Join(paths.StateDir, joinedFile)), func() error { _, err := readJoined(paths.StateDir); return err }},
		{"a trial's report", filepath.Join(trial, trialReport), noPlain(filepath.Join(trial, trialReport)), func() error { _, err := ReadTrialReport(trial); return err }},
		{"the supervisor's state", state, noPlain(state), func() error { _, err := proxy.ReadState(runDir); return err }},
		{"the supervisor's lock", filepath.Join(locks, "lock"), proxy.ErrNoProxy.Error(), func() error { _, err := proxy.ReadState(locks); return err }},
	} {
		pipe(tt.file)
		done := make(chan error, 1)
		go func() { done <- tt.read() }()
		select {
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: who reads it waits for ever", tt.name)
		}
	}
}
