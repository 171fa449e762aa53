package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/envoy/proxy"
	"wingman/bootstrap"
)

func newEnvoy(o *options) *cobra.Command {
	return group("envoy", "Look at what Envoy is given, and replace it",
		newEnvoyReplace(o),
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

func newEnvoyReplace(o *options) *cobra.Command {
	var running string
	c := &cobra.Command{
		Use:   "replace",
		Short: "Put the Envoy that lies there now in the place of the one that runs, once it has shown that it can; requests in flight end first, new connections wait",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			said, err := agent.ReplaceEnvoy(cmd.Context(), o.root, running)
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), said)
			}
			return err
		},
	}
	c.Flags().StringVar(&running, "running", "", "only where this program runs, and another file lies there now; else nothing is done")
	return c
}
