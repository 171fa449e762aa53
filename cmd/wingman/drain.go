package main

import (
	"context"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/status"
)

func newDrain(o *options) *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "drain",
		Short: "Take this machine out of load balancing, over restarts and reboots, until undrain; returns when peers have heard of it",
		Args:  cobra.NoArgs,
		RunE:  showAfter(o, func(ctx context.Context, c status.Client) (status.Report, error) { return c.Drain(ctx, reason) }),
	}
	c.Flags().StringVar(&reason, "reason", "", "shown in the WorkloadEntry's condition and in the status")
	return outputFlag(c, o)
}

func newUndrain(o *options) *cobra.Command {
	return outputFlag(&cobra.Command{
		Use:   "undrain",
		Short: "Bring this machine back into load balancing, as far as its readiness probe says so",
		Args:  cobra.NoArgs,
		RunE:  showAfter(o, func(ctx context.Context, c status.Client) (status.Report, error) { return c.Undrain(ctx) }),
	}, o)
}

// showAfter has the daemon do something and shows its status afterwards.
func showAfter(o *options, do func(context.Context, status.Client) (status.Report, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		r, err := do(cmd.Context(), agent.Client(o.root))
		switch {
		case err != nil:
			return err
		case o.output == "json":
			return writeJSON(cmd.OutOrStdout(), r)
		}
		return printStatus(cmd.OutOrStdout(), r)
	}
}
