package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/web"
)

func newStatus(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "status",
		Short:             "The cluster at a glance",
		Example:           "  doppel status",
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := g.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), g, s)
		},
	}
}

func printStatus(w io.Writer, g *globals, s web.Status) error {
	var counts []string
	for _, st := range []cluster.State{cluster.Installed, cluster.Installing, cluster.Armed, cluster.Failed, cluster.Assigned, cluster.Discovered} {
		if n := s.Counts[st]; n > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", n, st))
		}
	}
	if len(counts) == 0 {
		counts = []string{"none yet: doppel node add makes them"}
	}
	fmt.Fprintf(w, "doppel %s, serving since %s\n", s.Version, s.Started.Local().Format(time.DateTime))
	fmt.Fprintf(w, "nodes: %s\n", strings.Join(counts, ", "))
	if s.Collecting {
		fmt.Fprintf(w, "collecting machines until %s\n", s.Collection.Until.Local().Format(time.TimeOnly))
	}
	if len(s.Nodes) > 0 {
		fmt.Fprintln(w)
		if err := printNodes(w, g, s.Nodes); err != nil {
			return err
		}
	}
	if len(s.Unassigned) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nmachines seen that are no node's (doppel assign MAC NODE):")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, m := range s.Unassigned {
		fmt.Fprintf(t, "%s\t%s\t%s\tlast seen %s\n", m.MAC, m.Arch, printable(m.UUID), m.Last.Local().Format(time.DateTime))
	}
	return t.Flush()
}

func newEvents(g *globals) *cobra.Command {
	var f web.EventFilter
	c := &cobra.Command{
		Use:   "events",
		Short: "What happened, one line each",
		Example: `  doppel events -f --node node001
  doppel events --kind failed --json`,
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			return printEvents(cmd.Context(), g, f, cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVarP(&f.Follow, "follow", "f", false, "go on with those to come")
	c.Flags().StringVar(&f.Node, "node", "", "only of this `node`")
	c.Flags().StringVar(&f.Kind, "kind", "", "only of this `kind`: sighting, assign, arm, stage, installed, failed, up, …")
	c.Flags().Uint64Var(&f.Since, "since", 0, "only those after this `number` (seq in --json)")
	_ = c.RegisterFlagCompletionFunc("node", g.completeNode)
	return c
}

func printEvents(ctx context.Context, g *globals, f web.EventFilter, out io.Writer) error {
	n := 0
	err := g.client().Events(ctx, f, func(e cluster.Event) error {
		n++
		if g.json {
			return printEvent(out, "event", e)
		}
		who := e.Node
		if who == "" && e.MAC != nil {
			who = e.MAC.String()
		}
		_, err := fmt.Fprintf(out, "%s  %-10s  %-17s  %s\n", e.Time.Local().Format(time.DateTime), e.Kind, who, printable(e.Text))
		return err
	})
	var daemon *web.Error
	if g.json && !errors.As(err, &daemon) {
		err = errors.Join(err, printEvent(out, "summary", map[string]int{"events": n}))
	}
	return err
}
