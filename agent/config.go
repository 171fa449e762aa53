package agent

import (
	"maps"

	"wingman/bootstrap"
)

// Where the settings in force are from.
const (
	sourceFiles    = "files"
	sourceLastGood = "last good"
)

// loadConfig reads the settings. The error holds every problem.
func loadConfig(root string) (*bootstrap.Config, string, bootstrap.Problems, error) {
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		return nil, "", problems, problems.Err()
	}
	return cfg, sourceFiles, problems, nil
}

// needsRestart names settings that a running daemon does not follow: it keeps what it opened at its start.
func needsRestart(old, now *bootstrap.Config) (keys []string) {
	if old.DNS.Listen != now.DNS.Listen || old.Capture.DualStack != now.Capture.DualStack {
		keys = append(keys, "dns.listen")
	}
	if old.DNS.ForwardTimeout != now.DNS.ForwardTimeout {
		keys = append(keys, "dns.forwardTimeout")
	}
	if old.Status.Port != now.Status.Port {
		keys = append(keys, "status.port")
	}
	if old.Log.File != now.Log.File || old.Log.Format != now.Log.Format || !maps.Equal(old.Log.Scopes, now.Log.Scopes) {
		keys = append(keys, "log")
	}
	return keys
}
