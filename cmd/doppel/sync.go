package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/web"
)

func newSync(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "sync",
		Short: "Keep standby and compute nodes equal to the head they were made from",
		Long: syncHelp + `

Rounds capture the source as new versions; nodes that follow are made equal to
the latest one as they run, a few at a time, but for their identity. When one
fails, no more are updated until it has succeeded. A node that was deployed with
a certain version (head@6, not head@latest) stays on it until doppel sync resume
--node lets it follow again.

` + pairHelp + `

doppel sync turn makes the other head the active one. What was changed on the
head that was it, since the two parted, is not lost: it stays there until doppel
sync drift HEAD --adopt or --revert decides.`,
		Example: `  doppel sync status
  doppel sync now head`,
	}
	c.AddCommand(newSyncStatus(g), newSyncNow(g), newSyncPause(g), newSyncResume(g), newSyncDrift(g), newSyncTurn(g))
	group(c)
	return c
}

func newSyncStatus(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "status",
		Short:             "How every sync stands: last round, next round, who is behind",
		Example:           "  doppel sync status",
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := g.client().Syncs(cmd.Context())
			if err != nil {
				return err
			}
			return printSyncs(cmd.OutOrStdout(), g, list)
		},
	}
}

func newSyncNow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "now [IMAGE…]",
		Short: "Begin a round at once, and wait until it has ended",
		Long: `Now has a round begin as soon as none is under way, though the sync be paused or
its window closed, and waits for its end. Nodes that follow are updated after
it; doppel sync status shows how they get on.

Exit codes: 0 done, also when nothing had changed; 1 a round failed.`,
		Example: "  doppel sync now head",
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSyncNow(cmd.Context(), g, args, cmd.OutOrStdout())
		},
		ValidArgsFunction: complete(true, g.completeSync),
	}
}

func runSyncNow(ctx context.Context, g *globals, images []string, out io.Writer) error {
	ended, err := roundsNow(ctx, g.client(), images, func(s web.SyncStatus) {
		if !g.json {
			fmt.Fprintf(out, "%s: %s\n", s.Image, roundText(*s.Last))
		}
	})
	if g.json && ended != nil {
		err = errors.Join(err, printJSON(out, ended))
	}
	if err == nil && slices.ContainsFunc(ended, func(s web.SyncStatus) bool { return s.Last.Failed != "" }) {
		return codeError(exitFailed)
	}
	return err
}

// roundsNow has a round of each image begin, of all that have a source if none
// is named, and waits for their ends, of which told is told.
func roundsNow(ctx context.Context, client *web.Client, images []string, told func(web.SyncStatus)) ([]web.SyncStatus, error) {
	before, err := client.Syncs(ctx)
	if err != nil {
		return nil, err
	}
	asked, err := client.Sync(ctx, web.SyncRequest{Do: "now", Images: images})
	if err != nil {
		return nil, err
	}
	waits := map[string]time.Time{} // for a round that began after this
	for _, s := range asked {
		if s.Source == "" || len(images) > 0 && !slices.Contains(images, s.Image) {
			continue
		}
		waits[s.Image] = time.Time{}
		for _, b := range before {
			if b.Image == s.Image && b.Last != nil {
				waits[s.Image] = b.Last.Begun
			}
			if b.Image == s.Image && !b.Running.IsZero() {
				waits[s.Image] = b.Running // the round under way does not count
			}
		}
	}
	if len(waits) == 0 {
		return nil, &usageError{"there is nothing to capture: no sync that is meant has a source", "give source in its [[sync]]"}
	}
	ended := []web.SyncStatus{}
	err = client.WatchSyncs(ctx, func(list []web.SyncStatus) error {
		for _, s := range list {
			since, wanted := waits[s.Image]
			if !wanted || s.Last == nil || !s.Last.Begun.After(since) {
				continue
			}
			delete(waits, s.Image)
			ended = append(ended, s)
			told(s)
		}
		if len(waits) == 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		err = nil
	case err == nil:
		err = &hintError{errors.New("doppel serve was stopped before the round had ended"), "start it again: a round that was missed is caught up"}
	}
	return ended, err
}

func newSyncPause(g *globals) *cobra.Command {
	var nodes []string
	c := &cobra.Command{
		Use:   "pause [IMAGE…]",
		Short: "Stop the rounds, or leave nodes on the version they have",
		Long: `Pause stops rounds and updates of the images named, or of all, until doppel sync
resume. With --node it leaves those nodes on the version they have instead, and
all others follow. What is under way goes on to its end.`,
		Example: `  doppel sync pause
  doppel sync pause --node standby`,
		ValidArgsFunction: complete(true, g.completeSync),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSyncDo(cmd.Context(), g, web.SyncRequest{Do: "pause", Images: args, Nodes: nodes}, cmd.OutOrStdout())
		},
	}
	c.Flags().StringArrayVar(&nodes, "node", nil, "these `nodes`, instead of whole images; repeatable")
	_ = c.RegisterFlagCompletionFunc("node", g.completeNode)
	return c
}

