package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"doppel/imaging"
	"doppel/imaging/tarball"
)

func newImageImport(g *globals) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "import F.tar[.gz|.zst|.xz|.bz2]|-|dir:DIR",
		Short: "Make a version of what is in a tar archive or a directory",
		Long: `Import makes the tree that tar would unpack from an archive the next version of
an image; from "-", the archive is read from standard input. How it is compressed
is told by its content, not by its name. Owners are taken by number; secrets are
found and sealed as by doppel capture. Nothing is unpacked onto a disk.

An archive that is damaged, cut off, or names anything outside of its tree is
refused as a whole. dir:DIR captures a directory of this machine.

To import what another machine packs, without a file between:

  ssh root@old tar --xattrs --acls --sparse --format=pax --one-file-system \
    -C / -c . | doppel image import - --name old

Exit codes: 0 done (also when the image's latest version is this tree already,
which makes no new version); 3 done, but something could not be carried, as the
report says.`,
		Example: `  doppel image import backup.tar.zst --name head
  doppel image import - --name old < old.tar
  doppel image import dir:/srv/chroot --name chroot`,
		Args:              exactArgs("F.tar"),
		ValidArgsFunction: complete(false, completeFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				return usagef("give the image a name: --name head", "doppel image import: --name is missing")
			}
			return runImport(cmd.Context(), g, name, args[0], cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&name, "name", "", "`image` to add a version to")
	return c
}

func runImport(ctx context.Context, g *globals, name, from string, out io.Writer) error {
	if dir, ok := strings.CutPrefix(from, "dir:"); ok {
		return runCapture(ctx, g, captureFlags{name: name, root: dir}, local, out)
	}
	if strings.HasPrefix(from, "oci:") {
		return usagef("unpack the image into a directory and import that: dir:DIR", "%s: OCI images are not read", printable(from))
	}
	catalog, err := g.catalog()
	if err != nil {
		return err
	}
	f, err := openArchive(from)
	if err != nil {
		return err
	}
	defer f.Close() // it was only read from
	origin := printable(from)
	if from == "-" {
		origin = "standard input"
	} else if abs, err := filepath.Abs(from); err == nil {
		origin = printable(abs)
	}
	p := newProgress(g, out, "import "+name)
	report, err := tarball.Import(ctx, catalog, &waitingReader{ctx, f}, tarball.ImportOptions{
		Name: name, Origin: origin, Log: newLog(os.Stderr),
		Progress: func(c imaging.CaptureProgress) {
			p.update(c.BytesRead, 0, fmt.Sprintf("in %d entries; stored %s", c.Entries, bytesText(c.BytesSent)))
		},
	})
	p.finish()
	if err != nil && ctx.Err() != nil {
		return &hintError{err, "no image was changed; what has been read is kept, and not stored again by the same command"}
	}
	if err != nil {
		return err
	}
	if g.json {
		err = printEvent(out, "summary", report)
	} else {
		printImport(out, report)
	}
	if err == nil && report.Partial() {
		err = codeError(exitPartial)
	}
	return err
}

// openArchive opens what is to be imported.
func openArchive(from string) (*os.File, error) {
	if from == "-" {
		if term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, usagef("give it an archive: ssh root@old tar -c … | doppel image import - --name old", "standard input is a terminal")
		}
		return os.Stdin, nil
	}
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &hintError{err, "give the archive's file, - for standard input, or dir:DIR for a directory"}
	}
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err == nil && info.IsDir() {
		return nil, &hintError{errors.Join(fmt.Errorf("%s is a directory", printable(from)), f.Close()), "import it as dir:" + from}
	}
	return f, nil
}

// waitingReader reads from what may never have anything more to say, a pipe,
// without missing the end of ctx.
type waitingReader struct {
	ctx context.Context
	f   *os.File
}

