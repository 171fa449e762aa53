package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wingman/agent"
	"wingman/iptables"
)

func newRules(o *options) *cobra.Command {
	return group("rules", "Plan, apply, compare and remove the capture rules",
		newRulesPlan(o),
		&cobra.Command{
			Use:   "apply",
			Short: "Put the planned rules into the kernel of the current network namespace",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := agent.OpenRules(cmd.Context(), o.root)
				if err != nil {
					return err
				}
				warnings, err := r.Apply(cmd.Context())
				for _, w := range warnings {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s\n", w)
				}
				return err
			},
		},
		newRulesTry(o),
		&cobra.Command{
			Use:   "confirm",
			Short: "Keep the rules that are on trial",
			Args:  cobra.NoArgs,
			RunE:  func(cmd *cobra.Command, _ []string) error { return agent.ConfirmRules(cmd.Context()) },
		},
		newRulesGuardian(), newRulesRestore(o),
		&cobra.Command{
			Use:   "remove",
			Short: "Take out every rule of ours, by whichever backend it was put in, and what istio-iptables left",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				if err := agent.MayRemoveRules(cmd.Context(), o.root); err != nil {
					return err
				}
				endedTrial, err := agent.RemoveRules(cmd.Context())
				if endedTrial {
					fmt.Fprintln(cmd.ErrOrStderr(), "note: rules were on trial: the trial is over, and what was there before it is not put back")
				}
				return err
			},
		},
		outputFlag(&cobra.Command{
			Use:   "status",
			Short: "Say what is in the kernel: absent, complete, or partial (exit 3)",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := agent.OpenRules(cmd.Context(), o.root)
				if err != nil {
					return err
				}
				s, err := r.Status(cmd.Context())
				if err != nil {
					return err
				}
				if o.output == "json" {
					err = writeJSON(cmd.OutOrStdout(), s)
				} else {
					err = printRulesStatus(cmd.OutOrStdout(), s)
				}
				if err == nil && s.State == iptables.Partial {
					return errDegraded
				}
				return err
			},
		}, o),
		outputFlag(&cobra.Command{
			Use:   "diff",
			Short: "Print missing, foreign and changed rules; exit 3 when there are any",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				r, err := agent.OpenRules(cmd.Context(), o.root)
				if err != nil {
					return err
				}
				diff, err := r.Diff(cmd.Context())
				if err != nil {
					return err
				}
				if o.output == "json" {
					err = writeJSON(cmd.OutOrStdout(), append([]iptables.Difference{}, diff...))
				} else {
					err = printDiff(cmd.OutOrStdout(), diff)
				}
				if err == nil && len(diff) > 0 {
					return errDegraded
				}
				return err
			},
		}, o),
	)
}

func newRulesTry(o *options) *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use:   "try",
		Short: "Apply the planned rules, and put the former state back unless `wingman rules confirm` comes in time",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d < time.Second || d > time.Hour {
				return usageError{fmt.Errorf("--for %s: expected 1s to 1h", d)}
			}
			r, err := agent.OpenRules(cmd.Context(), o.root)
			if err != nil {
				return err
			}
			if err := r.Try(cmd.Context(), d); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the rules are in until %s; keep them with: wingman rules confirm\n", time.Now().Add(d).Format(time.TimeOnly))
			return err
		},
	}
	c.Flags().DurationVar(&d, "for", time.Minute, "how long to wait for the confirmation")
	return c
}

// newRulesGuardian is the process behind newRulesTry.
func newRulesGuardian() *cobra.Command {
	var d time.Duration
	c := &cobra.Command{
		Use:    "guardian",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.GuardRules(context.WithoutCancel(cmd.Context()), d, cmd.OutOrStdout())
		},
	}
	c.Flags().DurationVar(&d, "for", time.Minute, "how long to wait for the confirmation")
	return c
}

// newRulesRestore is what wingman-rules.service runs at boot.
func newRulesRestore(o *options) *cobra.Command {
	return &cobra.Command{
		Use:    "restore",
		Short:  "Put in the traffic rules of the last run, before the network is there",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			restored, err := agent.RestoreRules(cmd.Context(), o.root)
			if err != nil {
				return err
			}
			text := "traffic of this machine is not captured: no rules"
			if restored {
				text = "the traffic rules of the last run are in"
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
}

func newRulesPlan(o *options) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "plan",
		Short: "Print the rules the settings ask for; touches nothing and needs no privileges",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch format {
			case "iptables", "nft", "json":
			default:
				return usageError{fmt.Errorf("output %q: expected iptables, nft or json", format)}
			}
			r, err := agent.OpenRules(cmd.Context(), o.root)
			if err != nil {
				return err
			}
			return printPlan(cmd.OutOrStdout(), cmd.ErrOrStderr(), r.Plan(), format)
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "iptables", "iptables, nft or json")
	return c
}

// printPlan prints a plan as input for the tool it is named after. What a person should know goes to notes.
func printPlan(w, notes io.Writer, plan iptables.Rules, format string) error {
	for _, n := range plan.Notes {
		fmt.Fprintf(notes, "note: %s\n", n)
	}
	switch format {
	case "json":
		return writeJSON(w, plan)
	case "nft":
		_, err := io.WriteString(w, plan.NFT())
		return err
	}
	var b strings.Builder
	for _, g := range plan.Guards {
		fmt.Fprintf(&b, "# never captured: %s: %s\n", g.What, g.Reason)
	}
	for _, f := range []struct {
		family  iptables.Family
		command string
	}{{iptables.IPv4, "iptables-restore"}, {iptables.IPv6, "ip6tables-restore"}} {
		if text := plan.Save(f.family); text != "" {
			fmt.Fprintf(&b, "# %s --noflush\n%s", f.command, text)
		}
	}
	for _, r := range plan.Routes {
		ip := "ip"
		if r.Family == iptables.IPv6 {
			ip = "ip -6"
		}
		fmt.Fprintf(&b, "# %s rule add fwmark %d lookup %d\n# %s route add local default dev lo table %d\n", ip, r.Mark, r.Table, ip, r.Table)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printRulesStatus(w io.Writer, s iptables.Status) error {
	backend := strings.Join(s.Backends, ", ")
	if backend == "" {
		backend = "-"
	}
	if _, err := fmt.Fprintf(w, "%s (backend %s, %d chains, %d rules)\n", s.State, backend, s.Chains, s.Rules); err != nil {
		return err
	}
	var err error
	switch {
	case s.TrialOrphaned:
		_, err = fmt.Fprintln(w, "on trial, but its guardian is gone: nobody takes these rules back; put the planned ones in with `wingman rules apply`, keep these with `wingman rules confirm`, or take all out with `wingman rules remove`")
	case !s.TrialUntil.IsZero():
		_, err = fmt.Fprintf(w, "on trial until %s; keep with: wingman rules confirm\n", s.TrialUntil.Format(time.TimeOnly))
	}
	return errors.Join(err, printDiff(w, s.Diff))
}

func printDiff(w io.Writer, diff []iptables.Difference) error {
	for _, d := range diff {
		if _, err := fmt.Fprintln(w, d); err != nil {
			return err
		}
	}
	return nil
}
