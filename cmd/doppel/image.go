package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
	resync "doppel/sync"
)

func newImage(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Look at, check, restore and remove images",
		Long: `REF names a version: NAME, NAME@VERSION, NAME@latest, NAME@TAG, or the
unambiguous beginning of a digest.`,
		RunE: func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	c.AddCommand(newImageLs(g), newImageShow(g), newImageFiles(g), newImageCat(g), newImageDiff(g),
		newImageVerify(g), newImageCompare(g), newImageRestore(g), newImageTag(g), newImageRm(g))
	return c
}

// open opens the catalog and resolves a reference.
func (g *globals) open(ctx context.Context, ref string) (*imaging.Catalog, imaging.Version, error) {
	c, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{Log: newLog(os.Stderr)})
	if err != nil {
		return nil, imaging.Version{}, err
	}
	v, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, v, &hintError{err, "doppel image ls shows what there is"}
	}
	return c, v, nil
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

func newImageLs(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Short:   "List all versions of all images",
		Example: "  doppel image ls",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{})
			if err != nil {
				return err
			}
			list, err := c.List(cmd.Context())
			if err != nil {
				return err
			}
			if g.json {
				if list == nil {
					list = []imaging.Version{}
				}
				return printJSON(cmd.OutOrStdout(), list)
			}
			if len(list) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "no images yet: doppel capture root@head --name head makes one")
				return nil
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "IMAGE\tCAPTURED\tENTRIES\tSIZE\tFROM\tTAGS\tDIGEST")
			for _, v := range list {
				fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%.19s\n", v.Ref(), v.Time.Local().Format(time.DateTime), v.Entries, bytesText(v.Bytes), v.Source, strings.Join(v.Tags, ","), v.Digest)
			}
			return t.Flush()
		},
	}
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
		Use:     "show REF",
		Short:   "Show what one version is, and what it can boot",
		Example: "  doppel image show head@latest",
		Args:    exactArgs("REF"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			s := imageShown{v, m.Facts, m.Layout, m.Boot}
			if g.json {
				return printJSON(cmd.OutOrStdout(), s)
			}
			showImage(cmd.OutOrStdout(), s)
			return nil
		},
	}
}

func showImage(w io.Writer, s imageShown) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(k, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", k, fmt.Sprintf(format, args...)) }
	row("image", "%s", s.Ref())
	row("digest", "%s", s.Digest)
	row("captured", "%s from %s", s.Time.Local().Format(time.DateTime), s.Source)
	row("holds", "%d entries, %s", s.Entries, bytesText(s.Bytes))
	row("system", "%s, %s, host %s", s.Facts.OSRelease["PRETTY_NAME"], s.Facts.Arch, s.Facts.Hostname)
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
	} else {
		row("layout", "%s, disk of %s", s.Layout.Table, bytesText(s.Layout.DiskSize))
		for _, p := range s.Layout.Partitions {
			fs, mount := "", ""
			if p.FS != nil {
				fs, mount = p.FS.Type, p.FS.Mount
			}
			row("", "%d  %s  %s  %s", p.Number, bytesText(p.Size), fs, mount)
		}
	}
	_ = t.Flush() // to the same writer as everything else
}

func newImageFiles(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "files REF [PATH]",
		Short:   "List the entries of a version, or of a directory in it",
		Example: "  doppel image files head@latest etc/ssh",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			below := "."
			if len(args) == 2 {
				below = imagePath(args[1])
			}
			found := false
			for i := range m.List {
				e := &m.List[i]
				if below != "." && e.Path != below && !strings.HasPrefix(e.Path, below+"/") {
					continue
				}
				found = true
				if g.json {
					err = printJSONLine(cmd.OutOrStdout(), e)
				} else {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), entryLine(e))
				}
				if err != nil {
					return err
				}
			}
			if !found {
				return fmt.Errorf("%s has no %s", v.Ref(), below)
			}
			return nil
		},
	}
}

