package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"wingman/bootstrap"
	"wingman/internal/plainfile"
)

// elsewhereFile, below the state folder, lists what the agent puts outside of its own folders: "output FOLDER" and "log FILE", a line each. Settings may be
// broken, edited or gone when the package is purged, and keys must go then all the same (packaging/scripts/postremove.sh).
const elsewhereFile = "elsewhere"

// mostElsewhere bounds it, in bytes.
const mostElsewhere = 1 << 16

// NoteElsewhere adds what the settings name to the list, before anything is put there. What was in it stays: settings of before may have left something.
func NoteElsewhere(cfg *bootstrap.Config) error {
	path := filepath.Join(cfg.Paths.StateDir, elsewhereFile)
	b, _, _ := plainfile.Read(path, mostElsewhere) // none, or one that is damaged: begun anew
	list, changed := addElsewhere(string(b), cfg)
	if !changed {
		return nil
	}
	if err := writeFile(path, []byte(list), 0o600); err != nil {
		return fmt.Errorf("note what is put outside of the state folder: %w", err)
	}
	return nil
}

// noteElsewhere is NoteElsewhere for an agent that goes on without: a disk that is full keeps nobody from serving.
func (a *Agent) noteElsewhere(cfg *bootstrap.Config) {
	if err := NoteElsewhere(cfg); err != nil {
		a.log.Warn("a purge of the package may leave certificates or logs", "cause", err)
	}
}

func addElsewhere(list string, cfg *bootstrap.Config) (_ string, changed bool) {
	lines := strings.Split(strings.TrimSpace(list), "\n")
	for _, put := range []struct{ what, path string }{{"output", cfg.Paths.OutputCerts}, {"log", cfg.Log.File}} {
		path := put.path
		if cfg.Root != "/" { // as the machine has it
			path = strings.TrimPrefix(path, strings.TrimSuffix(cfg.Root, "/"))
		}
		line := put.what + " " + path
		if path == "" || path == "/etc/certs" || strings.ContainsAny(path, "\n\r") || slices.Contains(lines, line) {
			continue
		}
		lines, changed = append(lines, line), true
	}
	return strings.TrimSpace(strings.Join(lines, "\n")) + "\n", changed
}
