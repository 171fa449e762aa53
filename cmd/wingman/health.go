package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/health"
)

func newHealth(o *options) *cobra.Command {
	return group("health", "Look at the workload's health",
		outputFlag(&cobra.Command{
			Use:   "history",
			Short: "Print the last verdicts with their causes, the newest last",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				var verdicts []health.Report
				if err := agent.Client(o.root).HealthHistory(cmd.Context(), &verdicts); err != nil {
					return err
				}
				if o.output == "json" {
					return writeJSON(cmd.OutOrStdout(), verdicts)
				}
				for _, v := range verdicts {
					word := "unhealthy"
					if v.Healthy {
						word = "healthy"
					}
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s  %-9s  %s\n", v.At.Format(time.RFC3339), word, v.Reason); err != nil {
						return err
					}
				}
				return nil
			},
		}, o),
	)
}