func (r *waitingReader) Read(b []byte) (int, error) {
	for {
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		ready := []unix.PollFd{{Fd: int32(r.f.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 200); n != 0 && err != unix.EINTR {
			return r.f.Read(b) // also when it cannot be waited for
		}
	}
}

func printImport(w io.Writer, r *tarball.ImportReport) {
	printCapture(w, &r.CaptureReport)
	for _, n := range r.Notes {
		where := ""
		if n.Path != "" {
			where = printable(n.Path) + ": "
		}
		fmt.Fprintf(w, "note: %s%s\n", where, n.Detail)
	}
}

// exportFlags are the flags of doppel image export.
type exportFlags struct {
	output   string
	compress string
	secrets  bool
}

func newImageExport(g *globals) *cobra.Command {
	var o exportFlags
	c := &cobra.Command{
		Use:   "export REF -o F.tar[.zst|.gz]|-",
		Short: "Write a version as a tar archive",
		Long: `Export writes a version as a pax archive that GNU tar and bsdtar unpack with all
that it holds: tar --xattrs --xattrs-include='*' --acls -xpf. Of the flags of
chattr only bsdtar and doppel image import know, of quota projects only the
latter. The end of the file's name says how it is compressed. The same version
gives the same bytes.

An archive is not sealed: private keys and other secrets of heads are left out
unless --with-secrets is given. Sockets cannot be in an archive.

Exit codes: 0 done; 3 done, but something was left out, as the report says.`,
		Example: `  doppel image export head@3 -o head.tar.zst
  doppel image export head@3 -o - | ssh root@other tar --xattrs --acls -xpf - -C /mnt`,
		Args:              exactArgs("REF"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runExport(cmd.Context(), g, o, args[0], cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "", "`file` to write, or - for standard output")
	f.StringVar(&o.compress, "compress", "", "`how`: none, gzip or zstd (default: by the file's name)")
	f.BoolVar(&o.secrets, "with-secrets", false, "also export what is sealed for heads, in the clear")
	_ = c.RegisterFlagCompletionFunc("compress", oneOf("none", "gzip", "zstd"))
	return c
}

// compression is what the flags ask for.
func (o *exportFlags) compression() (tarball.Compression, error) {
	switch c := tarball.Compression(o.compress); c {
	case tarball.None, tarball.Gzip, tarball.Zstd:
		return c, nil
	case "":
		c, err := tarball.CompressionFor(o.output)
		if err != nil {
			return c, usagef("export with -o - and let the program compress, or name the file .tar, .tar.gz or .tar.zst", "%v", err)
		}
		return c, nil
	}
	return "", usagef("--compress takes none, gzip or zstd", "--compress: %q is not known", o.compress)
}

func runExport(ctx context.Context, g *globals, o exportFlags, ref string, out io.Writer) error {
	if o.output == "" {
		return usagef("say where to: -o head.tar.zst, or -o - for standard output", "doppel image export: -o is missing")
	}
	if strings.HasPrefix(o.output, "oci:") || strings.HasPrefix(o.output, "dir:") {
		return usagef("export a tar archive; doppel image restore makes a directory", "%s: only tar archives are written", printable(o.output))
	}
	how, err := o.compression()
	if err != nil {
		return err
	}
	catalog, err := g.catalog()
	if err != nil {
		return err
	}
	report := out
	if o.output == "-" {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return usagef("name a file, or pass it on: doppel image export REF -o - | …", "standard output is a terminal, which an archive would upset")
		}
		report = os.Stderr
	}
	p := newProgress(g, report, "export "+ref)
	var r *tarball.ExportReport
	err = writeArchive(o.output, func(w io.Writer) error {
		r, err = tarball.Export(ctx, catalog, ref, w, tarball.ExportOptions{
			Compression: how, Secrets: o.secrets, Log: newLog(os.Stderr),
			Progress: func(done, total int64) { p.update(done, total, "") },
		})
		return err
	})
	p.finish()
	if err != nil {
		return err
	}
	return printExport(report, g, o, r)
}

// writeArchive lets write write the file: it is there whole or not at all. What
// is no regular file, a pipe or a tape, is written to as it is.
func writeArchive(path string, write func(io.Writer) error) error {
	if path == "-" {
		return write(os.Stdout)
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		return &hintError{fmt.Errorf("%s is a directory", printable(path)), "name a file in it: -o " + filepath.Join(path, "head.tar.zst")}
	}
	if err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	// It may hold passwords' hashes, if not keys: for its owner alone.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup() // does nothing once it has its name
	if err := write(f); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}

func printExport(w io.Writer, g *globals, o exportFlags, r *tarball.ExportReport) error {
	if g.json {
		if err := printEvent(w, "summary", r); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "%s@%d: %d entries, %s, in an archive of %s, in %.1f s\n", r.Image, r.Version, r.Entries, bytesText(r.BytesTotal), bytesText(r.BytesWritten), r.Seconds)
		for i, n := range r.LeftOut {
			if i == 20 {
				fmt.Fprintf(w, "left out: … and %d more (--json lists all)\n", len(r.LeftOut)-i)
				break
			}
			fmt.Fprintf(w, "left out: %s: %s\n", printable(n.Path), printable(n.Detail))
		}
	}
	if len(r.LeftOut) > 0 {
		return codeError(exitPartial)
	}
	return nil
}
