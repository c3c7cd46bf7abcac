package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"doppel/lab"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "doppel-lab: error: %v\n", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "doppel-lab",
		Short:         "Virtual clusters on one machine",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newDemo())
	return root
}

func newDemo() *cobra.Command {
	var firmware string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Clone a running head onto a blank machine, and check the double",
		Long: `Demo makes a Debian head on a private switch, captures it while it runs, boots
a blank machine from the network, installs the image on it, logs in to it, and
compares its disk with the image. It needs root, and ends everything it
started.`,
		Example: "  doppel-lab demo --firmware uefi",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f := lab.Firmware(firmware)
			if f != lab.BIOS && f != lab.UEFI {
				return fmt.Errorf("--firmware %s: there are bios and uefi", firmware)
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			return lab.Demo(cmd.Context(), lab.DemoOptions{Firmware: f, Bin: filepath.Dir(self), Out: cmd.OutOrStdout()})
		},
	}
	c.Flags().StringVar(&firmware, "firmware", "bios", "the machine's firmware: bios or uefi")
	return c
}
