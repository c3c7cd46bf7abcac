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
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, flag := range []string{"for", "auto", "count"} {
				if stop && cmd.Flags().Changed(flag) {
					return usagef(argsHint(cmd), "--stop closes the window; --%s means nothing with it", flag)
				}
			}
			if length <= 0 || count < 0 {
				return usagef("give a time as in 10m, and a number of machines", "--for and --count cannot be less than nothing")
			}
			if stop {
				return closeCollection(cmd.Context(), g, cmd.OutOrStdout())
			}
			return runCollect(cmd.Context(), g, length, auto, count, cmd.OutOrStdout())
		},
	}
	c.Flags().DurationVar(&length, "for", 10*time.Minute, "how `long` the window stays open")
	c.Flags().BoolVar(&auto, "auto", false, "assign machines to the nodes that have none, in order")
	c.Flags().BoolVar(&stop, "stop", false, "close the window")
	c.Flags().IntVar(&count, "count", 0, "return when that `many` machines were seen; 0: when the window closes")
	return c
}

func closeCollection(ctx context.Context, g *globals, out io.Writer) error {
	col, err := g.client().CloseCollection(ctx)
	if err != nil {
		return err
	}
	if g.json {
		return printJSON(out, col)
	}
	_, err = fmt.Fprintln(out, "the collection window is closed")
	return err
}

// errEnough ends watching.
var errEnough = errors.New("seen enough")

// runCollect opens the window and shows machines as they come.
func runCollect(ctx context.Context, g *globals, length time.Duration, auto bool, count int, out io.Writer) error {
	client := g.client()
	began := time.Now()
	col, err := client.OpenCollection(ctx, length, auto)
	if err != nil {
		return err
	}
	if g.json {
		err = printEvent(out, "collecting", col)
	} else {
		_, err = fmt.Fprintf(out, "collecting until %s; switch the machines on, booting from the network\n%-17s  %-12s  %-36s  %-9s  %s\n",
			col.Until.Local().Format(time.TimeOnly), "MAC", "FIRMWARE", "UUID", "INTERFACE", "NODE")
	}
	if err != nil {
		return err
	}
	seen := map[cluster.MAC]bool{}
	err = client.WatchSightings(ctx, func(s web.Seen) error {
		// Counted is whoever comes now (with --auto it is a node's at once),
		// and who waits from before to be assigned by hand.
		if s.Last.After(began) || s.Node == "" && !auto {
			seen[s.MAC] = true
		}
		if err := printSeen(out, g, s); err != nil {
			return err
		}
		if count > 0 && len(seen) >= count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if g.json {
		err = errors.Join(err, printEvent(out, "summary", map[string]int{"machines": len(seen)}))
	}
	return err
}

func printSeen(out io.Writer, g *globals, s web.Seen) error {
	if g.json {
		return printEvent(out, "sighting", s)
	}
	node := s.Node
	if node == "" {
		node = "-"
	}
	_, err := fmt.Fprintf(out, "%-17s  %-12s  %-36s  %-9s  %s\n", s.MAC, s.Arch, printable(s.UUID), s.Interface, node)
	return err
}

func newAssign(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "assign MAC NODE",
		Short: "Tie a machine to a node; in force with its next packet",
		Long: `Assign makes a machine the node: from its next packet on it gets the node's
address. A machine that another node has is refused; so is a node that has
another machine: doppel unassign comes first.`,
		Example:           "  doppel assign 52:54:00:12:34:56 node001",
		Args:              exactArgs("MAC", "NODE"),
		ValidArgsFunction: complete(false, g.completeMAC, g.completeNode),
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
		Use:               "unassign NODES",
		Short:             "Take the machines from nodes",
		Example:           "  doppel unassign node001",
		Args:              someArgs("NODES"),
		ValidArgsFunction: complete(true, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := g.client().Unassign(cmd.Context(), web.Named{Nodes: args})
			if err != nil {
				return err
			}
			return printDone(cmd.OutOrStdout(), g, "no machine any more:", nodes)
		},
	}
}
