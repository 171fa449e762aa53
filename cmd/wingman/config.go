package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/bootstrap"
)

func newConfig(o *options) *cobra.Command {
	return group("config", "Look at the settings",
		newConfigCheck(o),
		outputFlag(&cobra.Command{
			Use:   "show",
			Short: "Print every setting in force and the file and line that set it",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				cfg, problems := bootstrap.Load(o.root)
				if cfg == nil {
					return problems.Err()
				}
				if o.output == "json" {
					return writeJSON(cmd.OutOrStdout(), cfg.Settings())
				}
				for _, s := range cfg.Settings() {
					from := "built-in"
					if s.File != "" {
						from = s.File
						if s.Line > 0 {
							from = fmt.Sprintf("%s:%d", s.File, s.Line)
						}
					}
					if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%-36s %-44s %s\n", s.Key, s.Value, from); err != nil {
						return err
					}
				}
				return nil
			},
		}, o),
	)
}

func newConfigCheck(o *options) *cobra.Command {
	settings := ""
	c := outputFlag(&cobra.Command{
		Use:   "check",
		Short: "Say every problem of the files at once; exit 1 when one of them stops the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var problems bootstrap.Problems
			if settings == "" {
				problems = agent.Check(o.root)
			} else {
				content, err := os.ReadFile(settings)
				if err != nil {
					return err
				}
				problems = agent.CheckSettings(o.root, content)
			}
			var err error
			if o.output == "json" {
				err = writeJSON(cmd.OutOrStdout(), append(bootstrap.Problems{}, problems...))
			} else {
				err = printProblems(cmd.OutOrStdout(), problems)
			}
			if err == nil && problems.Err() != nil {
				return fmt.Errorf("%d of the problems must be mended before the daemon can use these files", len(problems)-len(problems.Warnings()))
			}
			return err
		},
	}, o)
	c.Flags().StringVar(&settings, "settings", "", "look at this file as if it were wingman.yaml, and only at what it brings; nothing is changed")
	return c
}

func printProblems(w io.Writer, problems bootstrap.Problems) error {
	if len(problems) == 0 {
		_, err := fmt.Fprintln(w, "no problems")
		return err
	}
	for _, p := range problems {
		if _, err := fmt.Fprintf(w, "%s: %s\n", p.Severity, p); err != nil {
			return err
		}
	}
	return nil
}