// fileListed is the JSON of one entry.
type fileListed struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"`
	Mode   string `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	MTime  string `json:"mtime"`
	Size   int64  `json:"size"`
	Target string `json:"target,omitempty"`
	Class  string `json:"class,omitempty"`
}

func printJSONLine(w io.Writer, e *imaging.Entry) error {
	f := fileListed{Path: e.Path, Kind: e.Kind.String(), Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID,
		MTime: time.Unix(e.MTime.Sec, int64(e.MTime.Nsec)).UTC().Format(time.RFC3339Nano), Size: e.Size, Target: e.Target}
	if e.Class != imaging.ClassNone {
		f.Class = e.Class.String()
	}
	return printEvent(w, "entry", f)
}

// entryLine is an entry as ls -l would show it.
func entryLine(e *imaging.Entry) string {
	letter := map[imaging.Kind]string{imaging.Regular: "-", imaging.Directory: "d", imaging.Symlink: "l", imaging.CharDevice: "c",
		imaging.BlockDevice: "b", imaging.FIFO: "p", imaging.Socket: "s", imaging.HardLink: "h"}[e.Kind]
	size := fmt.Sprint(e.Size)
	if e.Kind == imaging.CharDevice || e.Kind == imaging.BlockDevice {
		size = fmt.Sprintf("%d,%d", e.Major, e.Minor)
	}
	line := fmt.Sprintf("%s%04o %5d %5d %12s %s %s", letter, e.Mode, e.UID, e.GID, size,
		time.Unix(e.MTime.Sec, 0).UTC().Format(time.DateTime), printable(e.Path))
	switch e.Kind {
	case imaging.Symlink:
		line += " -> " + printable(e.Target)
	case imaging.HardLink:
		line += " = " + printable(e.Target)
	}
	return line
}

// imagePath is a path as manifests have it.
func imagePath(p string) string {
	p = strings.Trim(p, "/")
	if p == "" {
		return "."
	}
	return p
}

func newImageCat(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "cat REF PATH",
		Short:   "Print a file of a version",
		Example: "  doppel image cat head@3 etc/fstab",
		Args:    exactArgs("REF", "PATH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, v, m, err := g.manifest(ctx, args[0])
			if err != nil {
				return err
			}
			e, err := findFile(m, v, imagePath(args[1]))
			if err != nil {
				return err
			}
			vault, err := c.Vault(ctx)
			if err != nil {
				return err
			}
			return catEntry(ctx, cmd.OutOrStdout(), vault, e)
		},
	}
}

// findFile finds a regular file by any of its names.
func findFile(m *imaging.Manifest, v imaging.Version, path string) (*imaging.Entry, error) {
	for i := range m.List {
		e := &m.List[i]
		if e.Path != path {
			continue
		}
		switch e.Kind {
		case imaging.Regular:
			return e, nil
		case imaging.HardLink:
			return findFile(m, v, e.Target)
		case imaging.Symlink:
			return nil, fmt.Errorf("%s is a symlink to %s", path, e.Target)
		}
		return nil, fmt.Errorf("%s is a %s, not a file", path, e.Kind)
	}
	return nil, fmt.Errorf("%s has no %s", v.Ref(), path)
}

// catEntry writes a file's content, holes as zeros.
func catEntry(ctx context.Context, w io.Writer, vault *store.Vault, e *imaging.Entry) error {
	chunks := e.Chunks
	var at int64
	var pending []byte
	for _, x := range e.Data() {
		if err := writeZeros(w, x.Offset-at); err != nil {
			return err
		}
		left := x.Length
		for left > 0 {
			if len(pending) == 0 {
				if len(chunks) == 0 {
					return fmt.Errorf("%s: its chunks end before its data", e.Path)
				}
				b, err := vault.Chunk(ctx, store.Ref{Audience: e.Class.Audience(), ID: chunks[0].ID})
				if err != nil {
					return fmt.Errorf("%s: %w", e.Path, err)
				}
				pending, chunks = b, chunks[1:]
			}
			n := min(left, int64(len(pending)))
			if _, err := w.Write(pending[:n]); err != nil {
				return err
			}
			pending, left = pending[n:], left-n
		}
		at = x.Offset + x.Length
	}
	return writeZeros(w, e.Size-at)
}

func writeZeros(w io.Writer, n int64) error {
	zeros := make([]byte, 64<<10)
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := w.Write(zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func newImageDiff(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "diff A B",
		Short:   "List the entries that two versions do not have alike",
		Example: "  doppel image diff head@3 head@latest",
		Args:    exactArgs("A", "B"),
		RunE: func(cmd *cobra.Command, args []string) error {
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
				var in []string
				for _, w := range c.What {
					in = append(in, string(w))
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%-8s %s  %s\n", c.Kind, printable(c.Path), strings.Join(in, ", "))
			}
			return nil
		},
	}
}

func newImageVerify(g *globals) *cobra.Command {
	var all, readData bool
	c := &cobra.Command{
		Use:   "verify REF… | --all",
		Short: "Check that versions are wholly in the store",
		Long: `Verify checks that everything a version needs is in the store, and with
