package agent

import (
	"path/filepath"

	"wingman/agent/status"
	"wingman/bootstrap"
)

// Client asks the daemon of a root.
func Client(root string) status.Client {
	return status.Client(filepath.Join(bootstrap.DefaultPaths(root).RunDir, adminSocket))
}
