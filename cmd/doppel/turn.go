package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	resync "doppel/sync"
	"doppel/web"
)

func newSyncTurn(g *globals) *cobra.Command {
	var req web.TurnRequest
	var yes bool
	c := &cobra.Command{
		Use:   "turn [IMAGE] --to HEAD",
		Short: "Make the other head of a pair the active one, which is captured",
		Long: `Turn changes the direction of a pair of heads (between in its [[sync]]): from
then on HEAD is captured, and the other one follows. Each turn has a generation,
which heads keep on their disks: they take no orders of an earlier one, so a
doppel that has not heard of the turn changes nothing on the active head.

What was changed on the other head since the two parted is kept there. Its first
update compares it by content with the version that both had in common, and
brings all that is new on HEAD but for those paths. doppel sync status counts
them, doppel sync drift lists them, and its --adopt and --revert decide. When
none is left, the two are equal again.

A turn is refused while HEAD does not run what the other one, which is up, was
captured as last; while it is being updated; while it does not answer; and while
it has paths of its own that nobody has decided on. --force turns all the same,
and says what that means; --dry-run only says it.

Turning back is the same: doppel sync turn --to the head that was active before.`,
		Example: `  doppel sync turn head --to head2
  doppel sync turn --to head1 --dry-run`,
		Args:              rangeArgs(0, "IMAGE"),
		ValidArgsFunction: complete(false, g.completeSync),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.To == "" {
				return usagef(argsHint(cmd), "--to, the head that is to be the active one, is missing")
			}
			if len(args) == 1 {
				req.Image = args[0]
			}
			return runTurn(cmd.Context(), g, req, yes, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&req.To, "to", "", "the `head` that is to be the active one")
	c.Flags().BoolVar(&req.Force, "force", false, "turn though it would better wait")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what it would mean")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	_ = c.RegisterFlagCompletionFunc("to", g.completeNode)
	return c
}

func runTurn(ctx context.Context, g *globals, req web.TurnRequest, yes bool, out io.Writer) error {
	asked := req
	asked.DryRun = true
	t, err := g.client().Turn(ctx, asked)
	if err != nil {
		return err
	}
	if !req.DryRun {
		if !g.json {
			for _, w := range t.Warnings {
				fmt.Fprintln(os.Stderr, "doppel: warning:", printable(w))
			}
		}
		if err := confirm(ctx, yes, fmt.Sprintf("make %s the active head of %s, which %s then follows?", t.To, t.Image, t.From)); err != nil {
			return err
		}
		said := t.Warnings
		if t, err = g.client().Turn(ctx, req); err != nil {
			return err
		}
		for _, w := range t.Warnings {
			if !g.json && !slices.Contains(said, w) {
				fmt.Fprintln(os.Stderr, "doppel: warning:", printable(w))
			}
		}
	}
	switch {
	case g.json:
		err = printJSON(out, t)
	case req.DryRun:
		_, err = fmt.Fprintf(out, "would make %s the active head of %s, generation %d; %s would follow, and keep what was changed there since %s\n", t.To, t.Image, t.Generation, t.From, t.Common)
		for _, w := range t.Warnings {
			fmt.Fprintln(out, "  "+printable(w))
		}
	case t.From == t.To:
		_, err = fmt.Fprintf(out, "%s stays the active head of %s, generation %d\n", t.To, t.Image, t.Generation)
	default:
		_, err = fmt.Fprintf(out, "%s is the active head of %s, generation %d; %s follows, and keeps what was changed there since %s\n", t.To, t.Image, t.Generation, t.From, t.Common)
	}
	if err == nil && !req.DryRun && !t.Told {
		return codeError(exitPartial)
	}
	return err
}

// directionText says which head of a pair is the active one.
func directionText(s web.SyncStatus, now time.Time) string {
	p := s.Pair
	text := fmt.Sprintf("%s to %s, generation %d, for %s", p.Active, p.Other(p.Active), p.Generation, durationText(now.Sub(p.Turned)))
	switch {
	case !slices.ContainsFunc(s.Nodes, func(n web.SyncNode) bool { return n.Name == p.Active }):
		text += "; " + p.Active + " is not in the inventory: doppel node enlist"
	case !slices.ContainsFunc(s.Nodes, func(n web.SyncNode) bool { return n.Name == p.Other(p.Active) }):
		text += "; " + p.Other(p.Active) + " is not in the inventory: doppel node enlist"
	case !s.Current():
		text += "; nothing was captured in it yet, so nobody is updated"
	}
	return text
}

// activeText says how the active head of a pair stands.
func activeText(n web.SyncNode, now time.Time) string {
	text := "is the active head, which is captured"
	switch {
	case n.LastUp.IsZero():
		text += "; never heard from"
	case !n.Up:
		text += "; not heard from for " + durationText(now.Sub(n.LastUp))
	}
	return text
}

// partedText says what a head has of its own.
func partedText(n web.SyncNode) string {
	p := n.Parted
	if p.Compared.IsZero() && p.From == "" {
		return fmt.Sprintf("was enlisted; its first update finds out what was changed there since %s, and keeps that", p.Base)
	}
	if p.Compared.IsZero() {
		return fmt.Sprintf("was the active head until %s; its next update finds out what was changed there since %s, and keeps that", p.Since.Local().Format(time.DateTime), p.Base)
	}
	text := fmt.Sprintf("keeps %s changed there since %s", counted(p.Own, "path"), p.Base)
	if p.Both > 0 && p.From == "" {
		text += fmt.Sprintf(", %d of them changed in newer versions as well", p.Both)
	} else if p.Both > 0 {
		text += fmt.Sprintf(", %d of them changed on %s as well", p.Both, p.From)
	}
	return text + ": doppel sync drift " + n.Name
}

// maxShown is how many lines of a kind are printed; --json has all.
const maxShown = 50

// printOwn lists what a head keeps of its own: first what both heads have
// changed; whole trees in one line.
func printOwn(w io.Writer, d web.Drift, own []resync.Own) {
	if len(own) == 0 {
		return
	}
	both := resync.Both(own)
	fmt.Fprintf(w, "\n%s keeps %s changed there since the heads parted, %d of them on both heads.\n", d.Node, counted(len(own), "path"), both)
	fmt.Fprintf(w, "Take them with doppel sync drift %s --adopt PATH, or give them up with --revert PATH.\n", d.Node)
	for _, both := range []bool{true, false} {
		lines := groupOwn(own, both)
		for i, l := range lines {
			if i == maxShown {
				fmt.Fprintf(w, "  … and %d more (--json lists all)\n", len(lines)-i)
				break
			}
			fmt.Fprintln(w, "  "+l)
		}
	}
}

// groupOwn has a line for each path, but for those below one that has become of
// the same kind with all that is in it.
func groupOwn(own []resync.Own, both bool) []string {
	type group struct {
		resync.Own
		below int
	}
	var groups []group
	at := map[string]int{} // by path
	for _, o := range own {
		if o.Both != both {
			continue
		}
		top := -1
		for dir := path.Dir(o.Path); dir != "." && top < 0; dir = path.Dir(dir) {
			if i, ok := at[dir]; ok && groups[i].How == o.How && o.How != resync.WasChanged {
				top = i
			}
		}
		if top >= 0 {
			groups[top].below++
			continue
		}
		at[o.Path] = len(groups)
		groups = append(groups, group{Own: o})
	}
	// By how often it happens on a system that runs, what was written there
	// last: files of programs and configuration are what matters first.
	slices.SortStableFunc(groups, func(a, b group) int { return restless(a.Path) - restless(b.Path) })
	var lines []string
	for _, g := range groups {
		word := string(g.How)
		if both {
			word += " (on both heads)"
		}
		line := fmt.Sprintf("%s  %s", word, printable("/"+g.Path))
		if g.below > 0 {
			line += fmt.Sprintf(" and %d below it", g.below)
		}
		lines = append(lines, line)
	}
	return lines
}

// restless is 1 for paths that a system writes as it runs, and 0 for others.
func restless(p string) int {
	for _, dir := range []string{"var/", "root/.", "home/"} {
		if strings.HasPrefix(p, dir) {
			return 1
		}
	}
	return 0
}
