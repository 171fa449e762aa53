// Command wingman makes a virtual machine a member of an Istio mesh: identity, DNS, health, registration and capture.
//
// This package parses flags and prints; what the commands do is in package agent. Exit codes: 0 fine, 1 failed, 2 wrong use,
// 3 degraded (status), 4 waiting for the files to join with (status).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes, a contract of the command line.
const (
	exitFine     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDegraded = 3
	exitWaiting  = 4
)

// errDegraded ends a command with exitDegraded, errWaiting with exitWaiting; what is degraded, or waited for, was printed.
var (
	errDegraded = errors.New("degraded")
	errWaiting  = errors.New("waiting")
)

// extraCommands are those that only some builds have.
var extraCommands []func(*options) *cobra.Command

// usageError is a wrong use of the command line.
type usageError struct{ error }

// options are the flags that every command has.
type options struct {
	root   string
	output string // of commands that show state: "text" or "json"
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks; once it came, the next one has its ordinary effect and kills.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errDegraded):
		return exitDegraded
	case errors.Is(err, errWaiting):
		return exitWaiting
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "wingman: %v (see wingman --help)\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "wingman: %v\n", err)
	return exitFailed
}

func newRoot() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:           "wingman",
		Short:         "The node agent that makes a virtual machine a member of an Istio mesh",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.PersistentFlags().StringVar(&o.root, "root", "/", "folder that stands for / in every file and socket path")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newRun(o), newProxy(o), newJoin(o), newLeave(o), newAdopt(o), newStatus(o), newConfig(o), newDNS(o), newRules(o), newCert(o), newHealth(o), newDrain(o), newUndrain(o), newEnvoy(o), newImage(o), newVersion(o), newPrepare(o),
	)
	for _, extra := range extraCommands {
		root.AddCommand(extra(o))
	}
	asUsage(root)
	return root
}

// asUsage makes wrong arguments of every command below c a wrong use of the command line.
func asUsage(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		asUsage(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("%s needs a subcommand", cmd.CommandPath())}
		},
	}
	c.AddCommand(subs...)
	return c
}

// outputFlag adds -o to a command that shows state.
func outputFlag(c *cobra.Command, o *options) *cobra.Command {
	c.Flags().StringVarP(&o.output, "output", "o", "text", "text or json")
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if o.output != "text" && o.output != "json" {
			return usageError{fmt.Errorf("output %q: expected text or json", o.output)}
		}
		return run(cmd, args)
	}
	return c
}
