package tarball

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"doppel/imaging"
	"doppel/imaging/store"

	"golang.org/x/sync/errgroup"
)

// What is in hand at a time, as in a capture.
const (
	askBytes    = 4 << 20 // of chunks, before the sink is asked about them
	askChunks   = 1024    // likewise
	blockTarget = 4 << 20 // plain bytes of a block
	blockRoom   = 256 << 10
)

// intake brings chunks to a sink: those that it lacks, in blocks, compressed by
// several goroutines.
type intake struct {
	sink   imaging.Sink
	refs   []store.Ref // the sink is to be asked about
	sizes  []uint32
	data   []byte // their bytes
	open   map[store.Audience]*rawBlock
	blocks chan rawBlock

	mu     sync.Mutex
	flying map[store.Ref]struct{} // in hand or on their way: the sink does not know them yet
}

type rawBlock struct {
	audience store.Audience
	chunks   []store.Chunk
	plain    []byte
}

func newIntake(sink imaging.Sink) *intake {
	return &intake{sink: sink, open: make(map[store.Audience]*rawBlock), flying: make(map[store.Ref]struct{})}
}

// run lets fill take chunks; when it returns, the sink has all of them.
func (n *intake) run(ctx context.Context, fill func(context.Context) error) error {
	n.blocks = make(chan rawBlock)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(n.blocks)
		if err := fill(ctx); err != nil {
			return err
		}
		return n.flush(ctx)
	})
	var one sync.Mutex // call of sink.Block at a time
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for b := range n.blocks {
				encoded := store.EncodeBlock(b.audience, b.chunks, b.plain, nil)
				one.Lock()
				err := ctx.Err()
				if err == nil {
					err = n.sink.Block(ctx, encoded)
				}
				one.Unlock()
				if err != nil {
					return err
				}
				n.landed(b)
			}
			return nil
		})
	}
	return g.Wait()
}

// take takes a chunk; b is the caller's again when it returns.
func (n *intake) take(ctx context.Context, ref store.Ref, b []byte) error {
	n.mu.Lock()
	_, known := n.flying[ref]
	n.flying[ref] = struct{}{}
	n.mu.Unlock()
	if known {
		return nil
	}
	n.refs = append(n.refs, ref)
	n.sizes = append(n.sizes, uint32(len(b)))
	n.data = append(n.data, b...)
	if len(n.data) >= askBytes || len(n.refs) >= askChunks {
		return n.ask(ctx)
	}
	return nil
}

// ask asks the sink which of the chunks in hand it lacks, and puts these into
// blocks.
func (n *intake) ask(ctx context.Context) error {
	if len(n.refs) == 0 {
		return nil
	}
	missing, err := n.sink.Missing(ctx, n.refs)
	if err != nil {
		return err
	}
	if len(missing) != len(n.refs) {
		return fmt.Errorf("asked about %d chunks, the sink answered about %d", len(n.refs), len(missing))
	}
	b := n.data
	for i, ref := range n.refs {
		chunk := store.Chunk{ID: ref.ID, Size: n.sizes[i]}
		if !missing[i] {
			n.forget(ref)
		} else if err := n.pack(ctx, ref.Audience, chunk, b[:chunk.Size]); err != nil {
			return err
		}
		b = b[chunk.Size:]
	}
	n.refs, n.sizes, n.data = n.refs[:0], n.sizes[:0], n.data[:0]
	return nil
}

// pack puts a chunk into the audience's open block.
func (n *intake) pack(ctx context.Context, aud store.Audience, chunk store.Chunk, b []byte) error {
	block := n.open[aud]
	if block == nil {
		block = &rawBlock{audience: aud, plain: make([]byte, 0, blockTarget+blockRoom)}
		n.open[aud] = block
	}
	block.chunks = append(block.chunks, chunk)
	block.plain = append(block.plain, b...)
	if len(block.plain) >= blockTarget {
		return n.seal(ctx, aud)
	}
	return nil
}

// seal hands the audience's open block on.
func (n *intake) seal(ctx context.Context, aud store.Audience) error {
	block := n.open[aud]
	if block == nil {
		return nil
	}
	delete(n.open, aud)
	select {
	case n.blocks <- *block:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *intake) flush(ctx context.Context) error {
	if err := n.ask(ctx); err != nil {
		return err
	}
	for _, aud := range []store.Audience{store.Cluster, store.Head} {
		if err := n.seal(ctx, aud); err != nil {
			return err
		}
	}
	return nil
}

func (n *intake) forget(ref store.Ref) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.flying, ref)
}

func (n *intake) landed(b rawBlock) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range b.chunks {
		delete(n.flying, store.Ref{Audience: b.audience, ID: c.ID})
	}
}
