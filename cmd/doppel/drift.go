package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"doppel/imaging"
	resync "doppel/sync"
	"doppel/web"
)

func newSyncDrift(g *globals) *cobra.Command {
	var req web.DriftRequest
	var revert, adopt []string
	var yes bool
	c := &cobra.Command{
		Use:   "drift NODE",
		Short: "In what a node that runs differs from its image",
		Long: `Drift has a node compare itself with the version it runs, or with another one
(--image), and lists what was changed on it. What may differ, by doppel's table
of identity files and by keep of the configuration, is counted apart. Files of
the right size and time are taken for right; --full reads them. Exit code 4 if
anything differs that may not.

--revert undoes what was changed at the paths that it names, and below them:
they are made as in the version that the node runs, and what that lacks is
removed, but for what the node keeps there. All else stays as it is.

--adopt takes what was changed at the paths that it names, and below them, into
a new version of the node's image, which is for images that nothing captures
again: those of compute nodes, say. What the image leaves out is not taken. On a
head of a pair that is not the active one any more, only what was changed there
since the two parted is taken, and nothing that is merely older. The active head
is captured once more before, so that what gives way there is in a version, and
takes it; the command waits for that. Exit code 1 if it did not.

Differences are told by path, and then by the Debian package that has the path.`,
		Example: `  doppel sync drift standby
  doppel sync drift node001 --full --image head@3
  doppel sync drift node001 --revert /etc/motd --revert /opt/trial
  doppel sync drift node001 --adopt /etc/chrony`,
		Args:              exactArgs("NODE"),
		ValidArgsFunction: complete(false, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Node = args[0]
			if len(revert) > 0 && len(adopt) > 0 {
				return usagef("do one after the other", "--revert and --adopt cannot go together")
			}
			if (len(revert) > 0 || len(adopt) > 0) && req.Image != "" {
				return usagef("leave --image out: it is the version that the node runs", "--revert and --adopt cannot go together with --image")
			}
			if len(adopt) > 0 {
				return runAdopt(cmd.Context(), g, args[0], adopt, yes, cmd.OutOrStdout())
			}
			if len(revert) > 0 {
				return runDeploy(cmd.Context(), g, web.Deploy{Nodes: args, InPlace: true, Full: req.Full, Paths: revert}, true, yes, cmd.OutOrStdout())
			}
			d, err := g.client().Drift(cmd.Context(), req)
			if err != nil {
				return err
			}
			var report resync.Report
			if err := json.Unmarshal(d.Report, &report); err != nil {
				return fmt.Errorf("reading the answer of %s: %w", d.Node, err)
			}
			return showDrift(cmd.Context(), g, d, report, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&req.Image, "image", "", "compare with this version (default: what the node runs)")
	c.Flags().BoolVar(&req.Full, "full", false, "read every file, instead of trusting size and time")
	c.Flags().StringArrayVar(&revert, "revert", nil, "undo what was changed at this `path`; repeatable")
	c.Flags().StringArrayVar(&adopt, "adopt", nil, "take what was changed at this `path` into a new version; repeatable")
	c.Flags().BoolVar(&yes, "yes", false, "with --revert and --adopt: do not ask")
	_ = c.RegisterFlagCompletionFunc("image", g.completeRef)
	return c
}

// driftShown is the JSON of sync drift.
type driftShown struct {
	Node  string `json:"node"`
	Image string `json:"image"`
	resync.Report
	Packages map[string][]string `json:"packages"` // paths that differ, by the package that has them
}

func showDrift(ctx context.Context, g *globals, d web.Drift, r resync.Report, out io.Writer) error {
	var paths []string
	for _, v := range r.Differences {
		if len(paths) == 0 || paths[len(paths)-1] != v.Path {
			paths = append(paths, v.Path)
		}
	}
	packages, err := packagesOf(ctx, g, d.Image, paths)
	if err != nil {
		return err
	}
	if g.json {
		err := printJSON(out, driftShown{Node: d.Node, Image: d.Image, Report: r, Packages: packages})
		if err == nil && !r.Equal() {
			return codeError(exitFound)
		}
		return err
	}
	err = printCompare(out, g, d.Image, r)
	printOwn(out, d, r.Own)
	if len(packages) > 0 {
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "PACKAGE\tPATHS THAT DIFFER")
		for _, name := range slices.Sorted(maps.Keys(packages)) {
			fmt.Fprintf(t, "%s\t%d\n", name, len(packages[name]))
		}
		err = errors.Join(err, t.Flush())
	}
	return err
}

// dpkgInfo is where dpkg keeps a list of each package's files (dpkg-query(1)).
const dpkgInfo = "var/lib/dpkg/info"

// packagesOf sorts paths by the Debian package of a version that has them.
// Those that no package has are left out, and a version that is no Debian's has
// none.
func packagesOf(ctx context.Context, g *globals, ref string, paths []string) (map[string][]string, error) {
	found := map[string][]string{}
	if len(paths) == 0 {
		return found, nil
	}
	c, _, m, release, err := g.reading(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer release()
	vault, err := c.Vault(ctx)
	if err != nil {
		return nil, err
	}
	wanted, links := map[string]bool{}, rootLinks(m)
	for _, p := range paths {
		wanted[p] = true
	}
	for name, e := range filesIn(m, dpkgInfo) {
		name, ok := strings.CutSuffix(name, ".list")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, ":") // the architecture
		lines := bufio.NewScanner(readEntry(ctx, vault, e))
		for lines.Scan() {
			if p := listed(links, lines.Text()); wanted[p] && !slices.Contains(found[name], p) && !isDirectory(m, p) {
				found[name] = append(found[name], p)
			}
		}
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("reading what the package %s has: %w", printable(name), err)
		}
	}
	return found, nil
}

// listed is the path in the tree that a line of a package's list is about: many
// still say /bin for what lies in /usr/bin. links are those that the root has.
func listed(links map[string]string, line string) string {
	p := strings.TrimPrefix(line, "/")
	dir, rest, below := strings.Cut(p, "/")
	if target := links[dir]; below && target != "" {
		return target + "/" + rest
	}
	return p
}

// rootLinks are the links in a tree's root, with where they lead.
func rootLinks(m *imaging.Manifest) map[string]string {
	links := map[string]string{}
	for e := range entriesBelow(m, ".") {
		if e.Kind == imaging.Symlink && !strings.Contains(e.Path, "/") {
			links[e.Path] = strings.TrimPrefix(e.Target, "/")
		}
	}
	return links
}

// isDirectory tells whether a path is one, which many packages have.
func isDirectory(m *imaging.Manifest, p string) bool {
	e := m.List.Get(p)
	return e != nil && e.Kind == imaging.Directory
}
