package imaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// piece is one place that wants a chunk.
type piece struct {
	node   int32 // of the index
	extent int32 // of the node's data
	off    int64 // in the extent, where the chunk begins
	size   uint32
	next   int32 // another piece that wants the same chunk, or -1
}

// content is all that is to be written: which chunks, and what for.
type content struct {
	src     ChunkSource
	wanted  []uint32 // numbers of chunks, each once
	first   []int32  // by number: of the pieces that want it; -1: none
	pieces  []piece
	empty   []int32           // nodes of what takes no chunk
	copies  map[int32][]int32 // by node: those of files with the same content, to share its blocks
	doubles map[int32]bool    // nodes in copies
	done    atomic.Int64      // pieces that are written

	mu      sync.Mutex
	targets map[int32]*target // being made, or whole and waiting for their names
}

// add lays the chunks of a node's entry into its extents. A chunk may reach
// over several.
func (c *content) add(node int32, e *Entry) error {
	data := e.Data()
	audience := e.Class.Audience()
	extent, off := 0, int64(0)
	for _, chunk := range e.Chunks {
		number, ok := c.src.Find(store.Ref{Audience: audience, ID: chunk.ID})
		if !ok {
			return fmt.Errorf("reading content of %q: %w", e.Path, &store.MissingError{What: "chunk", ID: chunk.ID})
		}
		for off == data[extent].Length {
			extent, off = extent+1, 0
		}
		for int(number) >= len(c.first) {
			c.first = append(c.first, -1)
		}
		next := c.first[number]
		if next < 0 {
			c.wanted = append(c.wanted, number)
		}
		c.first[number] = int32(len(c.pieces))
		c.pieces = append(c.pieces, piece{node: node, extent: int32(extent), off: off, size: chunk.Size, next: next})
		for left := int64(chunk.Size); left > 0; {
			n := min(left, data[extent].Length-off)
			left, off = left-n, off+n
			if left > 0 {
				extent, off = extent+1, 0
			}
		}
	}
	return nil
}

// target gives the target of a node, made when it is first asked for.
func (a *applier) target(c *content, node int32) *target {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.targets[node]; t != nil {
		return t
	}
	n := &a.index.nodes[node]
	t := &target{n: n, e: a.index.entryNow(n)}
	t.regular = t.e.Kind == Regular
	t.left.Store(int64(len(t.e.Chunks)))
	if t.regular {
		t.bytes = dataLength(t.e)
	}
	c.targets[node] = t
	return t
}

// gather collects what is to be written. A chunk that the source does not have
// is told of here, when nothing has been changed yet.
func (a *applier) gather() error {
	c := &content{src: a.src, targets: map[int32]*target{}, copies: map[int32][]int32{}, doubles: map[int32]bool{}}
	a.content = c
	for n := range a.active() {
		if n.act != actWrite || n.isDir() {
			continue
		}
		before := len(c.pieces)
		if a.index.origin(n).kind == Regular {
			a.progress.FilesTotal++
			if a.shared(n, a.index.entry(n)) {
				continue
			}
			if err := c.add(n.at, a.index.entry(n)); err != nil {
				return err
			}
		}
		if len(c.pieces) == before {
			c.empty = append(c.empty, n.at)
		}
	}
	for _, p := range c.pieces {
		a.progress.BytesTotal += int64(p.size)
	}
	return nil
}

// write makes everything that is new, in one pass over the content, and puts
// it in place in batches.
func (a *applier) write() error {
	c := a.content
	if len(c.pieces) == 0 && len(c.empty) == 0 {
		return nil
	}
	err := a.pour(c)
	if err != nil {
		for _, t := range c.targets {
			a.discard(t)
		}
	}
	return err
}

// pour streams the content into the targets while those that are whole are put
// in place behind it.
func (a *applier) pour(c *content) error {
	g, ctx := errgroup.WithContext(a.ctx)
	whole := make(chan *target, maxBatch)
	g.Go(func() error {
		defer close(whole)
		for _, node := range c.empty {
			if err := a.makeEmpty(ctx, a.target(c, node), whole); err != nil {
				return err
			}
		}
		if err := a.reuse(ctx, c, whole); err != nil || len(c.wanted) == 0 {
			return err
		}
		return a.stream(ctx, c, whole)
	})
	g.Go(func() error {
		return a.settle(ctx, whole, func(t *target) {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.targets, t.n.at)
		})
	})
	return g.Wait()
}

