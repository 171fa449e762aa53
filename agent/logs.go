package agent

import (
	"log/slog"
	"os"

	"wingman/bootstrap"
	"wingman/systemd"
)

// levelNone is above every level in use.
const levelNone = slog.LevelError + 100

// levelNames are the levels of the settings.
var levelNames = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
	"none":  levelNone,
}

// logs makes the loggers of the daemon's parts: agent, identity, xds, dns, health, capture, member. Each part is a scope in the sense
// of Istio's --log_output_level=dns:debug.
type logs struct {
	root  *slog.Logger
	level slog.LevelVar // of parts without a level of their own
}

// newLogs makes loggers that write to stderr, and to the file that the settings name. A file that cannot be opened is said, and is no reason
// not to run.
func newLogs(c bootstrap.Log, stderr *os.File, getenv func(string) string) (*logs, error) {
	l := &logs{}
	l.configure(c)
	scopes := map[string]slog.Level{}
	for scope, name := range c.Scopes {
		scopes[scope] = levelNames[name]
	}
	lc := systemd.LogConfig{
		Stream: stderr,
		Getenv: getenv,
		JSON:   c.Format == "json",
		Level:  &l.level,
		Scopes: scopes,
		File:   c.File,
	}
	h, fileErr := systemd.NewLogHandler(lc)
	if fileErr != nil {
		lc.File = ""
		var err error
		if h, err = systemd.NewLogHandler(lc); err != nil {
			return nil, err
		}
	}
	l.root = slog.New(h)
	if fileErr != nil {
		l.part("agent").Error("log file is not written to", "cause", fileErr)
	}
	return l, nil
}

// configure changes the level of loggers handed out before.
func (l *logs) configure(c bootstrap.Log) { l.level.Set(levelNames[c.Level]) }

// part returns the logger of one part of the daemon.
func (l *logs) part(name string) *slog.Logger { return l.root.With(systemd.ScopeKey, name) }
