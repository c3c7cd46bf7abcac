package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"doppel/clone"
	"doppel/cluster"
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
again: those of compute nodes, say. On a head of a pair that is not the active
one any more, they are what was changed there since the two parted: the active
head takes them too, and what it has at those paths stays in the versions before.

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

// runAdopt makes a new version of a node's image, with what was changed on the
// node at some paths.
func runAdopt(ctx context.Context, g *globals, name string, paths []string, yes bool, out io.Writer) error {
	n, err := g.client().Node(ctx, name)
	if err != nil {
		return err
	}
	image, _, _ := strings.Cut(n.Runs, "@")
	if err := mayAdopt(ctx, g, n, image, paths); err != nil {
		return err
	}
	catalog, err := g.catalog()
	if err != nil {
		return err
	}
	from, question := n.Runs, fmt.Sprintf("make a new version of %s with %s of %s?", image, printable(strings.Join(paths, ", ")), n.Name)
	active, err := activeFor(ctx, g, n, image)
	if err != nil {
		return err
	}
	if active != "" {
		from, question = image+"@latest", fmt.Sprintf("make a new version of %s with %s of %s, and have %s, which is active, take it?", image, printable(strings.Join(paths, ", ")), n.Name, active)
	}
	base, err := catalog.Resolve(ctx, from)
	if err != nil {
		return err
	}
	if err := confirm(ctx, yes, question); err != nil {
		return err
	}
	// The node is captured as an image of its own, which stays no longer than
	// it takes.
	o := captureFlags{name: "drift-" + n.Name, root: "/", open: openThrough(g.socket())}
	h, err := reach(ctx, &o, nodePrefix+n.Name)
	if err != nil {
		return err
	}
	report, err := captureBetween(ctx, g, o, catalog, h, out)
	if err != nil {
		return err
	}
	own, err := catalog.Resolve(ctx, fmt.Sprintf("%s@%d", report.Image, report.Version))
	if err != nil {
		return err
	}
	v, fresh, err := catalog.Adopt(ctx, base, own, paths)
	if _, rerr := catalog.Remove(ctx, own.Ref()); rerr != nil {
		newLog(os.Stderr).Warn("the capture of the node was not removed", "image", own.Ref(), "error", rerr)
	}
	if err != nil {
		return err
	}
	if active != "" {
		return giveActive(ctx, g, active, n.Name, v, paths, out)
	}
	if g.json {
		return printJSON(out, v)
	}
	if !fresh {
		_, err = fmt.Fprintf(out, "%s has all that already, no new version\n", v.Ref())
		return err
	}
	_, err = fmt.Fprintf(out, "%s  %s\n", v.Ref(), v.Digest)
	return err
}

// mayAdopt refuses what would be lost again, or belongs to one node.
func mayAdopt(ctx context.Context, g *globals, n cluster.Node, image string, paths []string) error {
	if n.State != cluster.Installed || n.Key == "" || image == "" {
		return &hintError{fmt.Errorf("%s runs nothing that doppel installed", n.Name), "see doppel status"}
	}
	table := clone.Identity(string(n.Role))
	for _, p := range paths {
		name := strings.Trim(path.Clean("/"+p), "/")
		if r, ok := table.Match(name); ok {
			return usagef("leave it out", "%s is %s's own: %s", printable(p), n.Name, r.Words)
		}
	}
	if n.Parted != nil && n.Parted.Image == image {
		return nil // the active head is given it as well
	}
	syncs, err := g.client().Syncs(ctx)
	var none *web.Error
	if errors.As(err, &none) && none.Status == http.StatusConflict {
		return nil // no sync is configured
	}
	for _, s := range syncs {
		if s.Image == image && s.Source != "" {
			return &hintError{fmt.Errorf("%s is captured from %s, and the next round would undo it", image, s.Source), "make the change there"}
		}
	}
	return err
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
