package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"wingman/agent/enrol"
)

func newJoin(o *options) *cobra.Command {
	e := enrol.Options{}
	c := &cobra.Command{
		Use:   "join DIR|BUNDLE",
		Short: "Make this machine a member by istioctl's files in a folder, tar or tar.gz, and wait until it is one; exit 3 when it is, and something is degraded",
		Long: `Checks istioctl's files (cluster.env, mesh.yaml, hosts, istio-token, root-cert.pem) and the way to istiod, puts the files in place, starts the units
and waits until this machine is a member of the mesh. Nothing is changed unless everything is right before. A file that is replaced is kept beside its
new content (.before-join). Running it again is fine: after a new token, say, or to carry on.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if e.Timeout <= 0 {
				return usageError{fmt.Errorf("--timeout %s: expected more than zero", e.Timeout)}
			}
			e.Root, e.Say = o.root, say(cmd)
			r, err := enrol.Join(cmd.Context(), args[0], e)
			if err != nil || e.Offline {
				return err
			}
			if err := printStatus(cmd.OutOrStdout(), r); err != nil {
				return err
			}
			if !r.Ready || len(r.Degraded) > 0 {
				return errDegraded
			}
			return nil
		},
	}
	c.Flags().BoolVar(&e.Offline, "offline", false, "only check and place the files and enable the units; ask nobody on the network and do not wait")
	c.Flags().DurationVar(&e.Timeout, "timeout", time.Minute, "how long to wait for the join")
	return c
}

func newLeave(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "leave",
		Short: "Undo the join: out of the mesh, units stopped, rules and identity gone, istioctl's files as before",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return enrol.Leave(cmd.Context(), enrol.Options{Root: o.root, Say: say(cmd)})
		},
	}
}

// say prints one step a line.
func say(cmd *cobra.Command) func(string) {
	return func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) }
}
