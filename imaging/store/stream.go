package store

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	maxFetch = 8 << 20   // sealed bytes asked for at once
	minFetch = 1 << 20   // smaller ranges cost more than they spread the work
	maxGap   = 256 << 10 // unwanted bytes that are cheaper to skip than to ask around
)

// want is a chunk that is to be delivered.
type want struct {
	at     place
	ref    Ref
	number uint32
}

// fetch is a run of neighbouring blocks that is asked for at once.
type fetch struct {
	pack   *pack
	wants  []uint32 // in the order of blocks, and of offsets within them
	off, n int64
}

// Stream gives every distinct chunk of refs to fn once. Packs are read in the
// order of the first chunk wanted from each, their blocks in the order in
// which they lie; every block that holds a wanted chunk is read, opened and
// decoded once. The calls of fn come from several workers at a time (0: as many
// as there are processors), each with bytes that have been checked against the
// chunk's ID and are valid only during the call.
//
// A chunk that is in no pack gives a *MissingError before anything is read,
// one whose bytes are not what they were a *CorruptError that names it. The
// first error ends the stream; calls that have begun are waited for. Memory is
// bounded by a block's size for each worker, whatever the packs' size.
func (v *Vault) Stream(ctx context.Context, refs []Ref, workers int, fn func(Ref, []byte) error) error {
	numbers := make([]uint32, 0, len(refs))
	for _, ref := range refs {
		n, ok := v.Find(ref)
		if !ok {
			return &MissingError{What: "chunk", ID: ref.ID}
		}
		numbers = append(numbers, n)
	}
	return v.stream(ctx, numbers, workers, func(w want, b []byte) error { return fn(w.ref, b) })
}

// StreamNumbers is Stream for chunks by the numbers that Find gave. It puts
// numbers into the order of reading, and keeps them until it returns.
func (v *Vault) StreamNumbers(ctx context.Context, numbers []uint32, workers int, fn func(number uint32, b []byte) error) error {
	return v.stream(ctx, numbers, workers, func(w want, b []byte) error { return fn(w.number, b) })
}