func newSyncResume(g *globals) *cobra.Command {
	var nodes []string
	c := &cobra.Command{
		Use:   "resume [IMAGE…]",
		Short: "Let rounds go on, or nodes follow again",
		Long: `Resume lets the rounds of the images named, or of all, go on; one that was missed
is caught up. With --node those nodes, which were put on a certain version or
paused, follow again.`,
		Example: `  doppel sync resume
  doppel sync resume --node standby`,
		ValidArgsFunction: complete(true, g.completeSync),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSyncDo(cmd.Context(), g, web.SyncRequest{Do: "resume", Images: args, Nodes: nodes}, cmd.OutOrStdout())
		},
	}
	c.Flags().StringArrayVar(&nodes, "node", nil, "these `nodes`, instead of whole images; repeatable")
	_ = c.RegisterFlagCompletionFunc("node", g.completeNode)
	return c
}

func runSyncDo(ctx context.Context, g *globals, req web.SyncRequest, out io.Writer) error {
	list, err := g.client().Sync(ctx, req)
	if err != nil {
		return err
	}
	return printSyncs(out, g, list)
}

// completeSync completes names of images that a sync is configured for.
func (g *globals) completeSync(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	list, err := g.client().Syncs(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, s := range list {
		names = append(names, s.Image)
	}
	return beginning(names, word), cobra.ShellCompDirectiveNoFileComp
}

// printSyncs says how every sync stands.
func printSyncs(w io.Writer, g *globals, list []web.SyncStatus) error {
	if g.json {
		return printJSON(w, list)
	}
	now := time.Now()
	for i, s := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := printSync(w, s, now); err != nil {
			return err
		}
	}
	return nil
}

func printSync(w io.Writer, s web.SyncStatus, now time.Time) error {
	from := "captured by hand"
	if s.Source != "" {
		from = fmt.Sprintf("from %s every %s", s.Source, durationText(time.Duration(s.Every)))
		if s.Watch {
			from += ", watched"
		}
	}
	fmt.Fprintf(w, "%s  %s\n", s.Image, from)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s.Source != "" {
		last := "none yet"
		if s.Last != nil {
			last = ago(s.Last.Ended, now) + ": " + roundText(*s.Last)
		}
		fmt.Fprintf(t, "  last round\t%s\n", last)
		if s.Failures > 0 {
			good := "none has ever succeeded"
			if s.Good != nil {
				good = "the last that did not was " + ago(s.Good.Ended, now)
			}
			fmt.Fprintf(t, "  \t%s in a row failed; %s\n", counted(s.Failures, "round"), good)
		}
		fmt.Fprintf(t, "  next round\t%s\n", nextText(s, now))
	}
	switch {
	case s.Versions == 0:
		fmt.Fprintf(t, "  versions\tnone yet\n")
	default:
		fmt.Fprintf(t, "  versions\t%s, the latest is %s, captured %s\n", counted(s.Versions, "version"), s.Latest, ago(s.Captured, now))
	}
	if p := s.Pair; p != nil && p.Active != "" {
		fmt.Fprintf(t, "  direction\t%s\n", directionText(s, now))
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "  %s\t%s\n", n.Name, syncNodeText(s, n, now))
	}
	if s.Stopped != "" {
		fmt.Fprintf(t, "  stopped\tno other node is updated to %s until %s has succeeded\n", s.Latest, s.Stopped)
	}
	return t.Flush()
}

