package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/agent/image"
	"wingman/agent/status"
)

func newImage(o *options) *cobra.Command {
	return group("image", "Prove that a machine image holds no identity, and clean it",
		outputFlag(&cobra.Command{
			Use:   "check",
			Short: "Name every file that belongs to one machine (key, token, certificate, saved table, state); exit 1 when there is one",
			Long: `Looks at this machine, or with --root at the tree of a mounted image, for what no two machines may share: keys, tokens, certificates, saved tables,
state, logs. Folders that settings in the image name are looked at too, and files are judged by what they hold. It asks nobody on the network and
changes nothing. Run it as root: what cannot be read is not proven clean.`,
			Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := image.Check(o.root)
				if err != nil {
					err = fmt.Errorf("not everything could be looked at: %w", err)
				}
				return errors.Join(err, printImage(cmd.OutOrStdout(), o, r))
			},
		}, o),
		&cobra.Command{
			Use:   "clean",
			Short: "Remove what image check finds and the agent put there; what is left to do by hand is named, with exit 1",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if _, err := agent.Client(o.root).Status(cmd.Context()); !errors.Is(err, status.ErrNotRunning) {
					return errors.New("an agent runs here, and would write again what is cleaned: systemctl stop wingman")
				}
				removed, left, err := image.Clean(o.root)
				for _, file := range removed {
					fmt.Fprintln(cmd.OutOrStdout(), "removed "+file)
				}
				return errors.Join(err, printImage(cmd.OutOrStdout(), o, left))
			},
		})
}

// printImage prints a report; its error is that the image is not clean.
func printImage(w io.Writer, o *options, r image.Report) error {
	if r.Findings == nil {
		return nil // nothing was looked at
	}
	var dirty error
	if len(r.Findings) > 0 {
		dirty = fmt.Errorf("the image is not clean: %d of its files belong to one machine", len(r.Findings))
	}
	if o.output == "json" {
		return errors.Join(writeJSON(w, r), dirty)
	}
	var b strings.Builder
	ours := false
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s: %s; %s\n", f.Path, f.What, f.Clean)
		ours = ours || f.Clean == image.ByCommand
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	fmt.Fprintf(&b, "wingman.service is %s, wingman-rules.service %s\n", r.Units["wingman.service"], r.Units["wingman-rules.service"])
	switch {
	case ours && o.root != "/":
		fmt.Fprintf(&b, "one command cleans what is the agent's: %s --root %s\n", image.ByCommand, o.root)
	case ours:
		fmt.Fprintf(&b, "one command cleans what is the agent's: systemctl stop wingman; %s\n", image.ByCommand)
	case r.Clean:
		b.WriteString("clean: no key, token, certificate, saved table or state\n")
	}
	_, err := io.WriteString(w, b.String())
	return errors.Join(err, dirty)
}
