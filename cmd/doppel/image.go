package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"doppel/imaging"
)

func newImage(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Look at, check, restore and remove images",
		Long: `REF names a version: NAME, NAME@VERSION, NAME@latest, NAME@TAG, or the
unambiguous beginning of a digest.`,
		Example: `  doppel image ls
  doppel image files head@latest etc`,
	}
	c.AddCommand(newImageLs(g), newImageShow(g), newImageFiles(g), newImageCat(g), newImageDiff(g),
		newImageVerify(g), newImageCompare(g), newImageRestore(g), newImageTag(g), newImageRm(g), newImagePrune(g), newImageRepair(g),
		newImageImport(g), newImageExport(g))
	group(c)
	return c
}

// open opens the catalog and resolves a reference.
func (g *globals) open(ctx context.Context, ref string) (*imaging.Catalog, imaging.Version, error) {
	c, err := g.catalog()
	if err != nil {
		return nil, imaging.Version{}, err
	}
	v, err := c.Resolve(ctx, ref)
	return c, v, err
}

// catalog opens the images of the state directory.
func (g *globals) catalog() (*imaging.Catalog, error) {
	return imaging.OpenCatalog(g.state, imaging.CatalogOptions{
		Log:     newLog(os.Stderr),
		Readers: func(ctx context.Context) (string, error) { return installing(ctx, g) },
	})
}

// manifest opens a version with its manifest.
func (g *globals) manifest(ctx context.Context, ref string) (*imaging.Catalog, imaging.Version, *imaging.Manifest, error) {
	c, v, err := g.open(ctx, ref)
	if err != nil {
		return nil, v, nil, err
	}
	m, err := c.Manifest(ctx, v)
	return c, v, m, err
}

// reading opens a version with its manifest, and keeps what it needs from being
// deleted until it is released.
func (g *globals) reading(ctx context.Context, ref string) (c *imaging.Catalog, v imaging.Version, m *imaging.Manifest, release func(), err error) {
	if c, err = g.catalog(); err != nil {
		return c, v, nil, nil, err
	}
	if release, err = c.Reading(ctx); errors.Is(err, imaging.ErrNoState) {
		release = func() {} // that there is no such image says more
	} else if err != nil {
		return c, v, nil, nil, err
	}
	if v, err = c.Resolve(ctx, ref); err == nil {
		m, err = c.Manifest(ctx, v)
	}
	if err != nil {
		release()
		return c, v, nil, nil, err
	}
	return c, v, m, release, nil
}

func newImageLs(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "ls",
		Short:             "List all versions of all images",
		Example:           "  doppel image ls",
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.catalog()
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			return printVersions(cmd.OutOrStdout(), list)
		},
	}
}

func printVersions(w io.Writer, list []imaging.Version) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "no images yet: doppel capture root@head --name head makes one")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tCAPTURED\tENTRIES\tSIZE\tFROM\tTAGS\tDIGEST")
	for _, v := range list {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%.19s\n", v.Ref(), v.Time.Local().Format(time.DateTime), v.Entries, bytesText(v.Bytes),
			printable(v.Source), strings.Join(v.Tags, ","), v.Digest)
	}
	return t.Flush()
}

// imageShown is the JSON of image show.
type imageShown struct {
	imaging.Version
	Facts  imaging.Facts   `json:"facts"`
	Layout *imaging.Layout `json:"layout"`
	Boot   imaging.Boot    `json:"boot"`
}

func newImageShow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "show REF",
		Short:             "Show what one version is, and what it can boot",
		Example:           "  doppel image show head@latest",
		Args:              exactArgs("REF"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s := imageShown{v, m.Facts, m.Layout, m.Boot}
			if g.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return showImage(cmd.OutOrStdout(), s)
		},
	}
}

func showImage(w io.Writer, s imageShown) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	// What the image says of itself is the captured host's word.
	row := func(k, format string, args ...any) {
		if v := fmt.Sprintf(format, args...); v != "" {
			fmt.Fprintf(t, "%s\t%s\n", k, printable(v))
		}
	}
	row("image", "%s", s.Ref())
	row("tags", "%s", strings.Join(s.Tags, ", "))
	row("digest", "%s", s.Digest)
	row("captured", "%s from %s", s.Time.Local().Format(time.DateTime), s.Source)
	row("holds", "%d entries, %s", s.Entries, bytesText(s.Bytes))
	row("host", "%s", s.Facts.Hostname)
	row("system", "%s", s.Facts.OSRelease["PRETTY_NAME"])
	row("machine", "%s", strings.TrimSpace(s.Facts.Arch+" "+s.Facts.Firmware))
	for _, k := range s.Boot.Kernels {
		row("kernel", "%s", k.Release)
	}
	row("loaders", "%s", strings.Join(s.Boot.Loaders, ", "))
	row("network", "%s", s.Boot.Network)
	if s.Layout == nil {
		why := s.Facts.LayoutNote
		if why == "" {
			why = "none recorded"
		}
		row("layout", "%s", why)
		return t.Flush()
	}
	row("layout", "%s, disk of %s", s.Layout.Table, bytesText(s.Layout.DiskSize))
	for _, p := range s.Layout.Partitions {
		fs, mount := "", ""
		if p.FS != nil {
			fs, mount = p.FS.Type, p.FS.Mount
		}
		row("", "%d  %s  %s  %s", p.Number, bytesText(p.Size), fs, mount)
	}
	return t.Flush()
}

func newImageTag(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "tag REF NAME",
		Short: "Give a version another name",
		Long: `Tag makes IMAGE@NAME another name of the version. If another version of the
image has that name, it loses it.`,
		Example:           "  doppel image tag head@3 golden      # then: head@golden",
		Args:              exactArgs("REF", "NAME"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := g.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			v, err := c.Tag(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), v)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s@%s is %s\n", v.Image, args[1], v.Ref())
			return err
		},
	}
}

func newImageRm(g *globals) *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use:   "rm REF",
		Short: "Remove a version, and what only it needed",
		Long: `Rm removes one version and frees what no other version needs. A version that a
node runs or is about to get is refused.`,
		Example:           "  doppel image rm head@2",
		Args:              exactArgs("REF"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageRm(cmd.Context(), g, args[0], yes, dryRun, cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
	return c
}

// refuseUsed refuses to remove what a node runs or is to get.
func refuseUsed(ctx context.Context, g *globals, v imaging.Version) error {
	user, err := nodeUsing(ctx, g, v.Ref())
	if err == nil && user != "" {
		err = &hintError{errors.New(user), "deploy another version there first, or doppel disarm it"}
	}
	return err
}

func runImageRm(ctx context.Context, g *globals, ref string, yes, dryRun bool, out io.Writer) error {
	c, v, err := g.open(ctx, ref)
	if err != nil {
		return err
	}
	if err := refuseUsed(ctx, g, v); err != nil {
		return err
	}
	did := "would remove"
	if !dryRun {
		if err := confirm(ctx, yes, fmt.Sprintf("remove %s, captured %s from %s?", v.Ref(), v.Time.Local().Format(time.DateTime), printable(v.Source))); err != nil {
			return err
		}
		// Whoever was asked may have taken time to answer.
		if err := refuseUsed(ctx, g, v); err != nil {
			return err
		}
		// By its number: a newer version may have become the latest.
		if v, err = c.Remove(ctx, v.Ref()); err != nil {
			return err
		}
		did = "removed"
	}
	if g.json {
		return printJSON(out, v)
	}
	_, err = fmt.Fprintf(out, "%s %s\n", did, v.Ref())
	return err
}
