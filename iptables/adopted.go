package iptables

import "context"

// Snapshot remembers all of ours and of Istio's own tool that is in the kernel, by any backend, and returns what puts it back. Rules of others that change
// in between are left alone.
func (a *Applier) Snapshot(ctx context.Context) (restore func(ctx context.Context) error, err error) {
	release, err := acquire(ctx, a.lockWait)
	if err != nil {
		return nil, err
	}
	defer release()
	put, err := a.snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		release, err := acquire(ctx, a.lockWait)
		if err != nil {
			return err
		}
		defer release()
		return put(ctx)
	}, nil
}
