package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"wingman/agent/envoy/proxy"
	"wingman/bootstrap"
)

func newEnvoy(o *options) *cobra.Command {
	return group("envoy", "Look at what Envoy is given",
		&cobra.Command{
			Use:   "bootstrap",
			Short: "Print the bootstrap file that Envoy would be started with",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, problems := bootstrap.Load(o.root)
				if cfg == nil {
					return problems.Err()
				}
				hostname, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("host name: %w", err)
				}
				f, err := proxy.Make(cmd.Context(), cfg, hostname)
				if err != nil {
					return err
				}
				for _, note := range f.Notes {
					fmt.Fprintln(cmd.ErrOrStderr(), "note:", note)
				}
				_, err = cmd.OutOrStdout().Write(f.JSON)
				return err
			},
		},
	)
}
