package enrol

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"wingman/agent"
	"wingman/agent/status"
)

// Units of the package, as systemd/units has them. The agent's is wanted at boot; it brings the others.
const (
	agentUnit   = "wingman.service"
	proxyUnit   = "wingman-proxy.service"
	rulesUnit   = "wingman-rules.service"
	cleanupUnit = "wingman-cleanup.service" // its stop takes out what the agent's has left
	// What starts the agent once the files to join with come; it goes with the agent's unit.
	pathUnit = "wingman.path"
)

// A manager is systemd, as far as join and leave need it.
type manager struct {
	systemctl func(ctx context.Context, args ...string) (stdout string, err error)
}

// managerOf returns systemd where it manages the machine of that root and has our units, else nil: then whoever runs the daemon does.
func managerOf(ctx context.Context, root string) *manager {
	if root != "/" {
		return nil
	}
	if info, err := os.Stat("/run/systemd/system"); err != nil || !info.IsDir() { // sd_booted(3)
		return nil
	}
	m := &manager{systemctl: Systemctl}
	if state, err := m.systemctl(ctx, "show", "--property=LoadState", "--value", agentUnit); err != nil || state != "loaded" {
		return nil
	}
	return m
}

// Systemctl runs it and returns what it said.
func Systemctl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// start makes the units start at boot and has the agent read its files: by a start, or by a reload where it runs. did says which.
func (m *manager) start(ctx context.Context) (did string, err error) {
	if _, err := m.systemctl(ctx, "enable", "--quiet", agentUnit); err != nil {
		return "", err
	}
	if state, _ := m.systemctl(ctx, "show", "--property=ActiveState", "--value", agentUnit); state == "active" {
		_, err := m.systemctl(ctx, "reload", agentUnit)
		return "reloaded", err
	}
	_, err = m.systemctl(ctx, "start", agentUnit)
	return "started", err
}

// stop stops the units for good. The agent's stop is the polite one: unhealthy, drain, rules out, Envoy, stream closed.
func (m *manager) stop(ctx context.Context) error {
	if _, err := m.systemctl(ctx, "disable", "--quiet", agentUnit, rulesUnit); err != nil {
		return err
	}
	_, err := m.systemctl(ctx, "stop", agentUnit, pathUnit, proxyUnit, cleanupUnit, rulesUnit)
	return err
}

// Waiting is the status of a machine whose units wait for the files to join with, while no daemon runs yet. false: nothing waits there.
func Waiting(ctx context.Context, root, version string) (status.Report, bool) {
	systemd := managerOf(ctx, root)
	if systemd == nil {
		return status.Report{}, false
	}
	if state, err := systemd.systemctl(ctx, "show", "--property=ActiveState", "--value", pathUnit); err != nil || state != "active" {
		return status.Report{}, false
	}
	return agent.Waiting(root, version)
}

// lastWords is the last error that the journal has of the agent's unit since then; it may be empty.
func (m *manager) lastWords(ctx context.Context, since time.Time) string {
	cmd := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=1", "--priority=err", fmt.Sprintf("--since=@%d", since.Unix()), "--unit="+agentUnit)
	out, _ := cmd.Output() // without a journal there are none
	return strings.TrimSpace(string(out))
}
