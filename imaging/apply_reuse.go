package imaging

import (
	"context"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// reuseLeast is the size from which a file that gives way is read for what of
// it is wanted: it saves the store, which may be far away, little to be spared
// a smaller one.
const reuseLeast = 128 << 10

// reuse takes chunks from files of the tree that are to be replaced or removed:
// most of a file that was changed is in the one before it, and all of one that
// was renamed. Files are cut as a capture cuts them, so that what is the same
// comes to the same chunks. What is taken is no longer wanted; what cannot be
// read is not missed.
func (a *applier) reuse(ctx context.Context, c *content, whole chan<- *target) error {
	var olds []*treeNode
	for n := range a.active() {
		if n.act == actWrite && !n.isDir() && a.index.origin(n).kind == Regular && n.seen.reusable() {
			olds = append(olds, n)
		}
	}
	// Of what is only removed nothing need be wanted: no more of it is read than
	// is.
	var wanted int64
	for _, number := range c.wanted {
		wanted += int64(c.pieces[c.first[number]].size)
	}
	for _, x := range a.extras {
		if x.seen.reusable() && x.seen.room <= wanted {
			olds = append(olds, x)
			wanted -= x.seen.room
		}
	}
	if len(olds) == 0 || len(c.wanted) == 0 {
		return nil
	}
	taken := make([]atomic.Bool, len(c.first))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(a.workers)
	for _, n := range olds {
		g.Go(func() error { return a.reuseFile(ctx, c, n, taken, whole) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.wanted = slices.DeleteFunc(c.wanted, func(number uint32) bool { return taken[number].Load() })
	return nil
}

func (s *seen) reusable() bool { return s != nil && s.kind == Regular && s.room >= reuseLeast }

// reuseFile takes what is wanted from one file.
func (a *applier) reuseFile(ctx context.Context, c *content, n *treeNode, taken []atomic.Bool, whole chan<- *target) error {
	dir, err := a.tree.hold(n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(n.parent)
	fd, err := openQuiet(dir, n.name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	f := &localFile{fd: fd}
	extents, err := f.Extents(ctx, st.Size)
	if err != nil {
		return nil
	}
	var chunker Chunker
	chunker.Reset(&extentReader{ctx: ctx, file: f, extents: (&Entry{Size: st.Size, Extents: extents}).Data()})
	for {
		b, err := chunker.Next()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return nil // io.EOF, or what can be had from the store
		}
		if err := a.reuseChunk(ctx, c, b, taken, whole); err != nil {
			return err
		}
	}
}

// reuseChunk puts b wherever it is wanted.
func (a *applier) reuseChunk(ctx context.Context, c *content, b []byte, taken []atomic.Bool, whole chan<- *target) error {
	id := store.Sum(b)
	for _, audience := range []store.Audience{store.Cluster, store.Head} {
		number, known := c.src.Find(store.Ref{Audience: audience, ID: id})
		if !known || int(number) >= len(c.first) || c.first[number] < 0 || taken[number].Swap(true) {
			continue
		}
		if err := a.putAll(ctx, c, number, b, whole); err != nil {
			return err
		}
		a.mu.Lock()
		for i := c.first[number]; i >= 0; i = c.pieces[i].next {
			a.report.BytesReused += int64(c.pieces[i].size)
		}
		a.mu.Unlock()
	}
	return nil
}