func (a *applier) stream(ctx context.Context, c *content, whole chan<- *target) error {
	err := a.src.StreamNumbers(ctx, c.wanted, a.workers, func(number uint32, b []byte) error {
		first := int32(-1)
		if int(number) < len(c.first) {
			first = c.first[number]
		}
		if first < 0 {
			return fmt.Errorf("chunk %d was not asked for", number)
		}
		return a.putAll(ctx, c, number, b, whole)
	})
	if err != nil {
		return a.explain(c, err)
	}
	if n := int64(len(c.pieces)) - c.done.Load(); n > 0 {
		return fmt.Errorf("the store gave only part of the content: %d pieces are missing", n)
	}
	return nil
}

// explain adds to a bad chunk's error what it is needed for.
func (a *applier) explain(c *content, err error) error {
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
	var nodes []int32
	for _, audience := range []store.Audience{store.Cluster, store.Head} {
		number, known := c.src.Find(store.Ref{Audience: audience, ID: id})
		if !known || int(number) >= len(c.first) {
			continue
		}
		for i := c.first[number]; i >= 0; i = c.pieces[i].next {
			nodes = append(nodes, c.pieces[i].node)
		}
	}
	if len(nodes) == 0 {
		return fmt.Errorf("reading content: %w", err)
	}
	path := a.index.nodes[nodes[len(nodes)-1]].path()
	if len(nodes) == 1 {
		return fmt.Errorf("reading content of %q: %w", path, err)
	}
	return fmt.Errorf("reading content of %q (and in %d more places): %w", path, len(nodes)-1, err)
}

// putAll writes a chunk at all places that want it.
func (a *applier) putAll(ctx context.Context, c *content, number uint32, b []byte, whole chan<- *target) error {
	for i := c.first[number]; i >= 0; i = c.pieces[i].next {
		if err := a.put(ctx, c, number, &c.pieces[i], b, whole); err != nil {
			return err
		}
	}
	return nil
}

// put writes a chunk at one place, and finishes the file if it was the last.
func (a *applier) put(ctx context.Context, c *content, number uint32, p *piece, b []byte, whole chan<- *target) error {
	t := a.target(c, p.node)
	if len(b) != int(p.size) {
		return &store.CorruptError{What: "chunk", ID: c.id(number, t.e), Detail: fmt.Sprintf("it is %d bytes long and %q wants %d", len(b), t.n.path(), p.size)}
	}
	dir, err := a.tree.hold(t.n.parent)
	if err != nil {
		return err
	}
	defer a.tree.release(t.n.parent)
	fd, err := a.open(t, dir)
	if err != nil {
		return &os.PathError{Op: "create", Path: t.n.path(), Err: err}
	}
	err = writePiece(fd, t.e, p, b)
	if cerr := unix.Close(fd); err == nil {
		err = cerr // ENOSPC and EDQUOT on network file systems
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: t.n.path(), Err: err}
	}
	a.advance(0, int64(len(b)))
	c.done.Add(1)
	if t.left.Add(-1) > 0 {
		return nil
	}
	return a.complete(ctx, t, dir, whole)
}

// id is the name of a chunk of e, by its number.
func (c *content) id(number uint32, e *Entry) store.ID {
	for _, chunk := range e.Chunks {
		if n, ok := c.src.Find(store.Ref{Audience: e.Class.Audience(), ID: chunk.ID}); ok && n == number {
			return chunk.ID
		}
	}
	return store.ID{}
}

// writePiece lays b into the extents from p on.
func writePiece(fd int, e *Entry, p *piece, b []byte) error {
	data := e.Data()
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
	if t.regular {
		fd, err := a.open(t, dir)
		if err == nil {
			err = unix.Close(fd)
		}
		if err != nil {
			return &os.PathError{Op: "create", Path: t.n.path(), Err: err}
		}
		return a.complete(ctx, t, dir, whole)
	}
	if err := t.makeSpecial(dir); err != nil {
		if (t.e.Kind == CharDevice || t.e.Kind == BlockDevice) && !a.strict {
			a.unmade[t.n] = struct{}{}
			return a.tolerate(t.n.path(), t.e.Kind.String(), err)
		}
		return &os.PathError{Op: "create", Path: t.n.path(), Err: err}
	}
	return a.complete(ctx, t, dir, whole)
}

func (a *applier) complete(ctx context.Context, t *target, dir int, whole chan<- *target) error {
	for _, node := range a.content.copies[t.n.at] {
		if err := a.share(ctx, t, dir, node, whole); err != nil {
			return err
		}
	}
	if err := a.finish(t, dir); err != nil {
		return err
	}
	t.e = nil // what waits for its name takes little room
	select {
	case whole <- t:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
