package agent

import (
	"context"
	"errors"
	"fmt"

	"wingman/agent/sealing"
	"wingman/bootstrap"
	"wingman/bootstrap/identity"
)

// MakeGroupFolders prepares, as root, the folders that the groups of identity.groups get their copies of the certificate in: the daemon, which may not
// give a file to a group, then fills them. Folders of all groups are made that can be, the error names the others.
func MakeGroupFolders(root string) error {
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		return problems.Err()
	}
	if len(cfg.Identity.Groups) == 0 || cfg.Paths.OutputCerts == "" {
		return nil
	}
	owner, _, err := proxyUser(cfg)
	if err != nil {
		return err
	}
	var failed []error
	for _, group := range cfg.Identity.Groups {
		gid, err := bootstrap.LookupGroup(cfg.Root, group)
		if err == nil {
			err = identity.MakeGroupFolder(cfg.Paths.OutputCerts, group, int(owner), int(gid))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("folder for group %s: %w", group, err))
		}
	}
	return errors.Join(failed...)
}

// OpenSealKey decrypts, as root, the key that seals the identity, for the group that the daemon runs as.
func OpenSealKey(ctx context.Context, root string) error {
	cfg, problems := bootstrap.Load(root)
	if cfg == nil {
		return problems.Err()
	}
	_, gid, err := proxyUser(cfg)
	if err != nil {
		return err
	}
	return sealing.Open(ctx, root, int(gid), sealing.System)
}
