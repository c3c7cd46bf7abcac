package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Fault is one thing that is wrong with a pack.
type Fault struct {
	Pack  ID
	Block int   // -1: the pack as a whole
	Chunk ID    // zero: the block, or the pack, as a whole
	Lost  []Ref // the chunks that cannot be read because of it, as far as they are known
	Err   error // *MissingError, *CorruptError or *WrongKeyError
}

// Depth is how closely Verify looks.
type Depth int

const (
	// Tables looks at what OpenVault reads: that the packs are there, their
	// lengths and their tables.
	Tables Depth = iota

	// Bytes reads every byte and holds every pack against its name, the digest
	// that it was given when it was written: no bit can have changed since.
	// Of a pack that is not what it was, it then opens the seal of every block;
	// what one that does not open holds is known from the table. Chunks were
	// held against their IDs before they were sealed.
	Bytes

	// Chunks also opens and decodes every block of every pack and holds every
	// chunk against its ID: it finds, too, what was wrong before it was written.
	// That makes it several times slower than Bytes.
	Chunks
)

// Verify checks every pack of the vault, those that OpenVault left out
// included, and gives fn each fault it finds, one call at a time. Of packs of
// an audience whose key is not held only the name can be checked.
//
// The error tells that Verify could not go on, not that something is wrong.
func (v *Vault) Verify(ctx context.Context, depth Depth, fn func(Fault)) error {
	v.mu.RLock()
	files := append([]packFile(nil), v.foreign...)
	for _, f := range v.damaged {
		files = append(files, packFile{id: f.Pack})
	}
	for _, p := range v.packs {
		files = append(files, p.packFile)
	}
	v.mu.RUnlock()

	var mu sync.Mutex
	report := func(f Fault) {
		mu.Lock()
		defer mu.Unlock()
		fn(f)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for _, f := range files {
		g.Go(func() error {
			if err := v.verifyPack(ctx, f.id, depth, report); err != nil {
				return fmt.Errorf("verifying pack %s: %w", f.id, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// verifyPack checks one pack.
func (v *Vault) verifyPack(ctx context.Context, id ID, depth Depth, report func(Fault)) error {
	p, err := openPack(ctx, v.st, v.keys, packFile{id, -1})
	if errors.Is(err, errNotHeld) {
		p, err = &pack{packFile: packFile{id: id}}, nil // no table, so only the digest is checked
	}
	if err == nil && depth == Bytes {
		if err = v.sumPack(ctx, p); isFault(err) {
			err = v.readPack(ctx, p, depth, report)
		}
	} else if err == nil && depth > Bytes {
		err = v.readPack(ctx, p, depth, report)
	}
	if !isFault(err) {
		return err
	}
	report(Fault{Pack: id, Block: -1, Lost: v.chunksIn(id, -1), Err: err})
	return nil
}

// sumPack holds all bytes of a pack against its name.
func (v *Vault) sumPack(ctx context.Context, p *pack) error {
	r, err := OpenBlob(ctx, v.st, KindPack, p.id)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Finish()
}

// readPack reads a pack from end to end and reports what is wrong in it. The
// error is about the pack as a whole.
func (v *Vault) readPack(ctx context.Context, p *pack, depth Depth, report func(Fault)) error {
	r, err := v.st.Open(ctx, KindPack, p.id, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	sum := newDigester(io.Discard)
	tee := io.TeeReader(r, sum)
	if _, err := io.CopyN(io.Discard, tee, headerSize); err != nil {
		return p.readError(err)
	}
	var bufs buffers
	found := false
	fault := func(block int, chunk ID, err error) {
		found = true
		f := Fault{Pack: p.id, Block: block, Chunk: chunk, Err: err}
		if chunk.IsZero() {
			f.Lost = v.chunksIn(p.id, block)
		} else {
			f.Lost = []Ref{{p.audience(), chunk}}
		}
		report(f)
	}
	for i, b := range p.blocks {
		read := p.openBlock
		if depth >= Chunks {
			read = p.readBlock
		}
		plain, err := read(tee, i, &bufs)
		if c := (*CorruptError)(nil); errors.As(err, &c) && c.What == "block" {
			fault(i, ID{}, err)
			continue // its bytes have been read: the next block begins here
		}
		if err != nil {
			return err
		}
		if depth < Chunks {
			continue
		}
		off := uint32(0)
		for _, c := range b.chunks {
			w := want{at: place{p, uint32(i), off, c.Size}, ref: Ref{p.audience(), c.ID}}
			if err := w.check(plain[off:][:c.Size]); err != nil {
				fault(i, c.ID, err)
			}
			off += c.Size
		}
	}
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return p.readError(err)
	}
	if got := sum.ID(); got != p.id && !found {
		return p.corrupt("its bytes have the digest %s", got)
	}
	return nil
}

// isFault tells errors about what is stored from those about reaching it.
func isFault(err error) bool {
	var missing *MissingError
	var corrupt *CorruptError
	var key *WrongKeyError
	return errors.As(err, &missing) || errors.As(err, &corrupt) || errors.As(err, &key)
}

// chunksIn gives the chunks that are read from a pack, or from one of its
// blocks.
func (v *Vault) chunksIn(id ID, block int) []Ref {
	v.mu.RLock()
	defer v.mu.RUnlock()
	number := slices.IndexFunc(v.packs, func(p *pack) bool { return p.id == id })
	if number < 0 {
		return nil
	}
	var refs []Ref
	for _, some := range v.records {
		for _, r := range some {
			if r.pack == uint32(number) && (block < 0 || r.block == uint32(block)) {
				refs = append(refs, Ref{v.packs[number].audience(), r.id})
			}
		}
	}
	return refs
}
