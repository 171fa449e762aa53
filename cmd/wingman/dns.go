package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"wingman/agent"
)

func newDNS(o *options) *cobra.Command {
	return group("dns", "Ask or run the DNS proxy", newDNSQuery(o), newDNSTable(o), newDNSServe(o))
}

func newDNSQuery(o *options) *cobra.Command {
	var explain bool
	c := outputFlag(&cobra.Command{
		Use:   "query NAME [TYPE]",
		Short: "Ask the running daemon's DNS proxy; TYPE is A when not given, NAME may be an address for PTR",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			qtype := "A"
			if len(args) == 2 {
				qtype = args[1]
			}
			a, err := agent.Client(o.root).Query(cmd.Context(), args[0], qtype, explain)
			if err != nil {
				return err
			}
			if o.output == "json" {
				return writeJSON(cmd.OutOrStdout(), a)
			}
			return printAnswer(cmd.OutOrStdout(), a)
		},
	}, o)
	c.Flags().BoolVar(&explain, "explain", false, "say which table, rule, search suffix and upstream answered, how long it took, and what would have come without the agent")
	return c
}

func newDNSTable(o *options) *cobra.Command {
	var match string
	c := outputFlag(&cobra.Command{
		Use:   "table",
		Short: "Print the names the mesh knows, as the running daemon has them, and those left out with the reason",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := agent.Client(o.root).Table(cmd.Context(), match)
			if err != nil {
				return err
			}
			if o.output == "json" {
				return writeJSON(cmd.OutOrStdout(), names)
			}
			for _, n := range names {
				fields := append([]string{n.Host}, n.Addresses...)
				if n.LeftOut != "" {
					fields = append(fields, "(left out: "+n.LeftOut+")")
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(fields, " ")); err != nil {
					return err
				}
			}
			return nil
		},
	}, o)
	c.Flags().StringVar(&match, "match", "", "only names that match this glob")
	return c
}

func newDNSServe(o *options) *cobra.Command {
	var s agent.DNSServer
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run only the DNS proxy, from a NameTable file (protojson): for tests, benchmarks and debugging",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s.Root, s.Stderr, s.Getenv = o.root, os.Stderr, os.Getenv
			if err := s.Check(); err != nil {
				return usageError{err}
			}
			return s.Run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&s.Table, "table", "", "NameTable in protojson")
	f.StringVar(&s.Listen, "listen", "127.0.0.1:15053", "address to serve, UDP and TCP")
	f.StringSliceVar(&s.Upstreams, "upstream", nil, "servers for every other name, host:port; none: those of /etc/resolv.conf")
	f.StringVar(&s.Namespace, "namespace", "", "namespace whose services have names of one label")
	f.StringVar(&s.Domain, "domain", "svc.cluster.local", "domain of Kubernetes services")
	f.StringVar(&s.LogLevel, "log-level", "warn", "debug, info, warn, error or none")
	return c
}
