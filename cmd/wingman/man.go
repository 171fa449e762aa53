//go:build manpages

package main

import (
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// The packages' manual pages come from the commands themselves, by a build of its own: what writes them would add a tenth to
// the size of the program that is shipped.
func init() {
	extraCommands = append(extraCommands, func(o *options) *cobra.Command {
		return &cobra.Command{
			Use:   "man DIR DATE",
			Short: "Write a manual page of every command into a folder, dated DATE (2006-01-02)",
			Args:  cobra.ExactArgs(2),
			RunE: func(cmd *cobra.Command, args []string) error {
				date, err := time.Parse(time.DateOnly, args[1])
				if err != nil {
					return usageError{err}
				}
				root := cmd.Root()
				root.RemoveCommand(cmd)
				root.DisableAutoGenTag = true
				root.InitDefaultCompletionCmd()
				return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Date: &date, Source: "wingman " + release, Manual: "Wingman"}, args[0])
			},
		}
	})
}
