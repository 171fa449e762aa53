package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"wingman/bootstrap"
	"wingman/internal/plainfile"
)

const (
	stateFile = "state.json"
	mostState = 1 << 20 // bytes
)

// State is what a supervisor knows of itself and its Envoy.
type State struct {
	Phase      Phase     `json:"phase"`
	Since      time.Time `json:"since"`                 // when Phase began
	Supervisor int       `json:"supervisor"`            // its pid
	PID        int       `json:"pid,omitempty"`         // Envoy's; 0: none runs
	Program    string    `json:"program,omitempty"`     // Envoy's, as started last
	Version    string    `json:"version,omitempty"`     // as that says of itself (1.40.0); empty before it is live
	Starts     int       `json:"starts"`                // Envoys started since the supervisor's own start
	Cause      string    `json:"cause,omitempty"`       // why Envoy cannot be started, or ended last; empty once it is live
	Refused    string    `json:"refused,omitempty"`     // why the program that lies there now has not replaced the one that runs
	Outdated   string    `json:"outdated,omitempty"`    // Envoy does not run from the file that lies at Program now
	NextStart  time.Time `json:"next_start,omitzero"`   // in phase back-off
	EnvoyState string    `json:"envoy_state,omitempty"` // Envoy's own word (LIVE, PRE_INITIALIZING, …), empty without an answer
}

// RunDir is the supervisor's own folder: the agent's belongs to the agent's unit.
func RunDir(c *bootstrap.Config) string { return c.Paths.RunDir + "-proxy" }

// ErrNoProxy means that no supervisor runs, as far as its folder tells.
var ErrNoProxy = errors.New("no wingman proxy runs")

// ReadState returns the state of the supervisor of runDir. The error wraps ErrNoProxy when there is none, or none any more.
func ReadState(runDir string) (State, error) {
	b, _, err := plainfile.Read(filepath.Join(runDir, stateFile), mostState)
	if errors.Is(err, fs.ErrNotExist) {
		if alive, aliveErr := supervised(runDir); alive || aliveErr != nil { // it runs, and could not say anything yet
			return State{}, errors.Join(fmt.Errorf("state of wingman proxy: %w", err), aliveErr)
		}
		return State{}, fmt.Errorf("%w: %w", ErrNoProxy, err)
	}
	if err != nil {
		return State{}, fmt.Errorf("state of wingman proxy: %w", err)
	}
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("state of wingman proxy: %w", err)
	}
	alive, err := supervised(runDir)
	if err != nil {
		return State{}, fmt.Errorf("state of wingman proxy: %w", err)
	}
	if !alive {
		return s, fmt.Errorf("%w: its pid was %d", ErrNoProxy, s.Supervisor)
	}
	return s, nil
}

// writeState is for ReadState. The agent goes by it: what cannot be written counts as what was written last.
func writeState(runDir string, s State, log *slog.Logger) {
	b, err := json.MarshalIndent(s, "", "  ")
	if err == nil {
		tmp := filepath.Join(runDir, "."+stateFile)
		if err = os.WriteFile(tmp, append(b, '\n'), 0o600); err == nil {
			err = os.Rename(tmp, filepath.Join(runDir, stateFile))
		}
	}
	if err != nil {
		log.Warn("the state of the proxy is not written for the agent", "cause", err)
	}
}