--read-data that every byte is what it was. Exit code 4 if anything is missing
or wrong; each line names the image, the path and the chunk.`,
		Example: "  doppel image verify --all --read-data",
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("doppel image verify --all checks everything", "name versions, or --all")
			}
			c, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{Log: newLog(os.Stderr)})
			if err != nil {
				return err
			}
			faults := []faultShown{}
			err = c.Verify(cmd.Context(), args, readData, func(f imaging.ImageFault) { faults = append(faults, showFault(f)) })
			if err != nil {
				return err
			}
			if g.json {
				err = printJSON(cmd.OutOrStdout(), map[string]any{"faults": faults})
			} else {
				for _, f := range faults {
					fmt.Fprintf(cmd.OutOrStdout(), "%s  %s  %s  %s\n", f.Image, printable(f.Path), f.Chunk, f.Error)
				}
				if len(faults) == 0 {
					fmt.Fprintln(cmd.OutOrStdout(), "everything is there and right")
				}
			}
			if err == nil && len(faults) > 0 {
				return codeError(exitFound)
			}
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "check every version")
	c.Flags().BoolVar(&readData, "read-data", false, "read every byte, not only what is there")
	return c
}

type faultShown struct {
	Image string `json:"image"`
	Path  string `json:"path,omitempty"`
	Chunk string `json:"chunk,omitempty"`
	Error string `json:"error"`
}

func showFault(f imaging.ImageFault) faultShown {
	s := faultShown{Path: f.Path, Error: f.Err.Error()}
	if f.Version.Image != "" {
		s.Image = f.Version.Ref()
	}
	if !f.Chunk.IsZero() {
		s.Chunk = f.Chunk.String()
	}
	return s
}

func newImageRestore(g *globals) *cobra.Command {
	var o imaging.ApplyOptions
	var paths []string
	var yes bool
	c := &cobra.Command{
		Use:   "restore REF DIR",
		Short: "Make a directory equal to a version",
		Long: `Restore makes DIR equal to the version; what is right already is left as it
