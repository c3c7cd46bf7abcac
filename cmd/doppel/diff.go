package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

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
		Short: "List the entries or packages that two versions do not have alike",
		Long: `Diff lists the entries that were added, removed or changed from A to B, in what
they changed, and the sizes of files.

With --packages it lists packages instead: name, the architecture where the name
does not tell it, and the version in A and in B. They are read out of dpkg's
database in each version. "changed" are packages whose versions dpkg takes for
the same, or which came for another architecture.`,
		Example: `  doppel image diff head@3 head@latest
  doppel image diff head@3 head@latest --packages`,
		Args:              exactArgs("A", "B"),
		ValidArgsFunction: complete(false, g.completeRef, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			if packages {
				return diffPackages(cmd.Context(), g, args[0], args[1], cmd.OutOrStdout())
			}
			return diffEntries(cmd.Context(), g, args[0], args[1], cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&packages, "packages", false, "list packages and their versions (dpkg)")
	return c
}

func diffEntries(ctx context.Context, g *globals, refA, refB string, out io.Writer) error {
	_, _, a, err := g.manifest(ctx, refA)
	if err != nil {
		return err
	}
	_, _, b, err := g.manifest(ctx, refB)
	if err != nil {
		return err
	}
	changes := imaging.DiffManifests(a, b)
	if g.json {
		if changes == nil {
			changes = []imaging.Change{}
		}
		return printJSON(out, changes)
	}
	for _, c := range changes {
		line := fmt.Sprintf("%-8s %s", c.Kind, printable(c.Path))
		var in []string
		for _, w := range c.What {
			in = append(in, string(w))
		}
		for _, more := range []string{strings.Join(in, ", "), sizesText(c.OldSize, c.NewSize)} {
			if more != "" {
				line += "  " + more
			}
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

// sizesText are the sizes of a file before and after, to the byte where they
// would look the same otherwise; empty: it was none and is none.
func sizesText(before, after *int64) string {
	switch {
	case before == nil && after == nil:
		return ""
	case before == nil:
		return bytesText(*after)
	case after == nil || *before == *after:
		return bytesText(*before)
	}
	a, b := bytesText(*before), bytesText(*after)
	if a == b {
		a, b = fmt.Sprintf("%d B", *before), fmt.Sprintf("%d B", *after)
	}
	return a + " -> " + b
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
			report, err := resync.Drift(cmd.Context(), m, args[1], allowed, imaging.CompareOptions{})
			if err != nil {
				return err
			}
			return printCompare(cmd.OutOrStdout(), g, v.Ref(), report)
		},
	}
	c.Flags().StringVar(&role, "role", "", "DIR is the disk of a node with this `role`: compute or head")
	_ = c.RegisterFlagCompletionFunc("role", oneOf(string(cluster.Compute), string(cluster.Head)))
	return c
}

func printCompare(w io.Writer, g *globals, ref string, r resync.Report) error {
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
		fmt.Fprintf(w, "%s: %d entries compared, %d differences that may be, %d that may not\n", ref, r.Entries, len(r.Allowed), len(r.Differences))
	}
	if !r.Equal() {
		return codeError(exitFound)
	}
	return nil
}
