package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/imaging"
	"doppel/web"
)

func newImagePrune(g *globals) *cobra.Command {
	var p imaging.Policy
	var yes, dryRun bool
	c := &cobra.Command{
		Use:   "prune [NAME…]",
		Short: "Remove versions by rules, and give back what nothing needs",
		Long: `Prune removes the versions that no rule keeps, of the named images or of all,
and then gives back the room of what no version needs: packs that are unused go,
packs of which much is dead and many small ones are written anew. Without rules
it removes no version. The latest version of an image, versions with a tag, and
those that a node runs or is about to get always stay.

Captures, restores and installs may go on meanwhile: what they may still read is
deleted by the next prune.`,
		Example: `  doppel image prune head --keep-last 3 --keep-daily 7 --keep-weekly 4 --dry-run
  doppel image prune`,
		ValidArgsFunction: complete(true, g.completeImage),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, rule := range []string{"last", "hourly", "daily", "weekly", "monthly"} {
				if n, err := cmd.Flags().GetInt("keep-" + rule); err != nil || n < 0 {
					return usagef(argsHint(cmd), "--keep-%s: want a number from 0 on", rule)
				}
			}
			if len(args) > 0 && p.IsZero() {
				return usagef("doppel image prune alone gives back the room of all images; doppel image rm removes one version",
					"which versions of %s are to stay is not said: give --keep-last or another rule", strings.Join(args, ", "))
			}
			return runPrune(cmd.Context(), g, pruneJob{p, args, yes, dryRun}, cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.IntVar(&p.Last, "keep-last", 0, "keep the last `N` versions")
	f.IntVar(&p.Hourly, "keep-hourly", 0, "keep the last version of each of the last `N` hours that have one")
	f.IntVar(&p.Daily, "keep-daily", 0, "the same by days")
	f.IntVar(&p.Weekly, "keep-weekly", 0, "the same by weeks")
	f.IntVar(&p.Monthly, "keep-monthly", 0, "the same by months")
	f.BoolVar(&dryRun, "dry-run", false, "only say what would be removed and given back")
	f.BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// pruneJob is what a prune is told.
type pruneJob struct {
	policy      imaging.Policy
	names       []string
	yes, dryRun bool
}

// pruneShown is the JSON of image prune.
type pruneShown struct {
	imaging.PruneReport
	Kept   []imaging.Kept `json:"kept"`
	DryRun bool           `json:"dry_run,omitempty"`
}

func runPrune(ctx context.Context, g *globals, j pruneJob, out io.Writer) error {
	c, err := g.catalog()
	if err != nil {
		return err
	}
	shown := pruneShown{Kept: []imaging.Kept{}, DryRun: j.dryRun}
	remove, err := j.choose(ctx, g, c, &shown)
	if err != nil {
		return err
	}
	if !g.json {
		printChoice(out, j, shown.Kept, remove)
	}
	if len(remove) > 0 && !j.dryRun {
		question := fmt.Sprintf("remove %s?", counted(len(remove), "version"))
		if err := confirm(ctx, j.yes, question); err != nil {
			return err
		}
		// Whoever was asked may have taken time to answer.
		for _, v := range remove {
			if err := refuseUsed(ctx, g, v); err != nil {
				return err
			}
		}
	}
	shown.PruneReport, err = c.Prune(ctx, imaging.PruneOptions{Remove: remove, Repack: true, DryRun: j.dryRun})
	if errors.Is(err, imaging.ErrNoState) {
		shown.PruneReport, err = imaging.PruneReport{Removed: []imaging.Version{}, Damaged: []string{}}, nil
	}
	if err != nil {
		return err
	}
	return printPrune(out, g, shown)
}

// choose applies the rules, image by image.
func (j pruneJob) choose(ctx context.Context, g *globals, c *imaging.Catalog, shown *pruneShown) ([]imaging.Version, error) {
	list, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	var remove []imaging.Version
	for _, name := range j.names {
		if !slices.ContainsFunc(list, func(v imaging.Version) bool { return v.Image == name }) {
			if _, err := c.Resolve(ctx, name); err != nil {
				return nil, err
			}
			return nil, usagef("doppel image ls shows the images", "%s is no image's name", printable(name))
		}
	}
	if j.policy.IsZero() {
		return nil, nil
	}
	for len(list) > 0 {
		n := slices.IndexFunc(list, func(v imaging.Version) bool { return v.Image != list[0].Image })
		if n < 0 {
			n = len(list)
		}
		image := list[:n]
		list = list[n:]
		if len(j.names) > 0 && !slices.Contains(j.names, image[0].Image) {
			continue
		}
		keep, gone := j.policy.Apply(image)
		for _, v := range gone {
			user, err := nodeUsing(ctx, g, v.Ref())
			if err != nil {
				return nil, err
			}
			if user != "" {
				keep = append(keep, imaging.Kept{Version: v, Why: []string{user}})
				continue
			}
			remove = append(remove, v)
		}
		shown.Kept = append(shown.Kept, keep...)
	}
	return remove, nil
}

func printChoice(w io.Writer, j pruneJob, kept []imaging.Kept, remove []imaging.Version) {
	if len(kept)+len(remove) == 0 {
		return
	}
	did := "remove"
	if j.dryRun {
		did = "would remove"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, k := range kept {
		fmt.Fprintf(t, "keep\t%s\t%s\n", k.Ref(), printable(strings.Join(k.Why, ", ")))
	}
	for _, v := range remove {
		fmt.Fprintf(t, "%s\t%s\t%s\n", did, v.Ref(), v.Time.Local().Format("2006-01-02 15:04"))
	}
	_ = t.Flush()
}

func printPrune(w io.Writer, g *globals, s pruneShown) error {
	if g.json {
		return printJSON(w, s)
	}
	removed, freed := "removed", "given back"
	if s.DryRun {
		removed, freed = "would remove", "would be given back, about"
	}
	fmt.Fprintf(w, "%s %s; %s written anew (%s); %s %s\n", removed, counted(len(s.Removed), "version"),
		counted(s.Rewritten, "pack"), bytesText(s.Copied), bytesText(max(0, s.Freed)), freed)
	if s.Waiting > 0 {
		fmt.Fprintf(w, "%s more wait for %s: the next prune deletes them\n", bytesText(s.Waiting), printable(s.WaitingFor))
	}
	for _, d := range s.Damaged {
		fmt.Fprintf(w, "left as it is, doppel image repair may help: %s\n", printable(d))
	}
	return nil
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// installing names the machines that may be reading packs for an install.
func installing(ctx context.Context, g *globals) (string, error) {
	nodes, err := g.client().Nodes(ctx)
	var down *web.Error
	if errors.As(err, &down) && down.Status == 0 {
		nodes, _, err = usersOnDisk(filepath.Join(g.state, "cluster.db"))
	}
	if err != nil {
		return "", err
	}
	return readersAmong(nodes), nil
}

// readersAmong says which nodes read the store, or may begin to with what they
// were told of it; empty: none.
func readersAmong(nodes []cluster.Node) string {
	var names []string
	for _, n := range nodes {
		if n.State == cluster.Armed || n.State == cluster.Installing || n.Update.Pending() && !n.Update.Begun.IsZero() {
			names = append(names, n.Name)
		}
	}
	switch {
	case len(names) == 0:
		return ""
	case len(names) > 3:
		return fmt.Sprintf("%d nodes that are or are to be installed, or are updated", len(names))
	}
	return strings.Join(names, ", ") + ", which is or is to be installed, or is updated"
}

// completeImage completes names of images.
func (g *globals) completeImage(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	refs, directive := g.completeRef(cmd, nil, "")
	var names []string
	for _, ref := range refs {
		name, _, _ := strings.Cut(ref, "@")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return beginning(names, word), directive
}
