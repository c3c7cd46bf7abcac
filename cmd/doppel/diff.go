package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	resync "doppel/sync"
)

func newImageDiff(g *globals) *cobra.Command {
	var packages bool
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "List the entries that two versions do not have alike",
		Long: `Diff lists the entries that were added, removed and changed from version A to
version B, in what they differ, and how long files were and are. With --packages
it lists the packages of the distribution that were added, removed, upgraded and
downgraded instead, by Debian's order of versions.`,
		Example:           "  doppel image diff head@3 head@latest\n  doppel image diff head@3 head@latest --packages",
		Args:              exactArgs("A", "B"),
		ValidArgsFunction: complete(false, g.completeRef, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			if packages {
				return g.diffPackages(cmd, args[0], args[1])
			}
			_, _, a, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, _, b, err := g.manifest(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			changes := imaging.DiffManifests(a, b)
			if g.json {
				if changes == nil {
					changes = []imaging.Change{}
				}
				return printJSON(cmd.OutOrStdout(), changes)
			}
			for _, c := range changes {
				fmt.Fprintln(cmd.OutOrStdout(), changeText(c))
			}
			return nil
		},
	}
	c.Flags().BoolVar(&packages, "packages", false, "list packages and their versions instead of entries")
	return c
}

func changeText(c imaging.Change) string {
	line := fmt.Sprintf("%-8s %s", c.Kind, printable(c.Path))
	var in []string
	for _, w := range c.What {
		in = append(in, string(w))
	}
	if len(in) > 0 {
		line += "  " + strings.Join(in, ", ")
	}
	switch {
	case c.OldSize != c.NewSize && c.Kind == imaging.Changed:
		line += fmt.Sprintf("  (%s, was %s)", bytesText(c.NewSize), bytesText(c.OldSize))
	case c.OldSize+c.NewSize > 0 && c.Kind != imaging.Changed:
		line += fmt.Sprintf("  (%s)", bytesText(c.OldSize+c.NewSize))
	}
	return line
}

// diffPackages prints the packages that two versions do not have alike.
func (g *globals) diffPackages(cmd *cobra.Command, a, b string) error {
	x, err := g.packages(cmd.Context(), a)
	if err != nil {
		return err
	}
	y, err := g.packages(cmd.Context(), b)
	if err != nil {
		return err
	}
	changes := imaging.DiffPackages(x, y)
	if g.json {
		if changes == nil {
			changes = []imaging.PackageChange{}
		}
		return printJSON(cmd.OutOrStdout(), changes)
	}
	t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	for _, c := range changes {
		version := cmp.Or(c.New, c.Old)
		if c.Old != "" && c.New != "" {
			version = fmt.Sprintf("%s  (was %s)", c.New, c.Old)
		}
		fmt.Fprintf(t, "%s\t%s:%s\t%s\n", c.Kind, printable(c.Package), printable(c.Architecture), printable(version))
	}
	return t.Flush()
}

// packages reads which packages a version has.
func (g *globals) packages(ctx context.Context, ref string) ([]imaging.Package, error) {
	c, v, m, release, err := g.reading(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer release()
	vault, err := c.Vault(ctx)
	if err != nil {
		return nil, err
	}
	list, err := imaging.Packages(ctx, m, vault)
	if errors.As(err, new(*imaging.NoPackagesError)) {
		return nil, &hintError{fmt.Errorf("%s: %w", v.Ref(), err), "doppel image diff without --packages compares the files of any image"}
	}
	if err != nil {
		return nil, fmt.Errorf("the packages of %s: %w", v.Ref(), err)
	}
	return list, nil
}

func newImageCompare(g *globals) *cobra.Command {
	var role string
	c := &cobra.Command{
		Use:   "compare REF DIR",
		Short: "Compare a directory with a version, entry by entry",
		Long: `Compare reads everything below DIR and says in what it differs from the
version. With --role, DIR is the disk of an installed node of that role: what
an install and a first boot may change is told apart, by doppel's table of
identity files, and a compute node must not have what only heads may have. Exit
code 4 if anything else differs.`,
		Example:           "  doppel image compare head@latest /mnt/node001 --role compute",
		Args:              exactArgs("REF", "DIR"),
		ValidArgsFunction: complete(false, g.completeRef, completeFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			if role != "" && role != string(cluster.Compute) && role != string(cluster.Head) {
				return usagef("the roles are compute and head", "--role: %q is not a role", role)
			}
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			allowed := func(string, imaging.Difference) (string, bool) { return "", false }
			if role != "" {
				if m, err = clone.Permitted(m, role); err != nil {
					return err
				}
				table := clone.Identity(role)
				allowed = func(path string, _ imaging.Difference) (string, bool) {
					r, ok := table.Match(path)
					return r.Words, ok
				}
			}
			report, err := resync.Drift(cmd.Context(), m, args[1], allowed)
			if err != nil {
				return err
			}
			return printCompare(cmd.OutOrStdout(), g, v, report)
		},
	}
	c.Flags().StringVar(&role, "role", "", "DIR is the disk of a node with this `role`: compute or head")
	_ = c.RegisterFlagCompletionFunc("role", oneOf(string(cluster.Compute), string(cluster.Head)))
	return c
}

func printCompare(w io.Writer, g *globals, v imaging.Version, r resync.Report) error {
	if g.json {
		if err := printJSON(w, r); err != nil {
			return err
		}
	} else {
		reasons := map[string]int{}
		for _, e := range r.Allowed {
			reasons[e.Reason]++
		}
		for _, reason := range slices.Sorted(maps.Keys(reasons)) {
			fmt.Fprintf(w, "may differ  %4d  %s\n", reasons[reason], reason)
		}
		for _, d := range r.Differences {
			fmt.Fprintf(w, "DIFFERS  %s\n", printable(d.String()))
		}
		fmt.Fprintf(w, "%s: %d entries compared, %d differences that may be, %d that may not\n", v.Ref(), r.Entries, len(r.Allowed), len(r.Differences))
	}
	if !r.Equal() {
		return codeError(exitFound)
	}
	return nil
}
