package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/web"
)

func newCollect(g *globals) *cobra.Command {
	var (
		length time.Duration
		auto   bool
		stop   bool
		count  int
	)
	c := &cobra.Command{
		Use:   "collect",
		Short: "Let unknown machines in, and show them as they come",
		Long: `Collect opens the window in which machines that no node is assigned to get an
address when they boot from the network, and wait until they are assigned and
deployed. It shows each machine with its MAC address, firmware and UUID, until
the window closes. Interrupting it closes nothing: --stop does.`,
		Example: `  doppel collect --for 30m
  doppel collect --auto        # assigns them to the nodes without a machine, in order
  doppel collect --stop`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := g.client()
			if stop {
				if _, err := client.CloseCollection(cmd.Context()); err != nil {
					return err
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "the collection window is closed")
				return err
			}
			col, err := client.OpenCollection(cmd.Context(), length, auto)
			if err != nil {
				return err
			}
			if !g.json {
				fmt.Fprintf(cmd.OutOrStdout(), "collecting until %s; switch the machines on, booting from the network\n", col.Until.Local().Format(time.TimeOnly))
			}
			return showMachines(cmd.Context(), g, client, cmd.OutOrStdout(), count)
		},
	}
	c.Flags().DurationVar(&length, "for", 10*time.Minute, "how long the window stays open")
	c.Flags().BoolVar(&auto, "auto", false, "assign machines to the nodes that have none, in order")
	c.Flags().BoolVar(&stop, "stop", false, "close the window")
	c.Flags().IntVar(&count, "count", 0, "return when that many machines without a node were seen; 0: when the window closes")
	return c
}

// errEnough ends watching.
var errEnough = errors.New("seen enough")

func showMachines(ctx context.Context, g *globals, client *web.Client, out io.Writer, count int) error {
	seen := map[cluster.MAC]bool{}
	if !g.json {
		fmt.Fprintf(out, "%-17s  %-12s  %-36s  %-9s  %s\n", "MAC", "FIRMWARE", "UUID", "INTERFACE", "NODE")
	}
	err := client.WatchSightings(ctx, func(s web.Seen) error {
		if g.json {
			if err := printEvent(out, "sighting", s); err != nil {
				return err
			}
		} else {
			node := s.Node
			if node == "" {
				node = "-"
			}
			fmt.Fprintf(out, "%-17s  %-12s  %-36s  %-9s  %s\n", s.MAC, s.Arch, s.UUID, s.Interface, node)
		}
		if s.Node == "" {
			seen[s.MAC] = true
		}
		if count > 0 && len(seen) >= count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err == nil && g.json {
		return printEvent(out, "summary", map[string]int{"machines": len(seen)})
	}
	return err
}

func newAssign(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "assign MAC NODE",
		Short:   "Tie a machine to a node; in force with its next packet",
		Example: "  doppel assign 52:54:00:12:34:56 node001",
		Args:    exactArgs("MAC", "NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			mac, err := cluster.ParseMAC(args[0])
			if err != nil {
				return &usageError{err.Error(), "doppel collect shows the MAC addresses of machines"}
			}
			n, err := g.client().Assign(cmd.Context(), mac, args[1])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), n)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is %s, %s\n", mac, n.Name, n.Addr)
			return err
		},
	}
}

func newUnassign(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "unassign NODES",
		Short:   "Take the machines from nodes",
		Example: "  doppel unassign node001",
		Args:    someArgs("NODES"),
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := g.client().Unassign(cmd.Context(), web.Named{Nodes: args})
			if err != nil {
				return err
			}
			return printDone(cmd.OutOrStdout(), g, "no machine any more:", nodes)
		},
	}
}
