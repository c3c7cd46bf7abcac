package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan writes man pages from the same definitions as --help. It is for
// packagers, and not listed.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:               "man DIR",
		Short:             "Write man pages, one a command",
		Long:              "Man writes man pages into DIR. With SOURCE_DATE_EPOCH set, they are the same bytes every time.",
		Example:           "  doppel man /usr/local/share/man/man1",
		Hidden:            true,
		Args:              exactArgs("DIR"),
		ValidArgsFunction: completeFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("writing man pages: %w", err)
			}
			header := &doc.GenManHeader{Section: "1", Source: "doppel " + version, Manual: "doppel"}
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return fmt.Errorf("writing man pages: %w", err)
			}
			return nil
		},
	}
}
