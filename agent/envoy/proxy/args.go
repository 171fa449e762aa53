package proxy

import (
	"strconv"
	"strings"
	"time"

	"wingman/bootstrap"
)

// logFormat makes lines of Envoy's log that parseLog reads: level, component, text.
const logFormat = "%l\t%n\t%v"

// arguments returns Envoy's flags, but for the bootstrap file (envoy.args in Istio's pkg/envoy/proxy.go).
//
// Hot restart is off: it shares ports and memory between two Envoys, which is what the lock is there to prevent. Draining is
// immediate: peers are told with the first answer, not at random over the drain time.
func arguments(c bootstrap.Envoy, ipv4 bool) []string {
	family := "v6"
	if ipv4 {
		family = "v4"
	}
	args := []string{
		"--disable-hot-restart",
		"--drain-time-s", strconv.Itoa(int(c.DrainDuration / time.Second)),
		"--drain-strategy", "immediate",
		"--local-address-ip-version", family,
		"--file-flush-interval-msec", "1000", // access logs appear after a second, not after ten
		"--allow-unknown-static-fields",
		"--skip-deprecated-logs",
		"--log-format", logFormat,
	}
	level, components := splitLevels(c.LogLevel)
	if level != "" {
		args = append(args, "--log-level", level)
	}
	if components == "" {
		components = c.ComponentLogLevel
	}
	if components != "" {
		args = append(args, "--component-log-level", components)
	}
	if c.Concurrency > 0 {
		return append(args, "--concurrency", strconv.Itoa(c.Concurrency))
	}
	return append(args, "--cpuset-threads") // one for each CPU that this process may use
}

// splitLevels splits "info,upstream:debug,config:trace" into the level and those of components.
func splitLevels(s string) (level, components string) {
	var parts []string
	for _, p := range strings.Split(s, ",") {
		if p = strings.TrimSpace(p); strings.Contains(p, ":") {
			parts = append(parts, p)
		} else if p != "" {
			level = p
		}
	}
	return level, strings.Join(parts, ",")
}