func (v *Vault) stream(ctx context.Context, numbers []uint32, workers int, fn func(want, []byte) error) error {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	fetches := v.planFetches(v.inOrder(numbers), workers)
	workers = min(workers, len(fetches))
	g, ctx := errgroup.WithContext(ctx)
	next := make(chan fetch)
	g.Go(func() error {
		defer close(next)
		for _, f := range fetches {
			select {
			case next <- f:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			var bufs buffers
			for f := range next {
				if err := v.fetch(ctx, f, &bufs, fn); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// inOrder puts chunks into reading order, each once.
func (v *Vault) inOrder(numbers []uint32) []uint32 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	ranks := make([]uint32, len(v.packs)) // from 1 on
	last := uint32(0)
	for _, n := range numbers {
		if rank := &ranks[v.at(n).pack]; *rank == 0 {
			last++
			*rank = last
		}
	}
	slices.SortFunc(numbers, func(a, b uint32) int {
		x, y := v.at(a), v.at(b)
		return cmp.Or(cmp.Compare(ranks[x.pack], ranks[y.pack]), cmp.Compare(x.block, y.block), cmp.Compare(x.off, y.off))
	})
	return slices.Compact(numbers)
}

// planFetches cuts chunks in reading order into runs of neighbouring blocks.
func (v *Vault) planFetches(numbers []uint32, workers int) []fetch {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var total int64
	for i, n := range numbers {
		at := v.place(n)
		if i > 0 {
			if last := v.at(numbers[i-1]); v.packs[last.pack] == at.pack && last.block == at.block {
				continue
			}
		}
		total += at.sealed().size()
	}
	limit := min(maxFetch, max(minFetch, total/int64(workers)))
	var fetches []fetch
	first := 0
	for i, n := range numbers {
		at := v.place(n)
		b := at.sealed()
		if len(fetches) > 0 {
			f := &fetches[len(fetches)-1]
			if f.pack == at.pack && b.off-(f.off+f.n) <= maxGap &&
				(b.end() <= f.off+f.n || b.end()-f.off <= limit) {
				f.n = b.end() - f.off
				f.wants = numbers[first : i+1]
				continue
			}
		}
		first = i
		fetches = append(fetches, fetch{pack: at.pack, wants: numbers[i : i+1], off: b.off, n: b.size()})
	}
	return fetches
}

// want makes of a number what there is to know about the chunk.
func (v *Vault) want(n uint32) want {
	v.mu.RLock()
	defer v.mu.RUnlock()
	at := v.place(n)
	return want{at, Ref{at.pack.audience(), v.at(n).id}, n}
}

func (at place) sealed() packBlock { return at.pack.blocks[at.block] }

// buffers are one worker's, for one block at a time.
type buffers struct{ sealed, plain []byte }

// fetch reads a run of blocks and hands on what is wanted of each.
func (v *Vault) fetch(ctx context.Context, f fetch, bufs *buffers, fn func(want, []byte) error) error {
	next := v.want(f.wants[0])
	r, err := v.st.Open(ctx, KindPack, f.pack.id, f.off, f.n)
	if err != nil {
		return next.lost(f.pack.readError(err))
	}
	defer r.Close()
	at := f.off
	block, plain := -1, []byte(nil)
	for _, n := range f.wants {
		w := v.want(n)
		if block != int(w.at.block) {
			block = int(w.at.block)
			b := f.pack.blocks[block]
			if _, err := io.CopyN(io.Discard, r, b.off-at); err != nil {
				return w.lost(f.pack.readError(err))
			}
			if plain, err = f.pack.readBlock(r, block, bufs); err != nil {
				return w.lost(err)
			}
			at = b.end()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data := plain[w.at.off:][:w.at.size:w.at.size]
		if err := w.check(data); err != nil {
			return err
		}
		if err := fn(w, data); err != nil {
			return err
		}
	}
	// To the end, so that a connection can be used again.
	_, err = io.Copy(io.Discard, r)
	return err
}

// readBlock reads a block from where r stands, opens and decodes it.
func (p *pack) readBlock(r io.Reader, number int, bufs *buffers) ([]byte, error) {
	b := p.blocks[number]
	data, err := p.openBlock(r, number, bufs)
	if err != nil || b.codec == Raw { // data lies in the worker's own buffer
		return data, err
	}
	bufs.plain = slices.Grow(bufs.plain[:0], int(b.plain))
	plain, err := decode(b.codec, data, bufs.plain, int(b.plain))
	if err != nil {
		return nil, p.corruptBlock("block %d does not decode: %v", number, err)
	}
	return plain, nil
}

// openBlock reads a block from where r stands and opens its seal.
func (p *pack) openBlock(r io.Reader, number int, bufs *buffers) ([]byte, error) {
	b := p.blocks[number]
	bufs.sealed = slices.Grow(bufs.sealed[:0], int(b.size()))[:b.size()]
	if _, err := io.ReadFull(r, bufs.sealed); err != nil {
		return nil, p.readError(err)
	}
	inside, err := p.cipher.open(bufs.sealed[lengthSize:], uint64(number))
	if err != nil || binary.BigEndian.Uint32(bufs.sealed) != b.sealed {
		return nil, p.corruptBlock("block %d does not open: some of its bytes have changed", number)
	}
	return inside[:len(inside)-footed(int(b.count))], nil
}

func (p *pack) corruptBlock(format string, a ...any) error {
	return &CorruptError{What: "block", ID: p.id, Detail: fmt.Sprintf(format, a...)}
}

// lost makes of an error about a block or pack one about a chunk in it.
func (w want) lost(err error) error {
	if c, ok := err.(*CorruptError); ok {
		return &CorruptError{What: "chunk", ID: w.ref.ID, Detail: fmt.Sprintf("in pack %s, %s", w.at.pack.id, c.Detail)}
	}
	return fmt.Errorf("reading chunk %s: %w", w.ref.ID, err)
}

// check holds a chunk's bytes against its ID.
func (w want) check(data []byte) error {
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], w.ref.ID[:]) {
		return &CorruptError{What: "chunk", ID: w.ref.ID, Detail: fmt.Sprintf("in pack %s, block %d, its bytes have the digest %s", w.at.pack.id, w.at.block, ID(sum))}
	}
	return nil
}

// Chunk gives one chunk, checked, in bytes of the caller's own. The blocks
// read last are kept, so that chunks asked for in a file's order cost one read
// a block; whoever wants many should Stream.
func (v *Vault) Chunk(ctx context.Context, ref Ref) ([]byte, error) {
	at, ok := v.find(ref)
	if !ok {
		return nil, &MissingError{What: "chunk", ID: ref.ID}
	}
	w := want{at: at, ref: ref}
	e := v.blocks.entry(at)
	select {
	case e.loading <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-e.loading }()
	if e.plain == nil {
		b := at.sealed()
		r, err := v.st.Open(ctx, KindPack, at.pack.id, b.off, b.size())
		if err != nil {
			return nil, w.lost(at.pack.readError(err))
		}
		defer r.Close()
		var bufs buffers
		if e.plain, err = at.pack.readBlock(r, int(at.block), &bufs); err != nil {
			e.plain = nil
			return nil, w.lost(err)
		}
	}
	data := bytes.Clone(e.plain[at.off:][:at.size])
	if err := w.check(data); err != nil {
		return nil, err
	}
	return data, nil
}

const cachedBlocks = 4

// blockCache keeps the blocks used last.
type blockCache struct {
	mu     sync.Mutex
	recent list.List // of *cached, the last used in front
}

type cached struct {
	pack    *pack
	block   uint32
	loading chan struct{} // held by whoever reads or fills plain
	plain   []byte
}

func (c *blockCache) entry(at place) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.recent.Front(); e != nil; e = e.Next() {
		if k := e.Value.(*cached); k.pack == at.pack && k.block == at.block {
			c.recent.MoveToFront(e)
			return k
		}
	}
	k := &cached{pack: at.pack, block: at.block, loading: make(chan struct{}, 1)}
	c.recent.PushFront(k)
	if c.recent.Len() > cachedBlocks {
		c.recent.Remove(c.recent.Back())
	}
	return k
}
