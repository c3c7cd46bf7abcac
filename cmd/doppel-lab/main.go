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
	"doppel/lab/bench"
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
	root.AddCommand(newDemo(), newBench())
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

func newBench() *cobra.Command {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Run doppel beside its peers, and say how they compare",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	c.AddCommand(newBenchImage())
	return c
}

func newBenchImage() *cobra.Command {
	var o bench.Options
	c := &cobra.Command{
		Use:   "image",
		Short: "Capture, restore and verify a head of 60,000 files, beside its peers",
		Long: `Image makes a Debian head (once; it is kept), and runs doppel and its peers (tar,
rsync, restic, borg, casync) one after the other, as often as --n says. It prints a
table and appends to --file one JSON object a row. It needs root, 30 GB of disk, and
most of an hour. Only the ratios mean anything on a machine that does other work, too.`,
		Example: "  doppel-lab bench image --n 5 --only capture",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.N < 1 {
				return fmt.Errorf("--n %d: want at least one round", o.N)
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			o.Bin, o.Out = filepath.Dir(self), cmd.OutOrStdout()
			_, err = bench.Image(cmd.Context(), o)
			return err
		},
	}
	f := c.Flags()
	f.IntVar(&o.N, "n", 3, "how many rounds to run")
	f.StringSliceVar(&o.Only, "only", nil, "only rows whose names begin so")
	f.BoolVar(&o.Small, "small", false, "a small tree: to see that it works, not how fast")
	f.StringVar(&o.Work, "work", "/var/tmp/doppel-bench", "`directory` for trees and stores; trees are kept there")
	f.StringVar(&o.File, "file", "out/bench.jsonl", "`file` to append the rows to")
	return c
}
