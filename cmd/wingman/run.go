package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wingman/agent"
)

func newRun(o *options) *cobra.Command {
	var withProxy bool
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the daemon in the foreground",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			return agent.Run(cmd.Context(), agent.Options{
				Root:     o.root,
				Version:  version(),
				Getenv:   os.Getenv,
				Unsetenv: os.Unsetenv,
				Stderr:   os.Stderr,
				Reload:   reload,

				WithProxy: withProxy,
				Stdout:    os.Stdout,
			})
		},
	}
	c.Flags().BoolVar(&withProxy, "with-proxy", false, "keep Envoy running too, for machines without systemd (elsewhere wingman-proxy.service does)")
	return c
}

// newPrepare is what the unit runs as root before the daemon.
func newPrepare(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    "prepare",
		Short:  "Do as root what the daemon may not: ask sshd for its ports, make the folders of groups, tell which machine this is",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return agent.Prepare(cmd.Context(), o.root) },
	}
}
