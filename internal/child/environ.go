package child

import (
	"slices"
	"strings"
)

// daemonVariables are for the process that systemd started, not for its children: one that found them would talk to systemd in its name.
var daemonVariables = []string{
	"NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC",
	"MAINPID", "MANAGERPID", "INVOCATION_ID", "SYSTEMD_EXEC_PID", "JOURNAL_STREAM", "FDSTORE", "CREDENTIALS_DIRECTORY",
	"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE",
}

// Environ is a daemon's own environment without what systemd says to it alone.
func Environ(own []string) []string {
	return slices.DeleteFunc(slices.Clone(own), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(daemonVariables, name)
	})
}
