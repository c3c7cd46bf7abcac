package tarball

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"doppel/imaging"
	"doppel/imaging/store"

	"golang.org/x/sync/errgroup"
)

// ExportOptions say how to export.
type ExportOptions struct {
	Compression Compression
	Secrets     bool // also what is of class node and head, which an archive does not seal
	Progress    func(done, total int64)
	Log         *slog.Logger // nil: silent
}

// Why an entry is not in an archive.
const (
	LeftSocket   imaging.NoteKind = "socket"   // no archive can hold one
	LeftSecret   imaging.NoteKind = "secret"   // of class node or head, and not asked for
	LeftWithheld imaging.NoteKind = "withheld" // the key of the audience is not here
)

// ExportReport is what an export came to. Paths in it that are not UTF-8 are so
// in the archive; JSON has them with replacement characters.
type ExportReport struct {
	Image        string         `json:"image"`
	Version      int            `json:"version"`
	Digest       string         `json:"digest"`
	Entries      int64          `json:"entries"`       // in the archive
	BytesTotal   int64          `json:"bytes_total"`   // of its regular files
	BytesWritten int64          `json:"bytes_written"` // compressed
	LeftOut      []imaging.Note `json:"left_out"`
	Seconds      float64        `json:"seconds"`
}

// Export writes a version as a pax archive to w: in canonical order, and the
// same bytes every time. It takes memory for two windows of 16 MiB and a few
// blocks, whatever the size of files. The store's shared lock is held, so that nothing of the version goes
// away meanwhile. What cannot or may not be in the archive is left out and
// reported.
func Export(ctx context.Context, c *imaging.Catalog, ref string, w io.Writer, o ExportOptions) (*ExportReport, error) {
	started := time.Now()
	v, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	release, err := st.LockShared(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	m, err := c.Manifest(ctx, v)
	if err != nil {
		return nil, err
	}
	vault, err := c.Vault(ctx)
	if err != nil {
		return nil, err
	}
	x := &export{m: m, vault: vault, o: o, left: make(map[string]imaging.Note)}
	x.report = ExportReport{Image: v.Image, Version: v.Number, Digest: v.Digest, LeftOut: []imaging.Note{}}
	x.choose()
	counted := &memberWriter{w: w}
	packed, err := compressor(o.Compression, counted)
	if err != nil {
		return nil, err
	}
	if err := x.write(ctx, packed); err != nil {
		return nil, errors.Join(err, packed.Close())
	}
	if err := packed.Close(); err != nil {
		return nil, fmt.Errorf("write the archive: %w", err)
	}
	x.report.BytesWritten = counted.written
	x.report.Seconds = time.Since(started).Seconds()
	return &x.report, nil
}

// export is one run of Export.
type export struct {
	m      *imaging.Manifest
	vault  *store.Vault
	o      ExportOptions
	left   map[string]imaging.Note // by path
	report ExportReport

	out     *memberWriter
	windows chan *window
	free    chan *window
	window  *window // that is being written
	used    int     // chunks of it
	pending []byte  // of the chunk that is being written
	done    int64
}

// choose finds out what goes into the archive, and how much it is.
func (x *export) choose() {
	for _, e := range x.m.List.All() {
		if n, left := x.leaves(e); left {
			x.left[e.Path] = n
			x.report.LeftOut = append(x.report.LeftOut, n)
			continue
		}
		x.report.Entries++
		x.report.BytesTotal += e.Size
	}
}

// leaves tells whether and why an entry is left out.
func (x *export) leaves(e *imaging.Entry) (imaging.Note, bool) {
	n := imaging.Note{Path: e.Path}
	target, gone := x.left[e.Target]
	switch {
	case e.Kind == imaging.Socket:
		n.Kind, n.Detail = LeftSocket, "a tar archive cannot hold a socket; whoever listens on it makes it anew"
	case e.Kind == imaging.HardLink && gone:
		n.Kind, n.Detail = target.Kind, fmt.Sprintf("it is a hard link to %q, which is left out", e.Target)
	case e.Withheld:
		n.Kind, n.Detail = LeftWithheld, fmt.Sprintf("of class %s: the key for heads is not here", e.Class)
	case e.Class.Audience() == store.Head && !x.o.Secrets:
		n.Kind, n.Detail = LeftSecret, fmt.Sprintf("of class %s: an archive is not sealed; --with-secrets exports it", e.Class)
	default:
		return n, false
	}
	return n, true
}

// write writes the archive: one goroutine reads chunks ahead.
func (x *export) write(ctx context.Context, w io.Writer) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	x.out = &memberWriter{w: buf}
	x.windows, x.free, x.window = make(chan *window), make(chan *window, 2), newWindow()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return x.fetch(ctx) })
	g.Go(func() error {
		for _, e := range x.m.List.All() {
			if _, left := x.left[e.Path]; left {
				continue
			}
			if err := x.member(ctx, e); err != nil {
				return err
			}
		}
		if err := x.out.zeros(2 * blockSize); err != nil {
			return writeError(err)
		}
		return writeError(buf.Flush())
	})
	return g.Wait()
}