is. With --delete, what the version does not have is removed from DIR. As
another user than root it sets what it may, and exits 3 naming what it could
not.`,
		Example: `  doppel image restore head@latest /mnt/copy
  doppel image restore head@3 /srv/old --path etc/slurm --path srv/data`,
		Args: exactArgs("REF", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range paths {
				o.Paths = append(o.Paths, imagePath(p))
			}
			return runRestore(cmd.Context(), g, o, yes, args[0], args[1], cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.BoolVar(&o.Delete, "delete", false, "remove what the version does not have")
	f.BoolVar(&o.DryRun, "dry-run", false, "only print what would be done")
	f.BoolVar(&o.Full, "full", false, "read files that look right, too")
	f.StringArrayVar(&paths, "path", nil, "only this `path` and what is below it; repeatable")
	f.BoolVar(&yes, "yes", false, "do not ask before --delete")
	return c
}

func runRestore(ctx context.Context, g *globals, o imaging.ApplyOptions, yes bool, ref, dir string, out io.Writer) error {
	c, v, m, err := g.manifest(ctx, ref)
	if err != nil {
		return err
	}
	vault, err := c.Vault(ctx)
	if err != nil {
		return err
	}
	if o.Delete && !o.DryRun {
		if err := confirm(yes, fmt.Sprintf("remove everything from %s that %s does not have?", dir, v.Ref())); err != nil {
			return err
		}
	}
	if !o.DryRun {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	p := newProgress(g, out, "restore "+v.Ref())
	o.Log = newLog(os.Stderr)
	o.Progress = func(a imaging.ApplyProgress) {
		p.update(a.Bytes, a.BytesTotal, fmt.Sprintf("%d of %d files", a.Files, a.FilesTotal))
	}
	if o.DryRun && !g.json {
		o.Change = func(a imaging.ApplyChange) { fmt.Fprintf(out, "%-6s %s\n", a.Act, printable(a.Path)) }
	}
	report, err := imaging.Apply(ctx, m, vault, dir, o)
	p.finish()
	if err != nil {
		return err
	}
	if g.json {
		err = printEvent(out, "summary", report)
	} else {
		_, err = fmt.Fprintf(out, "%s: %d entries, %d written (%s), %d set right, %d removed, %d right already, in %.1f s\n", dir,
			report.Entries, report.Written, bytesText(report.BytesWritten), report.Fixed, report.Deleted, report.Unchanged, report.Seconds)
		for _, l := range report.Losses {
			fmt.Fprintf(out, "not set: %v\n", l)
		}
	}
	if err == nil && report.Lost > 0 {
		return codeError(exitPartial)
	}
	return err
}

func newImageCompare(g *globals) *cobra.Command {
	var role string
	c := &cobra.Command{
		Use:   "compare REF DIR",
		Short: "Compare a directory with a version, entry by entry",
		Long: `Compare reads everything below DIR and says in what it differs from the
version. With --role, DIR is the disk of an installed node of that role: what
an install and a first boot may change is told apart, by doppel's table of
identity files. Exit code 4 if anything else differs.`,
		Example: "  doppel image compare head@latest /mnt/node001 --role compute",
		Args:    exactArgs("REF", "DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			allowed := func(string, imaging.Difference) (string, bool) { return "", false }
			if role != "" {
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
	c.Flags().StringVar(&role, "role", "", "DIR is the disk of a node with this role: compute or head")
	return c
}

func newImageTag(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "tag REF NAME",
		Short:   "Give a version another name",
		Example: "  doppel image tag head@3 golden      # then: head@golden",
		Args:    exactArgs("REF", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, _, err := g.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			v, err := c.Tag(cmd.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s@%s is %s\n", v.Image, args[1], v.Ref())
			return nil
		},
	}
}

func newImageRm(g *globals) *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use:     "rm REF",
		Short:   "Remove a version, and what only it needed",
		Example: "  doppel image rm head@2",
		Args:    exactArgs("REF"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, v, err := g.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if dryRun {
				fmt.Fprintf(cmd.OutOrStdout(), "would remove %s\n", v.Ref())
				return nil
			}
			if user, err := nodeUsing(cmd.Context(), g, v.Ref()); err != nil {
				return err
			} else if user != "" {
				return &hintError{errors.New(user), "deploy another version there first"}
			}
			if err := confirm(yes, "remove "+v.Ref()+"?"); err != nil {
				return err
			}
			// By its number: a newer version may have become the latest.
			if _, err := c.Remove(cmd.Context(), v.Ref()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "removed %s\n", v.Ref())
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be removed")
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
