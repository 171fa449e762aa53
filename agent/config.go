package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// Where the settings in force are from.
const (
	sourceFiles    = "files"
	sourceLastGood = "last good"
	sourceNone     = "none" // the machine waits for them
)

// lastGoodFile is below the state folder: the settings' files as they were when they last worked, one JSON object from path to content.
const lastGoodFile = "last-good.json"

// loadConfig reads the settings of a starting daemon.
//
// Files that cannot be used end the start of a machine that never joined: the error holds every problem. A machine that did join is
// better off with the settings it had: rules may be in its kernel that need somebody to answer DNS. problems then say what is
// wrong with the files as they are.
func loadConfig(root string) (cfg *bootstrap.Config, source string, problems bootstrap.Problems, err error) {
	stateDir := bootstrap.DefaultPaths(root).StateDir
	joined, joinErr := readJoined(stateDir)
	cfg, problems = bootstrap.Load(root)
	problems = mustHaveMesh(root, problems, joined != nil)
	if cfg != nil && problems.Err() == nil {
		return cfg, sourceFiles, problems, nil
	}
	if cfg != nil && problems.Without(bootstrap.KeyRootCert).Err() == nil && keptRoot(cfg) {
		// The store was wiped, and with it what our link leads to; identity goes by the operator's own file.
		return cfg, sourceFiles, problems.Without(bootstrap.KeyRootCert), nil
	}
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

// keptRoot reports whether the operator's root file is kept beside its place.
func keptRoot(cfg *bootstrap.Config) bool {
	_, err := os.Stat(identity.KeptRoot(cfg.Paths.RootCert))
	return err == nil
}

// mustHaveMesh makes a missing mesh.yaml an error on a machine that never joined: Istio's defaults would let it join without its readiness probe, and the probe
// counts only if it is there when the WorkloadEntry is made.
func mustHaveMesh(root string, problems bootstrap.Problems, joined bool) bootstrap.Problems {
	if joined {
		return problems
	}
	problems = slices.Clone(problems)
	mesh := bootstrap.DefaultPaths(root).MeshConfig
	for i, p := range problems {
		if p.File == mesh && p.Line == 0 && (p.Found == "no file" || p.Found == "an empty file") {
			problems[i].Severity = bootstrap.Error
			problems[i].Hint = "copy istioctl's mesh.yaml here: without it this machine would join with Istio's defaults and without its readiness probe"
		}
	}
	return problems
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
	path := filepath.Join(stateDir, lastGoodFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("there are no last good settings to fall back to")
	}
	if err != nil {
		return nil, fmt.Errorf("read the last good settings: %w", err)
	}
	var s bootstrap.Snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, errors.Join(fmt.Errorf("the last good settings are damaged: %w", err), setAside(path))
	}
	return s, nil
}
