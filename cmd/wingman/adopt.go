package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/adopt"
	"wingman/systemd"
)

func newAdopt(o *options) *cobra.Command {
	a := adopt.Options{}
	var undo bool
	c := &cobra.Command{
		Use:   "adopt",
		Short: "Take the place of Istio's own agent (package istio-sidecar) as it runs, or give it back (--undo); exit 3 when something is degraded",
		Long: `Prints what it is about to do; proves beside istio.service that this agent can do its work here, with the files of Istio's package where they are;
puts its rules in the place of pilot-agent's; masks and stops istio.service, and starts wingman.service. When that does not serve in time, everything goes
back by itself. adopt --undo gives the machine back to istio.service. Both can be run again at any point, also after they were killed half way.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.Timeout <= 0 {
				return usageError{fmt.Errorf("--timeout %s: expected more than zero", a.Timeout)}
			}
			a.Root, a.Say = o.root, say(cmd)
			if undo {
				return adopt.Undo(cmd.Context(), a)
			}
			r, adopted, err := adopt.Adopt(cmd.Context(), a)
			if err != nil || !adopted {
				return err
			}
			if err := printStatus(cmd.OutOrStdout(), r); err != nil {
				return err
			}
			if len(r.Degraded) > 0 {
				return errDegraded
			}
			return nil
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "give the machine back to istio.service")
	c.Flags().BoolVar(&a.DryRun, "dry-run", false, "only print what would be done")
	c.Flags().DurationVar(&a.Timeout, "timeout", 20*time.Second, "how long this agent may take to serve before istio.service gets its place back")
	c.AddCommand(newAdoptTrial(o), newAdoptNote(o))
	return c
}

// newAdoptTrial is the process behind adopt's trial; systemd runs it as the agent's user.
func newAdoptTrial(o *options) *cobra.Command {
	t := agent.Trial{Dir: adopt.TrialDir}
	c := &cobra.Command{
		Use:    "trial",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			notify, err := systemd.NewNotifier(os.Getenv)
			if err != nil {
				return err
			}
			t.Root, t.Stderr, t.Getenv = o.root, os.Stderr, os.Getenv
			return t.Run(cmd.Context(), notify.Ready)
		},
	}
	c.Flags().Uint16Var(&t.Port, "port", 0, "where it answers DNS")
	c.Flags().BoolVar(&t.NamesOnly, "names-only", false, "only answer DNS, from the table on disk")
	return c
}

// newAdoptNote notes that this machine is a member, as the agent's user.
func newAdoptNote(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    "note",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r, err := agent.ReadTrialReport(adopt.TrialDir)
			if err != nil {
				return err
			}
			return agent.NoteTakenOver(o.root, r)
		},
	}
}