// roundText says what a round came to.
func roundText(r cluster.Round) string {
	took := fmt.Sprintf("%.1f s", r.Ended.Sub(r.Begun).Seconds())
	switch {
	case r.Failed != "":
		return "failed: " + printable(r.Failed)
	case r.Unchanged:
		return fmt.Sprintf("nothing had changed since %s (%s sent, %s)", r.Version, bytesText(r.Sent), took) + rescanText(r)
	}
	text := fmt.Sprintf("new version %s (%s read, %s sent, %s stored, %s)", r.Version, bytesText(r.Read), bytesText(r.Sent), bytesText(r.Added), took)
	if still := r.StillText(); still != "" {
		text += "; " + still
	}
	return text + rescanText(r)
}

// rescanText says why a round looked at everything, though the source is watched.
func rescanText(r cluster.Round) string {
	if r.Rescan == "" {
		return ""
	}
	return "; everything was looked at: " + printable(r.Rescan)
}

// nextText says when the next round begins.
func nextText(s web.SyncStatus, now time.Time) string {
	switch {
	case !s.Running.IsZero():
		return "under way since " + durationText(now.Sub(s.Running))
	case !s.Paused.IsZero():
		return fmt.Sprintf("paused since %s: doppel sync resume", s.Paused.Local().Format(time.DateTime))
	case !s.Next.After(now):
		return "now"
	}
	return "in " + durationText(s.Next.Sub(now))
}

// syncNodeText says how a node stands towards the image it follows.
func syncNodeText(s web.SyncStatus, n web.SyncNode, now time.Time) string {
	name, _, _ := strings.Cut(n.Runs, "@")
	switch {
	case n.Source && s.Pair != nil:
		return activeText(n, now)
	case n.Source:
		return "is the source itself, and does not follow"
	case n.State != cluster.Installed:
		return fmt.Sprintf("is %s, and follows once it runs a version of %s", strings.ToLower(string(n.State)), s.Image)
	case name != s.Image:
		return fmt.Sprintf("runs %s, which is no version of %s: it does not follow", n.Runs, s.Image)
	}
	var words []string
	switch {
	case !n.Behind && n.Lag > 0:
		words = append(words, fmt.Sprintf("equal to %s: has what the source was %s ago", n.Runs, durationText(n.Lag)))
	case !n.Behind:
		words = append(words, "equal to "+n.Runs)
	default:
		words = append(words, "runs "+n.Runs+", not "+s.Latest)
		if n.Lag > 0 {
			words = append(words, fmt.Sprintf("has what the source was %s ago", durationText(n.Lag)))
		}
	}
	if n.Parted != nil {
		words = append(words, partedText(n))
	}
	if n.Held {
		words = append(words, "stays there: doppel sync resume --node "+n.Name+" lets it follow again")
	}
	u := n.Update
	switch {
	case u.Pending() && u.Begun.IsZero():
		words = append(words, "to become "+u.Image+" when it is heard from")
	case u.Pending():
		words = append(words, "becoming "+u.Image+": "+stageText(u.Stage, u.Detail, u.Done, u.Total))
	case u != nil && u.Failed != "":
		words = append(words, fmt.Sprintf("did not become %s %s: %s", u.Image, ago(u.Ended, now), printable(u.Failed)))
	}
	switch {
	case n.LastUp.IsZero():
		words = append(words, "never heard from")
	case !n.Up:
		words = append(words, "not heard from for "+durationText(now.Sub(n.LastUp)))
	}
	return strings.Join(words, "; ")
}

// ago says how long ago something was.
func ago(t, now time.Time) string { return durationText(now.Sub(t)) + " ago" }

// durationText is a duration as people say it, in one unit or two.
func durationText(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < 2*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}