func writeError(err error) error {
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

// windowBytes is how much is read ahead at a time. Neighbours in canonical order
// need not be neighbours in the packs: of an image that was imported, or whose
// files changed one by one, they are not. Of each block that holds something of
// a window, all that the window wants is taken at once.
const windowBytes = 16 << 20

// window are chunks that are written one after the other.
type window struct {
	order []store.Ref
	sizes []uint32
	at    map[store.Ref]int // where in data
	data  []byte
}

func newWindow() *window {
	return &window{at: make(map[store.Ref]int), data: make([]byte, 0, windowBytes+blockRoom)}
}

// add makes room for a chunk.
func (w *window) add(ref store.Ref, size uint32) {
	w.order, w.sizes = append(w.order, ref), append(w.sizes, size)
	if _, known := w.at[ref]; !known {
		w.at[ref] = len(w.data)
		w.data = slices.Grow(w.data, int(size))[:len(w.data)+int(size)]
	}
}

// clear makes the window one to use again.
func (w *window) clear() {
	w.order, w.sizes, w.data = w.order[:0], w.sizes[:0], w.data[:0]
	clear(w.at)
}

// fetch reads all chunks, a window at a time: the next one while the last is
// being written.
func (x *export) fetch(ctx context.Context) error {
	w := newWindow()
	for _, e := range x.m.List.All() {
		if _, left := x.left[e.Path]; left {
			continue
		}
		for _, c := range e.Chunks {
			w.add(store.Ref{Audience: e.Class.Audience(), ID: c.ID}, c.Size)
			if len(w.data) < windowBytes {
				continue
			}
			if err := x.fill(ctx, w); err != nil {
				return err
			}
			select {
			case w = <-x.free:
				w.clear()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	if len(w.order) == 0 {
		return nil
	}
	return x.fill(ctx, w)
}

// fill reads the chunks of a window and hands it on.
func (x *export) fill(ctx context.Context, w *window) error {
	err := x.vault.Stream(ctx, w.order, 0, func(ref store.Ref, b []byte) error {
		copy(w.data[w.at[ref]:], b)
		return nil
	})
	if err != nil {
		return x.fetchError(err)
	}
	select {
	case x.windows <- w:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fetchError names a file that a chunk that is missing or wrong is of.
func (x *export) fetchError(err error) error {
	var missing *store.MissingError
	var corrupt *store.CorruptError
	var id store.ID
	switch {
	case errors.As(err, &missing):
		id = missing.ID
	case errors.As(err, &corrupt):
		id = corrupt.ID
	}
	for _, e := range x.m.List.All() {
		if slices.ContainsFunc(e.Chunks, func(c store.Chunk) bool { return c.ID == id }) {
			return fmt.Errorf("export %q: %w", e.Path, err)
		}
	}
	return fmt.Errorf("export: %w", err)
}

// next gives the chunk to write next. It is good until it asks again.
func (x *export) next(ctx context.Context) ([]byte, error) {
	for x.used == len(x.window.order) {
		x.free <- x.window
		select {
		case x.window = <-x.windows:
			x.used = 0
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	at, size := x.window.at[x.window.order[x.used]], int(x.window.sizes[x.used])
	x.used++
	return x.window.data[at:][:size:size], nil
}

// member writes one entry.
func (x *export) member(ctx context.Context, e *imaging.Entry) error {
	meta := e
	if e.Kind == imaging.HardLink {
		meta = x.m.List.Get(e.Target)
	}
	if e.Kind != imaging.Regular || e.Extents == nil {
		if err := x.out.headers(e, meta, e.Size, nil); err != nil {
			return writeError(err)
		}
		return x.data(ctx, e, []imaging.Extent{{Length: e.Size}})
	}
	runs, stored := tapeRuns(e)
	if err := x.out.headers(e, meta, stored, runs); err != nil {
		return writeError(err)
	}
	return x.data(ctx, e, runs)
}

// data writes what is in the runs of a file, zeros where these reach into a
// hole, and fills the last block.
func (x *export) data(ctx context.Context, e *imaging.Entry, runs []imaging.Extent) error {
	data := e.Data()
	var written int64
	for _, run := range runs {
		at, end := run.Offset, run.Offset+run.Length
		for len(data) > 0 && data[0].Offset < end {
			if err := x.out.zeros(data[0].Offset - at); err != nil {
				return writeError(err)
			}
			if err := x.copy(ctx, e, data[0].Length); err != nil {
				return err
			}
			at = data[0].Offset + data[0].Length
			data = data[1:]
		}
		if err := x.out.zeros(end - at); err != nil {
			return writeError(err)
		}
		written += run.Length
	}
	return writeError(x.out.zeros(-written & (blockSize - 1)))
}

// copy writes the next n bytes of the file's chunks.
func (x *export) copy(ctx context.Context, e *imaging.Entry, n int64) error {
	for n > 0 {
		if len(x.pending) == 0 {
			var err error
			if x.pending, err = x.next(ctx); err != nil {
				return err
			}
		}
		b := x.pending[:min(n, int64(len(x.pending)))]
		if _, err := x.out.Write(b); err != nil {
			return fmt.Errorf("export %q: %w", e.Path, writeError(err))
		}
		x.pending = x.pending[len(b):]
		n -= int64(len(b))
		if x.done += int64(len(b)); x.o.Progress != nil {
			x.o.Progress(x.done, x.report.BytesTotal)
		}
	}
	return nil
}
