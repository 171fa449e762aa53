package bootstrap

import (
	"context"
	"errors"
	"net/netip"
)

// ErrNoInstanceAddr means that no address of this machine can stand in a WorkloadEntry.
var ErrNoInstanceAddr = errors.New("no instance address")

// InstanceAddrs returns the addresses of this machine as the mesh shall know it, the WorkloadEntry's first.
func InstanceAddrs(ctx context.Context, c *Config, targets []netip.Addr) ([]netip.Addr, error) {
	if len(c.InstanceIPs) > 0 {
		return c.InstanceIPs, nil
	}
	return nil, ErrNoInstanceAddr
}
