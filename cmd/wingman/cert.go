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
		newUnseal(o),
		// What the unit runs as root before the daemon.
		&cobra.Command{
			Use:    "open-key",
			Short:  "Decrypt the key that seals the identity, for the daemon",
			Hidden: true,
			Args:   cobra.NoArgs,
			RunE:   func(cmd *cobra.Command, _ []string) error { return agent.OpenSealKey(cmd.Context(), o.root) },
		},
	)
}

func newUnseal(o *options) *cobra.Command {
	discard := false
	c := &cobra.Command{
		Use:   "unseal",
		Short: "Remove that key again, once nothing is sealed with it (root)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if discard {
				if err := sealing.Discard(cmd.Context(), o.root, sealing.System, say(cmd)); err != nil {
					return err
				}
			}
			return sealing.Unseal(cmd.Context(), o.root, sealing.System, say(cmd))
		},
	}
	c.Flags().BoolVar(&discard, "discard", false, "give up what was sealed with a key that is lost, first")
	return c
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
