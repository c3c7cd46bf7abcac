package imaging

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"doppel/imaging/store"
)

// reading is what one try to read a file came to.
type reading struct {
	node    Node // as it was when it was opened
	content Content
	data    []byte // the chunks' bytes, when they were kept
	short   bool   // the file ended before its size
	after   int64  // its size when it had been read
}

// reader reads files, one at a time.
type reader struct {
	chunker Chunker
	extents extentReader
}

// taker takes a chunk of the file that node says was opened: its class is
// settled, the bytes are good until taker returns.
type taker func(ctx context.Context, node *Node, c store.Chunk, b []byte) error

var (
	errTooLarge    = errors.New("too large to read ahead")
	errSecretAfter = errors.New("a secret comes behind what was taken as none")
)

// readSmall reads small files ahead of the collector.
func (s *scan) readSmall(ctx context.Context) error {
	var r reader
	for it := range s.jobs {
		var data []byte
		keep := func(_ context.Context, _ *Node, _ store.Chunk, b []byte) error {
			if data == nil {
				data = make([]byte, 0, it.memory)
			}
			data = append(data, b...)
			return nil
		}
		got, err := s.readFile(ctx, it, &r, smallFile, func() { data = data[:0] }, keep)
		if err == nil {
			got.data = data
			it.read = got
		}
		close(it.done)
		if err != nil && !errors.Is(err, errTooLarge) {
			return err
		}
	}
	return nil
}

// readFile reads the file of an item until it held still for the time of one
// reading, or had its chances. It calls restart before every try. What was
// found to be gone is marked in the item, and nothing else of it.
func (s *scan) readFile(ctx context.Context, it *item, r *reader, limit int64, restart func(), take taker) (*reading, error) {
	for try := 1; ; try++ {
		restart()
		got, steady, err := s.readOnce(ctx, it, r, limit, take)
		if errors.Is(err, errTooLarge) {
			return nil, err
		}
		if errors.Is(err, errSecretAfter) {
			it.secret = true
			try-- // it was not the file's fault
			continue
		}
		if errors.Is(err, fs.ErrNotExist) {
			it.gone = true
			it.note(NoteVanished, "")
			return &reading{}, nil
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			return nil, readError(it.node.Path, err)
		}
		if !steady && try < maxTries {
			continue
		}
		if !steady {
			it.loose = true
			it.note(NoteUnstable, fmt.Sprintf("changed during each of %d tries to read it", maxTries))
			got.cutShort()
		}
		return got, nil
	}
}

// readOnce opens the file, reads it, and tells whether it held still: a file
// that only grew did, and has the length and times that it had when opened.
func (s *scan) readOnce(ctx context.Context, it *item, r *reader, limit int64, take taker) (got *reading, steady bool, err error) {
	f, err := it.dir.open.Open(ctx, it.name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close() // it was only read from
	got = &reading{}
	if got.node, err = f.Stat(ctx); err != nil {
		return nil, false, err
	}
	got.node.Path, got.node.Class = it.node.Path, it.node.Class
	if it.secret {
		got.node.Class = ClassHead
	}
	if got.node.Size > limit {
		return nil, false, errTooLarge
	}
	if got.node.Size > 0 {
		if got.content.Extents, err = f.Extents(ctx, got.node.Size); err != nil {
			return nil, false, err
		}
	}
	if err := s.readContent(ctx, f, it.known || it.secret, got, r, take); err != nil {
		return nil, false, err
	}
	after, err := f.Stat(ctx)
	if err != nil {
		return nil, false, err
	}
	got.after = after.Size
	steady = !got.short && (got.node.same(&after) || after.Size > got.node.Size)
	return got, steady, nil
}

// readContent chunks the data of the open file. A file that no rule knows is
// looked into for secrets before any of it is taken; only in one larger than the
// Chunker's buffer a secret can still come behind chunks that were taken, and is
// errSecretAfter then: the file has to be read anew. Those chunks are of no entry,
// and in the store, for every node, until the next prune.
func (s *scan) readContent(ctx context.Context, f File, known bool, got *reading, r *reader, take taker) error {
	e := Entry{Size: got.node.Size, Extents: got.content.Extents}
	r.extents = extentReader{ctx: ctx, file: f, extents: e.Data()}
	r.chunker.Reset(&r.extents)
	if !known && r.chunker.Secret() {
		got.node.Class, known = ClassHead, true
	}
	for {
		b, err := r.chunker.Next()
		if err == io.EOF {
			got.short = r.extents.short
			return nil
		}
		if err != nil {
			return err
		}
		if !known && r.chunker.Secret() {
			return errSecretAfter
		}
		s.bytesRead.Add(int64(len(b)))
		c := store.Chunk{ID: store.Sum(b), Size: uint32(len(b))}
		got.content.Chunks = append(got.content.Chunks, c)
		if err := take(ctx, &got.node, c, b); err != nil {
			return err
		}
	}
}

// cutShort makes the reading of a file that was cut off meanwhile one of a
// file that ends where the data did: neither missing bytes nor, where the look
// for holes came too late, a hole that never was.
func (g *reading) cutShort() {
	if !g.short && (g.content.Extents == nil || g.after >= g.node.Size) {
		return
	}
	var have int64
	for _, c := range g.content.Chunks {
		have += int64(c.Size)
	}
	e := Entry{Size: g.node.Size, Extents: g.content.Extents}
	kept := []Extent{}
	var end int64
	for _, x := range e.Data() {
		if have == 0 {
			break
		}
		x.Length = min(x.Length, have)
		have -= x.Length
		kept = append(kept, x)
		end = x.Offset + x.Length
	}
	if !g.short {
		end = max(end, g.after)
	}
	g.node.Size, g.content.Extents = end, kept
}

// extentReader is the data of a file, one extent after the other.
type extentReader struct {
	ctx     context.Context
	file    io.ReaderAt
	extents []Extent
	at      int64 // within the first extent
	short   bool  // the file ended within an extent
}

func (r *extentReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	for len(r.extents) > 0 && r.at == r.extents[0].Length {
		r.extents, r.at = r.extents[1:], 0
	}
	if len(r.extents) == 0 {
		return 0, io.EOF
	}
	x := r.extents[0]
	b = b[:min(int64(len(b)), x.Length-r.at)]
	n, err := r.file.ReadAt(b, x.Offset+r.at)
	r.at += int64(n)
	if err == io.EOF && n < len(b) {
		r.short, r.extents = true, nil
		return n, io.EOF
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// late tells whether a change at t is too young for the next one to be told
// from it: the kernel stamps with the time of its last tick, up to 10 ms ago,
// and vfat to two seconds only.
func (s *scan) late(t Time) bool {
	margin := 50 * time.Millisecond
	if t.Nsec == 0 {
		margin = 2 * time.Second
	}
	limit := s.start.Add(-margin)
	return t.Sec > limit.Unix() || t.Sec == limit.Unix() && int64(t.Nsec) >= int64(limit.Nanosecond())
}
