package main

import "github.com/spf13/cobra"

func newRules(o *options) *cobra.Command { return group("rules", "Capture rules") }
