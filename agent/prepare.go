package agent

import (
	"context"
	"errors"

	"wingman/bootstrap/identity"
)

// Prepare does as root what the daemon below root needs and may not do itself: it asks sshd where it listens, makes the folders of identity.groups, and leaves the
// product's hash, by which a copy of a machine is noticed. The unit runs it before the daemon and at each reload. The start waits for it, so the parts
// are done at once; each is done whatever becomes of the others, and the error joins theirs.
func Prepare(ctx context.Context, root string) error {
	asked := make(chan error, 1)
	go func() { asked <- WriteSSHReport(ctx, root) }()
	err := errors.Join(identity.LeaveProduct(root), MakeGroupFolders(root))
	return errors.Join(err, <-asked)
}
