package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/imaging/store"
)

func newImageFiles(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "files REF [PATH]",
		Short: "List the entries of a version, or of a directory in it",
		Example: `  doppel image files head@latest etc/ssh
  doppel image files head@latest --json | jq '.[] | select(.class == "head") | .path'`,
		Args:              rangeArgs(1, "REF", "PATH"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, v, m, err := g.manifest(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			below := "."
			if len(args) == 2 {
				below = imagePath(args[1])
			}
			if _, ok := m.List.Find(below); !ok {
				return noSuchPath(v, below)
			}
			list := entriesBelow(m, below)
			if g.json {
				return printEntriesJSON(cmd.OutOrStdout(), list)
			}
			for e := range list {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), entryLine(e)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func noSuchPath(v imaging.Version, path string) error {
	return &hintError{fmt.Errorf("%s has no %s", v.Ref(), printable(path)), fmt.Sprintf("doppel image files %s lists what it has", v.Ref())}
}

// entriesBelow are the entries at a path and below it.
func entriesBelow(m *imaging.Manifest, path string) iter.Seq[*imaging.Entry] {
	return func(yield func(*imaging.Entry) bool) {
		at, _ := m.List.Find(path)
		for _, e := range m.List.From(at) {
			if path != "." && e.Path != path && !strings.HasPrefix(e.Path, path+"/") || !yield(e) {
				return
			}
		}
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

// printEntriesJSON prints one document, an entry a line: a head has some
// hundred thousand.
func printEntriesJSON(w io.Writer, list iter.Seq[*imaging.Entry]) error {
	before := "[\n"
	for e := range list {
		f := fileListed{Path: e.Path, Kind: e.Kind.String(), Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID,
			MTime: time.Unix(e.MTime.Sec, int64(e.MTime.Nsec)).UTC().Format(time.RFC3339Nano), Size: e.Size, Target: e.Target}
		if e.Class != imaging.ClassNone {
			f.Class = e.Class.String()
		}
		b, err := json.Marshal(f)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", before, b); err != nil {
			return err
		}
		before = ",\n"
	}
	_, err := fmt.Fprintln(w, "\n]")
	return err
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
func imagePath(p string) string { return path.Clean(strings.TrimLeft(p, "/")) }

func newImageCat(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "cat REF PATH",
		Short:             "Print a file of a version",
		Example:           "  doppel image cat head@3 etc/fstab",
		Args:              exactArgs("REF", "PATH"),
		ValidArgsFunction: complete(false, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, v, m, release, err := g.reading(ctx, args[0])
			if err != nil {
				return err
			}
			defer release()
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
	e := m.List.Get(path)
	if e == nil {
		return nil, noSuchPath(v, path)
	}
	switch e.Kind {
	case imaging.Regular:
		return e, nil
	case imaging.HardLink:
		return findFile(m, v, e.Target)
	case imaging.Symlink:
		return nil, &hintError{fmt.Errorf("%s is a symbolic link", printable(path)), "it leads to " + printable(e.Target)}
	}
	return nil, fmt.Errorf("%s is a %s, not a file", printable(path), e.Kind)
}

// catEntry writes a file's content, holes as zeros.
func catEntry(ctx context.Context, w io.Writer, vault *store.Vault, e *imaging.Entry) error {
	_, err := io.Copy(w, readEntry(ctx, vault, e))
	return err
}

// entryReader reads a file's content, holes as zeros.
type entryReader struct {
	ctx     context.Context
	vault   *store.Vault
	e       *imaging.Entry
	data    []imaging.Extent // that end behind at
	chunks  []store.Chunk
	pending []byte // of the last chunk
	at      int64
}

func readEntry(ctx context.Context, vault *store.Vault, e *imaging.Entry) *entryReader {
	return &entryReader{ctx: ctx, vault: vault, e: e, data: e.Data(), chunks: e.Chunks}
}

func (r *entryReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	if r.at == r.e.Size {
		return 0, io.EOF
	}
	for len(r.data) > 0 && r.at == r.data[0].Offset+r.data[0].Length {
		r.data = r.data[1:]
	}
	end := r.e.Size // of the hole
	if len(r.data) > 0 {
		end = r.data[0].Offset
	}
	if r.at < end {
		b = b[:min(int64(len(b)), end-r.at)]
		clear(b)
		r.at += int64(len(b))
		return len(b), nil
	}
	if len(r.pending) == 0 {
		if err := r.fetch(); err != nil {
			return 0, err
		}
	}
	n := copy(b[:min(int64(len(b)), r.data[0].Offset+r.data[0].Length-r.at)], r.pending)
	r.pending = r.pending[n:]
	r.at += int64(n)
	return n, nil
}

// fetch reads the next chunk.
func (r *entryReader) fetch() (err error) {
	if len(r.chunks) == 0 {
		return fmt.Errorf("%s: its chunks end before its data", printable(r.e.Path))
	}
	r.pending, err = r.vault.Chunk(r.ctx, store.Ref{Audience: r.e.Class.Audience(), ID: r.chunks[0].ID})
	if err != nil {
		return fmt.Errorf("%s: %w", printable(r.e.Path), err)
	}
	r.chunks = r.chunks[1:]
	return nil
}
