package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"wingman/bootstrap"
)

// Where the settings in force are from.
const (
	sourceFiles    = "files"
	sourceLastGood = "last good"
)

// lastGoodFile is below the state folder: the settings' files as they were when they last worked, one JSON object from path to content.
const lastGoodFile = "last-good.json"

// loadConfig reads the settings of a starting daemon.
//
// Files that cannot be used end the start of a machine that never joined: the error holds every problem. A machine that did join is
// better off with the settings it had: rules may be in its kernel that need somebody to answer DNS. problems then say what is
// wrong with the files as they are.
func loadConfig(root string) (cfg *bootstrap.Config, source string, problems bootstrap.Problems, err error) {
	cfg, problems = bootstrap.Load(root)
	stateDir := bootstrap.DefaultPaths(root).StateDir
	if cfg != nil && problems.Err() == nil {
		return cfg, sourceFiles, problems, nil
	}
	joined, joinErr := readJoined(stateDir)
	if joined == nil {
		return nil, "", problems, errors.Join(problems.Err(), joinErr)
	}
	if cfg != nil {
		// Only the root file is unusable: the store has the roots of earlier answers.
		return cfg, sourceFiles, problems, nil
	}
	snapshot, err := readLastGood(stateDir)
	if err != nil {
		return nil, "", problems, errors.Join(problems.Err(), err)
	}
	cfg, old := bootstrap.LoadSnapshot(root, snapshot)
	if cfg == nil {
		return nil, "", problems, errors.Join(problems.Err(), fmt.Errorf("the last good settings cannot be used either: %w", old.Err()))
	}
	return cfg, sourceLastGood, problems, nil
}

// saveLastGood keeps the files of settings that work. Nothing is written when nothing changed.
func saveLastGood(stateDir string, s bootstrap.Snapshot) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the settings' files: %w", err)
	}
	path := filepath.Join(stateDir, lastGoodFile)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, b) {
		return nil
	}
	return writeFile(path, b, 0o600)
}

func readLastGood(stateDir string) (bootstrap.Snapshot, error) {
	b, err := os.ReadFile(filepath.Join(stateDir, lastGoodFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there are no last good settings to fall back to")
	}
	if err != nil {
		return nil, fmt.Errorf("read the last good settings: %w", err)
	}
	var s bootstrap.Snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("the last good settings are damaged: %w", err)
	}
	return s, nil
}

// needsRestart names settings that a running daemon does not follow: it keeps what it opened at its start.
func needsRestart(old, now *bootstrap.Config) (keys []string) {
	if old.DNS.Listen != now.DNS.Listen || old.Capture.DualStack != now.Capture.DualStack {
		keys = append(keys, "dns.listen")
	}
	if old.DNS.ForwardTimeout != now.DNS.ForwardTimeout || old.DNS.CacheSize != now.DNS.CacheSize || old.DNS.MaxStale != now.DNS.MaxStale ||
		!maps.EqualFunc(old.DNS.Forward, now.DNS.Forward, slices.Equal) {
		keys = append(keys, "dns (forward, forwardTimeout, cacheSize, maxStale)")
	}
	if old.Status.Port != now.Status.Port {
		keys = append(keys, "status.port")
	}
	if old.Log.File != now.Log.File || old.Log.Format != now.Log.Format || !maps.Equal(old.Log.Scopes, now.Log.Scopes) {
		keys = append(keys, "log")
	}
	return keys
}
