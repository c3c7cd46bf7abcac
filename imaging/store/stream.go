package store

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
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

// want is a chunk that Stream is to deliver.
type want struct {
	at   place
	rank int // of the pack, in reading order
	ref  Ref
}

// fetch is a run of neighbouring blocks that is asked for at once.
type fetch struct {
	pack   *pack
	wants  []want // in the order of blocks, and of offsets within them
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
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	wants, err := v.wants(refs)
	if err != nil {
		return err
	}
	fetches := planFetches(wants, workers)
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

// wants finds the chunks and puts them into reading order, each once.
func (v *Vault) wants(refs []Ref) ([]want, error) {
	wants := make([]want, 0, len(refs))
	ranks := map[*pack]int{}
	for _, ref := range refs {
		at, ok := v.find(ref)
		if !ok {
			return nil, &MissingError{What: "chunk", ID: ref.ID}
		}
		rank, ok := ranks[at.pack]
		if !ok {
			rank = len(ranks)
			ranks[at.pack] = rank
		}
		wants = append(wants, want{at, rank, ref})
	}
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.at.block, b.at.block), cmp.Compare(a.at.off, b.at.off))
	})
	return slices.CompactFunc(wants, func(a, b want) bool { return a.ref == b.ref }), nil
}

// planFetches cuts wants into runs of neighbouring blocks.
func planFetches(wants []want, workers int) []fetch {
	var total int64
	for i, w := range wants {
		if i == 0 || w.rank != wants[i-1].rank || w.at.block != wants[i-1].at.block {
			total += int64(w.at.sealed().sealed)
		}
	}
	limit := min(maxFetch, max(minFetch, total/int64(workers)))
	var fetches []fetch
	first := 0
	for i, w := range wants {
		b := w.at.sealed()
		if len(fetches) > 0 {
			f := &fetches[len(fetches)-1]
			if f.pack == w.at.pack && b.off-(f.off+f.n) <= maxGap &&
				(b.end() <= f.off+f.n || b.end()-f.off <= limit) {
				f.n = b.end() - f.off
				f.wants = wants[first : i+1]
				continue
			}
		}
		first = i
		fetches = append(fetches, fetch{pack: w.at.pack, wants: wants[i : i+1], off: b.off, n: int64(b.sealed)})
	}
	return fetches
}

func (at place) sealed() packBlock { return at.pack.blocks[at.block] }

// buffers are one worker's, for one block at a time.
type buffers struct{ sealed, plain []byte }

// fetch reads a run of blocks and hands on what is wanted of each.
func (v *Vault) fetch(ctx context.Context, f fetch, bufs *buffers, fn func(Ref, []byte) error) error {
	first := f.wants[0]
	r, err := v.st.Open(ctx, KindPack, f.pack.id, f.off, f.n)
	if err != nil {
		return first.lost(f.pack.readError(err))
	}
	defer r.Close()
	at := f.off
	for len(f.wants) > 0 {
		number := f.wants[0].at.block
		n := slices.IndexFunc(f.wants, func(w want) bool { return w.at.block != number })
		if n < 0 {
			n = len(f.wants)
		}
		here := f.wants[:n]
		f.wants = f.wants[n:]
		b := f.pack.blocks[number]
		if _, err := io.CopyN(io.Discard, r, b.off-at); err != nil {
			return here[0].lost(f.pack.readError(err))
		}
		plain, err := f.pack.readBlock(r, int(number), bufs)
		if err != nil {
			return here[0].lost(err)
		}
		at = b.end()
		for _, w := range here {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			data := plain[w.at.off:][:w.at.size:w.at.size]
			if err := w.check(data); err != nil {
				return err
			}
			if err := fn(w.ref, data); err != nil {
				return err
			}
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
	bufs.sealed = slices.Grow(bufs.sealed[:0], int(b.sealed))[:b.sealed]
	if _, err := io.ReadFull(r, bufs.sealed); err != nil {
		return nil, p.readError(err)
	}
	data, err := p.cipher.open(bufs.sealed, uint64(number))
	if err != nil {
		return nil, p.corruptBlock("block %d does not open: some of its bytes have changed", number)
	}
	return data, nil
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
		r, err := v.st.Open(ctx, KindPack, at.pack.id, b.off, int64(b.sealed))
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
