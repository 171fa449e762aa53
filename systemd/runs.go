package systemd

import (
	"context"
	"fmt"

	"github.com/coreos/go-systemd/v22/dbus"
)

// Runs reports whether a unit is up, or on its way: between two starts of a unit that systemd restarts too. A unit that there is not does not run.
// Blocks for some milliseconds, at most until ctx ends.
func Runs(ctx context.Context, unit string) (bool, error) {
	bus, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return false, fmt.Errorf("connect to the system bus: %w", err)
	}
	defer bus.Close()
	p, err := bus.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return false, fmt.Errorf("ask systemd for %s: %w", unit, err)
	}
	state, _ := p.Value.Value().(string)
	return up(state), nil
}

// up judges an ActiveState.
func up(state string) bool { return state == "active" || state == "activating" || state == "reloading" }
