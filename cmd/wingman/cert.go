package main

import (
	"errors"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/sealing"
	"wingman/agent/status"
)

func newCert(o *options) *cobra.Command {
	return group("cert", "Look at this machine's identity",
		outputFlag(&cobra.Command{
			Use:   "show",
			Short: "Show the certificate in use, when it is renewed, and the token",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := agent.Client(o.root).Status(cmd.Context())
				if err != nil {
					return err
				}
				return showIdentity(cmd, o, r)
			},
		}, o),
		outputFlag(&cobra.Command{
			Use:   "renew",
			Short: "Get a new certificate now",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := agent.Client(o.root).Renew(cmd.Context())
				if err != nil {
					return err
				}
				return showIdentity(cmd, o, r)
			},
		}, o),
		&cobra.Command{
			Use:   "seal",
			Short: "Make the key that seals the identity at rest, encrypted to this machine (root); identity.seal turns it on",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return sealing.Seal(cmd.Context(), o.root, sealing.System, say(cmd))
			},
		},
		&cobra.Command{
			Use:   "unseal",
			Short: "Remove that key again, once nothing is sealed with it (root)",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return sealing.Unseal(cmd.Context(), o.root, sealing.System, say(cmd))
			},
		},
		// What the unit runs as root before the daemon.
		&cobra.Command{
			Use:    "folders",
			Short:  "Make the folders that the groups of identity.groups get their copies in",
			Hidden: true,
			Args:   cobra.NoArgs,
			RunE:   func(*cobra.Command, []string) error { return agent.MakeGroupFolders(o.root) },
		},
	)
}

func showIdentity(cmd *cobra.Command, o *options, r status.Report) error {
	if o.output == "json" {
		return writeJSON(cmd.OutOrStdout(), r.Identity)
	}
	if r.Identity == nil {
		return errors.New("the daemon is still starting: ask again in a second")
	}
	return printIdentity(cmd.OutOrStdout(), *r.Identity, r.Time)
}
