package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"wingman/systemd"
)

// IstioUnit is the unit of Istio's own package, which runs pilot-agent.
const IstioUnit = "istio.service"

// ErrIstioRuns means that Istio's own agent runs on this machine: ports, rules and entry are its.
var ErrIstioRuns = errors.New(IstioUnit + " runs pilot-agent on this machine, and two agents would fight for its ports and rules: run wingman adopt to take its place")

// Beside returns ErrIstioRuns where systemd runs Istio's own agent on the machine of that root. What systemd cannot be asked counts as no.
func Beside(ctx context.Context, root string) error {
	if root != "/" && root != "" {
		return nil
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if runs, err := systemd.Runs(ctx, IstioUnit); err == nil && runs {
		return ErrIstioRuns
	}
	return nil
}
