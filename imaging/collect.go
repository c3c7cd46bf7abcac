package imaging

import (
	"context"
	"fmt"
	"time"

	"doppel/imaging/store"
)

// collector is the stage that brings items back into one line: it makes
// entries of them, asks which chunks are missing, and fills blocks.
type collector struct {
	*scan
	reader reader

	entries []Entry
	stamps  []Stamp
	total   ScanProgress
	shown   time.Time

	refs  []store.Ref // chunks the sink is to be asked about
	sizes []uint32
	data  []byte // their bytes
	open  map[store.Audience]*rawBlock
}

func (s *scan) collect(ctx context.Context) error {
	c := &collector{scan: s, open: make(map[store.Audience]*rawBlock), data: make([]byte, 0, askBytes+maxChunk)}
	for it := range s.items {
		err := c.item(ctx, it)
		it.letGo()
		if err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.ask(ctx); err != nil {
		return err
	}
	for _, aud := range []store.Audience{store.Cluster, store.Head} {
		if err := c.seal(ctx, aud); err != nil {
			return err
		}
	}
	if err := c.flush(ctx); err != nil {
		return err
	}
	c.show()
	return nil
}

// item takes the next item.
func (c *collector) item(ctx context.Context, it *item) error {
	if it.same {
		if err := c.flush(ctx); err != nil {
			return err
		}
		return c.sink.Same(ctx, it.node.Path)
	}
	if it.also && !it.link.broken {
		return c.emit(ctx, it, Entry{
			Path:   it.node.Path,
			Kind:   HardLink,
			Target: it.link.path,
			Class:  max(it.link.class, it.node.Class),
		}, Stamp{})
	}
	found := it.node
	if it.node.Kind == Regular {
		if err := c.file(ctx, it); err != nil {
			return err
		}
	}
	if it.link != nil {
		// The names to come are names of this file only if it is what was
		// read; otherwise the next of them takes its place.
		it.link.broken = it.gone || it.node.Dev != found.Dev || it.node.Ino != found.Ino
		it.link.path, it.link.class = it.node.Path, it.node.Class
	}
	if it.gone {
		return c.remarks(ctx, it)
	}
	if it.node.Kind == Regular {
		c.total.Bytes += it.node.Size
	}
	var stamp Stamp
	if it.node.Kind == Regular && !it.loose && !c.late(it.node.MTime) && !c.late(it.node.CTime) {
		stamp = it.node.stamp()
	}
	return c.emit(ctx, it, it.node.Entry, stamp)
}

// file brings the content of a regular file into its entry.
func (c *collector) file(ctx context.Context, it *item) error {
	if it.content != nil {
		it.node.Extents, it.node.Chunks = it.content.Extents, it.content.Chunks
		it.node.Flags, it.node.Project, it.node.Xattrs = it.content.Flags, it.content.Project, it.content.Xattrs
		return nil
	}
	if it.node.Size == 0 {
		return nil
	}
	if it.done != nil {
		select {
		case <-it.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		defer c.memory.Release(it.memory)
	}
	if it.read == nil && !it.gone {
		got, err := c.readFile(ctx, it, &c.reader, maxSize, func() {}, c.take)
		if err != nil {
			return err
		}
		it.read = got
	} else if err := c.takeAll(ctx, it.read); err != nil {
		return err
	}
	if it.gone {
		return nil
	}
	detected := it.read.node.Class != it.node.Class
	it.node = it.read.node
	it.node.Extents, it.node.Chunks = it.read.content.Extents, it.read.content.Chunks
	if detected {
		it.note(NoteSecret, DetectedSecret)
	}
	return nil
}

// takeAll takes the chunks of a file that was read ahead.
func (c *collector) takeAll(ctx context.Context, got *reading) error {
	b := got.data
	for _, chunk := range got.content.Chunks {
		if err := c.take(ctx, &got.node, chunk, b[:chunk.Size]); err != nil {
			return err
		}
		b = b[chunk.Size:]
	}
	return nil
}

// take takes a chunk.
func (c *collector) take(ctx context.Context, node *Node, chunk store.Chunk, b []byte) error {
	ref := store.Ref{Audience: node.Class.Audience(), ID: chunk.ID}
	if !c.flying.start(ref) {
		return nil
	}
	c.refs = append(c.refs, ref)
	c.sizes = append(c.sizes, chunk.Size)
	c.data = append(c.data, b...)
	if len(c.data) >= askBytes || len(c.refs) >= askChunks {
		return c.ask(ctx)
	}
	return nil
}

// ask asks the sink which of the chunks in hand it lacks, and puts these into
// blocks.
func (c *collector) ask(ctx context.Context) error {
	if len(c.refs) == 0 {
		return nil
	}
	missing, err := c.sink.Missing(ctx, c.refs)
	if err != nil {
		return err
	}
	if len(missing) != len(c.refs) {
		return fmt.Errorf("asked about %d chunks, the sink answered about %d", len(c.refs), len(missing))
	}
	b := c.data
	for i, ref := range c.refs {
		chunk := store.Chunk{ID: ref.ID, Size: c.sizes[i]}
		if missing[i] {
			if err := c.pack(ctx, ref.Audience, chunk, b[:chunk.Size]); err != nil {
				return err
			}
		} else {
			c.flying.cancel(ref)
		}
		b = b[chunk.Size:]
	}
	c.refs, c.sizes, c.data = c.refs[:0], c.sizes[:0], c.data[:0]
	c.showNow()
	return nil
}

// pack puts a chunk into the audience's open block.
func (c *collector) pack(ctx context.Context, aud store.Audience, chunk store.Chunk, b []byte) error {
	block := c.open[aud]
	if block == nil {
		block = &rawBlock{audience: aud, plain: take(c.spare)}
		c.open[aud] = block
	}
	block.chunks = append(block.chunks, chunk)
	block.plain = append(block.plain, b...)
	if len(block.plain) >= blockTarget {
		return c.seal(ctx, aud)
	}
	return nil
}

// seal hands the audience's open block on.
func (c *collector) seal(ctx context.Context, aud store.Audience) error {
	block := c.open[aud]
	if block == nil {
		return nil
	}
	delete(c.open, aud)
	return send(ctx, c.blocks, *block)
}

// emit gives the sink an entry, sooner or later, and now what there is to
// remark about it.
func (c *collector) emit(ctx context.Context, it *item, e Entry, stamp Stamp) error {
	if err := c.remarks(ctx, it); err != nil {
		return err
	}
	c.entries = append(c.entries, e)
	c.stamps = append(c.stamps, stamp)
	c.total.Entries++
	c.showNow()
	if len(c.entries) >= batchItems {
		return c.flush(ctx)
	}
	return nil
}

func (c *collector) remarks(ctx context.Context, it *item) error {
	for _, n := range it.notes {
		if err := c.sink.Note(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// flush gives the sink the entries in hand.
func (c *collector) flush(ctx context.Context) error {
	if len(c.entries) == 0 {
		return nil
	}
	err := c.sink.Entries(ctx, c.entries, c.stamps)
	// The sink may keep the slices.
	c.entries, c.stamps = nil, nil
	return err
}

// showNow tells how far the scan is, when the last time is long enough ago.
func (c *collector) showNow() {
	if now := time.Now(); now.Sub(c.shown) >= progressGap {
		c.shown = now
		c.show()
	}
}

func (c *collector) show() {
	p := c.total
	p.BytesRead = c.bytesRead.Load()
	c.sink.Progress(p)
}
