package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"wingman/agent/envoy/proxy"
)

func newProxy(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "proxy",
		Short: "Keep Envoy running, in the foreground: the supervisor that wingman-proxy.service runs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			reopen := make(chan os.Signal, 1)
			signal.Notify(reopen, syscall.SIGHUP)
			return proxy.Run(cmd.Context(), proxy.Options{
				Root:   o.root,
				Getenv: os.Getenv,
				Stdout: os.Stdout,
				Stderr: os.Stderr,
				Reopen: reopen,
			})
		},
	}
}
