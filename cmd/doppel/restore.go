package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"doppel/imaging"
)

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
		Args:              exactArgs("REF", "DIR"),
		ValidArgsFunction: complete(false, g.completeRef, completeFile),
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
	f.BoolVar(&yes, "yes", false, "do not ask before altering a directory that is not empty")
	return c
}

func runRestore(ctx context.Context, g *globals, o imaging.ApplyOptions, yes bool, ref, dir string, out io.Writer) error {
	c, v, m, release, err := g.reading(ctx, ref)
	if err != nil {
		return err
	}
	defer release()
	for _, p := range o.Paths {
		if _, ok := m.List.Find(p); !ok {
			return noSuchPath(v, p)
		}
	}
	vault, err := c.Vault(ctx)
	if err != nil {
		return err
	}
	if !o.DryRun {
		if err := prepareDir(ctx, o, yes, v, dir); err != nil {
			return err
		}
	}
	o.Log = newLog(os.Stderr)
	o.Change = changePrinter(g, o, out)
	p := newProgress(g, out, "restore "+v.Ref())
	o.Progress = func(a imaging.ApplyProgress) {
		p.update(a.Bytes, a.BytesTotal, fmt.Sprintf("%d of %d files", a.Files, a.FilesTotal))
	}
	report, err := imaging.Apply(ctx, m, vault, dir, o)
	p.finish()
	if err != nil {
		return err
	}
	return printRestore(out, g, o, dir, report)
}

// prepareDir makes the directory, or asks whether what is in it may be
// altered.
func prepareDir(ctx context.Context, o imaging.ApplyOptions, yes bool, v imaging.Version, dir string) error {
	there, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return err
	}
	if len(there) == 0 {
		return nil
	}
	question := fmt.Sprintf("replace what differs from %s in %s?", v.Ref(), printable(dir))
	if o.Delete {
		question = fmt.Sprintf("remove everything from %s that %s does not have, and replace what differs?", printable(dir), v.Ref())
	}
	return confirm(ctx, yes, question)
}

// changePrinter shows what a dry run would do.
func changePrinter(g *globals, o imaging.ApplyOptions, out io.Writer) func(imaging.ApplyChange) {
	switch {
	case !o.DryRun:
		return nil
	case g.json:
		return func(a imaging.ApplyChange) { _ = printEvent(out, "change", a) }
	}
	return func(a imaging.ApplyChange) { fmt.Fprintf(out, "%-6s %s\n", a.Act, printable(a.Path)) }
}

func printRestore(w io.Writer, g *globals, o imaging.ApplyOptions, dir string, r *imaging.ApplyReport) error {
	if g.json {
		if err := printEvent(w, "summary", r); err != nil {
			return err
		}
	} else {
		would := ""
		if o.DryRun {
			would = "dry run: "
		}
		fmt.Fprintf(w, "%s%s: %d entries, %d written (%s), %d set right, %d removed, %d right already, in %.1f s\n", would, printable(dir),
			r.Entries, r.Written, bytesText(r.BytesWritten), r.Fixed, r.Deleted, r.Unchanged, r.Seconds)
		for _, l := range r.Losses {
			fmt.Fprintf(w, "not set: %s\n", printable(fmt.Sprint(l)))
		}
		if more := r.Lost - int64(len(r.Losses)); more > 0 {
			fmt.Fprintf(w, "not set: … and %d more\n", more)
		}
		for _, p := range r.Withheld {
			fmt.Fprintf(w, "withheld, as the key for heads is not here: %s\n", printable(p))
		}
	}
	if r.Lost > 0 || len(r.Withheld) > 0 {
		return codeError(exitPartial)
	}
	return nil
}
