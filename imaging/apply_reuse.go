package imaging

import (
	"context"
	"slices"
	"sync"
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
	r := &reusing{a: a, c: c, taken: make([]atomic.Bool, len(c.first)), whole: whole}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(a.workers)
	for _, n := range olds {
		for _, part := range r.parts(n) {
			g.Go(func() error { return part(ctx) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	c.wanted = slices.DeleteFunc(c.wanted, func(number uint32) bool { return r.taken[number].Load() })
	return nil
}

// reusing is what those know together who take chunks from files.
type reusing struct {
	a     *applier
	c     *content
	taken []atomic.Bool // by number of the chunk
	whole chan<- *target
	bufs  sync.Pool // of *[]byte
}

func (s *seen) reusable() bool { return s != nil && s.kind == Regular && s.room >= reuseLeast }

const (
	// partBytes is how much of a file one goroutine looks at in one go.
	partBytes = 16 << 20
	// A file of which no more than this part, and so many bytes, is not where
	// it was, is not cut to look for them: they may be in there elsewhere, but
	// to read all of it again takes longer than to fetch them.
	shiftedPart  = 8
	shiftedBytes = 8 << 20
)

// parts is the work that a file makes, for several goroutines where it is large.
// What has been changed in place or appended to has most of its chunks where
// the file to be made has them, and they are looked for there first.
func (r *reusing) parts(n *treeNode) []func(context.Context) error {
	cut := func(ctx context.Context) error { return r.cutFile(ctx, n) }
	if n.at == strange || n.seen.room < partBytes/2 {
		return []func(context.Context) error{cut}
	}
	var spans [][]placed // of chunks
	var span []placed
	var bytes, total int64
	e := r.a.index.entryNow(n)
	for _, p := range placedChunks(e) {
		if p.number, p.known = r.c.src.Find(store.Ref{Audience: e.Class.Audience(), ID: p.ID}); !p.known {
			continue
		}
		span, bytes, total = append(span, p), bytes+int64(p.Size), total+int64(p.Size)
		if bytes >= partBytes {
			spans, span, bytes = append(spans, span), nil, 0
		}
	}
	if len(span) > 0 {
		spans = append(spans, span)
	}
	if len(spans) == 0 {
		return []func(context.Context) error{cut}
	}
	var elsewhere atomic.Int64
	var left atomic.Int32
	left.Store(int32(len(spans)))
	var parts []func(context.Context) error
	for _, span := range spans {
		parts = append(parts, func(ctx context.Context) error {
			missed, err := r.inPlace(ctx, n, span)
			elsewhere.Add(missed)
			if left.Add(-1) > 0 || err != nil {
				return err
			}
			if missed := elsewhere.Load(); missed == 0 || missed <= shiftedBytes && missed <= total/shiftedPart {
				return nil
			}
			return cut(ctx)
		})
	}
	return parts
}

// placed is a chunk of a file, and where in the file it is.
type placed struct {
	store.Chunk
	at     int64
	number uint32
	known  bool
}

// placedChunks are the chunks of a file that lie in one extent each.
func placedChunks(e *Entry) []placed {
	var out []placed
	data := e.Data()
	off := int64(0) // in the first of data
	for _, c := range e.Chunks {
		for len(data) > 0 && off == data[0].Length {
			data, off = data[1:], 0
		}
		if len(data) == 0 {
			return out
		}
		left := int64(c.Size)
		if off+left <= data[0].Length {
			out = append(out, placed{Chunk: c, at: data[0].Offset + off})
		}
		for left > 0 && len(data) > 0 {
			n := min(left, data[0].Length-off)
			if left, off = left-n, off+n; left > 0 {
				data, off = data[1:], 0
			}
		}
	}
	return out
}

// openOld opens a file that gives way; not ok: what it has is to come from
// elsewhere.
func (r *reusing) openOld(n *treeNode) (f *localFile, size int64, ok bool, err error) {
	dir, err := r.a.tree.hold(n.parent)
	if err != nil {
		return nil, 0, false, err
	}
	defer r.a.tree.release(n.parent)
	fd, err := openQuiet(dir, n.name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, 0, false, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, 0, false, nil
	}
	return &localFile{fd: fd}, st.Size, true, nil
}

// inPlace takes those of the chunks that a file has where they are to be, and
// tells how many bytes of the others are wanted still.
func (r *reusing) inPlace(ctx context.Context, n *treeNode, chunks []placed) (missed int64, err error) {
	f, size, ok, err := r.openOld(n)
	if err != nil || !ok {
		return 0, err
	}
	defer unix.Close(f.fd)
	buf, _ := r.bufs.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	defer r.bufs.Put(buf)
	for _, p := range chunks {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if int(p.number) >= len(r.taken) || r.c.first[p.number] < 0 || r.taken[p.number].Load() {
			continue
		}
		*buf = slices.Grow((*buf)[:0], int(p.Size))
		b := (*buf)[:p.Size]
		if p.at+int64(p.Size) > size {
			missed += int64(p.Size)
			continue
		}
		if _, err := preadAll(f.fd, b, p.at); err != nil || store.Sum(b) != p.ID {
			missed += int64(p.Size)
			continue
		}
		if err := r.take(ctx, p.number, b); err != nil {
			return 0, err
		}
	}
	return missed, nil
}

// cutFile takes what is wanted from one file, wherever it is in there.
func (r *reusing) cutFile(ctx context.Context, n *treeNode) error {
	f, size, ok, err := r.openOld(n)
	if err != nil || !ok {
		return err
	}
	defer unix.Close(f.fd)
	extents, err := f.Extents(ctx, size)
	if err != nil {
		return nil
	}
	var chunker Chunker
	chunker.Reset(&extentReader{ctx: ctx, file: f, extents: (&Entry{Size: size, Extents: extents}).Data()})
	for {
		b, err := chunker.Next()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return nil // io.EOF, or what can be had from the store
		}
		id := store.Sum(b)
		for _, audience := range []store.Audience{store.Cluster, store.Head} {
			number, known := r.c.src.Find(store.Ref{Audience: audience, ID: id})
			if !known || int(number) >= len(r.c.first) || r.c.first[number] < 0 {
				continue
			}
			if err := r.take(ctx, number, b); err != nil {
				return err
			}
		}
	}
}

// take puts a chunk, whose bytes were verified, wherever it is wanted.
func (r *reusing) take(ctx context.Context, number uint32, b []byte) error {
	if r.taken[number].Swap(true) {
		return nil
	}
	a, c := r.a, r.c
	if err := a.putAll(ctx, c, number, b, r.whole); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := c.first[number]; i >= 0; i = c.pieces[i].next {
		a.report.BytesReused += int64(c.pieces[i].size)
	}
	return nil
}
