package imaging

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// piece is one place that wants a chunk.
type piece struct {
	target *target
	extent int   // of the target's data
	off    int64 // in the extent, where the chunk begins
	size   uint32
	next   int32 // another piece that wants the same chunk, or -1
}

// content is all that is to be written: which chunks, and what for.
type content struct {
	refs   []store.Ref
	first  map[store.Ref]int32 // into pieces
	pieces []piece
}

// add lays the chunks of t into its extents. A chunk may reach over several.
func (c *content) add(t *target) {
	data := t.e.Data()
	audience := t.e.Class.Audience()
	extent, off := 0, int64(0)
	for _, chunk := range t.e.Chunks {
		for off == data[extent].Length {
			extent, off = extent+1, 0
		}
		ref := store.Ref{Audience: audience, ID: chunk.ID}
		next, known := c.first[ref]
		if !known {
			next = -1
			c.refs = append(c.refs, ref)
		}
		c.first[ref] = int32(len(c.pieces))
		c.pieces = append(c.pieces, piece{target: t, extent: extent, off: off, size: chunk.Size, next: next})
		t.bytes += int64(chunk.Size)
		for left := int64(chunk.Size); left > 0; {
			n := min(left, data[extent].Length-off)
			left, off = left-n, off+n
			if left > 0 {
				extent, off = extent+1, 0
			}
		}
	}
	t.left.Store(int64(len(t.e.Chunks)))
}

// write makes everything that is new, in one pass over the content, and puts
// it in place in batches.
func (a *applier) write() error {
	c := &content{first: map[store.Ref]int32{}}
	var targets, empty []*target
	for _, n := range a.active {
		if n.act != actWrite || n.isDir() {
			continue
		}
		t := &target{n: n, e: n.origin().e}
		targets = append(targets, t)
		if t.e.Kind == Regular {
			a.progress.FilesTotal++
			c.add(t)
		}
		if len(t.e.Chunks) == 0 {
			empty = append(empty, t)
		}
	}
	if len(targets) == 0 {
		return nil
	}
	for _, p := range c.pieces {
		a.progress.BytesTotal += int64(p.size)
	}
	err := a.pour(c, empty)
	if err != nil {
		for _, t := range targets {
			a.discard(t)
		}
	}
	return err
}

// pour streams the content into the targets while those that are whole are put
// in place behind it.
func (a *applier) pour(c *content, empty []*target) error {
	g, ctx := errgroup.WithContext(a.ctx)
	whole := make(chan *target, maxBatch)
	g.Go(func() error {
		defer close(whole)
		for _, t := range empty {
			if err := a.makeEmpty(ctx, t, whole); err != nil {
				return err
			}
		}
		if len(c.refs) == 0 {
			return nil
		}
		return a.stream(ctx, c, whole)
	})
	g.Go(func() error { return a.settle(ctx, whole) })
	return g.Wait()
}

func (a *applier) stream(ctx context.Context, c *content, whole chan<- *target) error {
	err := a.src.Stream(ctx, c.refs, a.workers, func(ref store.Ref, b []byte) error {
		first, wanted := c.first[ref]
		if !wanted {
			return fmt.Errorf("chunk %s was not asked for", ref.ID)
		}
		for i := first; i >= 0; i = c.pieces[i].next {
			if err := a.put(ctx, &c.pieces[i], ref, b, whole); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return c.explain(err)
	}
	for i := range c.pieces {
		if t := c.pieces[i].target; t.left.Load() > 0 {
			return fmt.Errorf("writing %q: the store gave only part of its content", t.n.e.Path)
		}
	}
	return nil
}

// explain adds to a bad chunk's error what it is needed for.
func (c *content) explain(err error) error {
	var id store.ID
	var missing *store.MissingError
	var corrupt *store.CorruptError
	switch {
	case errors.As(err, &corrupt):
		id = corrupt.ID
	case errors.As(err, &missing):
		id = missing.ID
	default:
		return err
	}
	var paths []string
	for _, audience := range []store.Audience{store.Cluster, store.Head} {
		i, wanted := c.first[store.Ref{Audience: audience, ID: id}]
		for wanted && i >= 0 {
			paths = append(paths, c.pieces[i].target.n.e.Path)
			i = c.pieces[i].next
		}
	}
	switch len(paths) {
	case 0:
		return fmt.Errorf("reading content: %w", err)
	case 1:
		return fmt.Errorf("reading content of %q: %w", paths[0], err)
	}
	return fmt.Errorf("reading content of %q (and in %d more places): %w", paths[len(paths)-1], len(paths)-1, err)
}

// put writes a chunk at one place, and finishes the file if it was the last.
func (a *applier) put(ctx context.Context, p *piece, ref store.Ref, b []byte, whole chan<- *target) error {
	t := p.target
	if len(b) != int(p.size) {
		return &store.CorruptError{What: "chunk", ID: ref.ID, Detail: fmt.Sprintf("it is %d bytes long and %q wants %d", len(b), t.n.e.Path, p.size)}
	}
	dir, err := a.tree.hold(t.n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(t.n.parent)
	fd, err := t.open(dir)
	if err != nil {
		return &os.PathError{Op: "create", Path: t.n.e.Path, Err: err}
	}
	err = writePiece(fd, p, b)
	if cerr := unix.Close(fd); err == nil {
		err = cerr // ENOSPC and EDQUOT on network file systems
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: t.n.e.Path, Err: err}
	}
	a.advance(0, int64(len(b)))
	if t.left.Add(-1) > 0 {
		return nil
	}
	return a.complete(ctx, t, dir, whole)
}

// writePiece lays b into the extents from p on.
func writePiece(fd int, p *piece, b []byte) error {
	data := p.target.e.Data()
	off := p.off
	for i := p.extent; len(b) > 0; i++ {
		x := data[i]
		n := min(int64(len(b)), x.Length-off)
		if err := pwriteAll(fd, b[:n], x.Offset+off); err != nil {
			return err
		}
		b, off = b[n:], 0
	}
	return nil
}

// makeEmpty makes what has no content: symbolic links and devices, empty
// files, and files that are all hole.
func (a *applier) makeEmpty(ctx context.Context, t *target, whole chan<- *target) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, err := a.tree.hold(t.n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(t.n.parent)
	if t.e.Kind == Regular {
		fd, err := t.open(dir)
		if err == nil {
			err = unix.Close(fd)
		}
		if err != nil {
			return &os.PathError{Op: "create", Path: t.n.e.Path, Err: err}
		}
		return a.complete(ctx, t, dir, whole)
	}
	if err := t.makeSpecial(dir); err != nil {
		if (t.e.Kind == CharDevice || t.e.Kind == BlockDevice) && !a.strict {
			a.unmade[t.n] = struct{}{}
			return a.tolerate(t.n.e.Path, t.e.Kind.String(), err)
		}
		return &os.PathError{Op: "create", Path: t.n.e.Path, Err: err}
	}
	return a.complete(ctx, t, dir, whole)
}

func (a *applier) complete(ctx context.Context, t *target, dir int, whole chan<- *target) error {
	if err := a.finish(t, dir); err != nil {
		return err
	}
	select {
	case whole <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
