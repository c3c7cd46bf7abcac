package store

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// packSize is where a pack is cut: large enough that a few thousand hold any
// image, small enough that one that is lost or unused is not much.
const packSize = 32 << 20

// packChunks is where a pack of very small chunks is cut, so that its table, of
// 36 bytes a chunk, stays small.
const packChunks = 1 << 17

// Writer adds blocks to a vault. Its methods are safe for concurrent use.
//
// What is added becomes visible, in the vault and in the store, pack by pack,
// each only when it is durable; Commit makes it so for all that was added.
// Someone must hold the store's lock, shared, from before the vault is opened
// until what was written is named by a manifest. The Writer does not take it.
type Writer struct {
	v *Vault

	mu      sync.Mutex
	open    map[Audience]*newPack
	claimed map[Ref]struct{} // chunks of blocks that are in open or pending packs
	pending map[*newPack]struct{}
	plains  sync.Pool // of *[]byte, for blocks being checked
	err     error     // of the first write that went wrong; all after it is refused

	finishing chan struct{} // held by the one pack that is being made durable behind Add
}

// newPack is a pack being written.
type newPack struct {
	pack
	spool   Spool
	sealed  []byte // the block being written
	end     int64  // of the blocks written
	chunks  int
	claimed []Ref
	done    chan struct{} // closed when it is in the store, or never will be
}

var errWriterClosed = errors.New("the writer is closed")

// NewWriter makes a writer. It must be closed.
func (v *Vault) NewWriter() *Writer {
	return &Writer{
		v:       v,
		open:    map[Audience]*newPack{},
		claimed: map[Ref]struct{}{},
		pending: map[*newPack]struct{}{},

		finishing: make(chan struct{}, 1),
	}
}

// Has tells whether the chunk is in the vault, or was added and will be there
// after Commit.
func (w *Writer) Has(ref Ref) bool {
	w.mu.Lock()
	_, ok := w.claimed[ref]
	w.mu.Unlock()
	return ok || w.v.Has(ref)
}

// Add takes a block. All its chunks are checked first: a block that is not what
// it says gives a *CorruptError and changes nothing. One whose chunks are all
// there already is not stored again. Any other error is one of the store, and
// final for the writer.
func (w *Writer) Add(ctx context.Context, b Block) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	key := w.v.keys.key(b.Audience)
	if key == nil {
		return fmt.Errorf("adding a block: the key of the audience %s is not held", b.Audience)
	}
	plain, err := w.check(b)
	if err != nil {
		return err
	}
	full, err := w.append(ctx, key, b, plain)
	if err != nil {
		return fmt.Errorf("adding a block: %w", err)
	}
	if full == nil {
		return nil
	}
	// A disk takes its time to make a pack durable, in which the next blocks
	// can come: into one more pack, no more.
	select {
	case w.finishing <- struct{}{}:
	case <-ctx.Done():
		return errors.Join(context.Cause(ctx), w.finish(full))
	}
	go func() {
		defer func() { <-w.finishing }()
		w.finish(full) // an error stays in w, for the next call
	}()
	return nil
}

// check decodes a block, holds every chunk against its ID, and gives the plain
// size.
func (w *Writer) check(b Block) (uint32, error) {
	size, err := plainSize(b.Chunks)
	plain := b.Data
	if err == nil && (b.Codec != Raw || len(plain) != size) {
		buf, _ := w.plains.Get().(*[]byte)
		if buf == nil {
			buf = new([]byte)
		}
		defer w.plains.Put(buf)
		*buf = slices.Grow((*buf)[:0], size)
		plain, err = decode(b.Codec, b.Data, *buf, size)
	}
	if err != nil {
		bad := &CorruptError{What: "block", Detail: err.Error()}
		if len(b.Chunks) > 0 {
			bad.ID = b.Chunks[0].ID
			bad.Detail = "the block that begins with this chunk is refused: " + bad.Detail
		}
		return 0, bad
	}
	for _, c := range b.Chunks {
		if got := Sum(plain[:c.Size]); got != c.ID {
			return 0, &CorruptError{What: "chunk", ID: c.ID, Detail: "its bytes have the digest " + got.String()}
		}
		plain = plain[c.Size:]
	}
	return uint32(size), nil
}

// append seals a checked block into the open pack of its audience. A pack that
// is full with it is given back, for the caller to finish.
func (w *Writer) append(ctx context.Context, key *Key, b Block, plain uint32) (full *newPack, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	if !w.news(b) {
		return nil, nil
	}
	p := w.open[b.Audience]
	if p == nil {
		if p, err = w.begin(ctx, key, b.Audience); err != nil {
			return nil, w.fail(err)
		}
		w.open[b.Audience] = p
	}
	last := packBlock{off: p.end, plain: plain, codec: b.Codec, count: uint32(len(b.Chunks)), chunks: slices.Clone(b.Chunks)}
	last.sealed = uint32(len(b.Data) + footed(len(b.Chunks)) + tagSize)
	p.sealed = slices.Grow(p.sealed[:0], int(last.size()))
	p.sealed = binary.BigEndian.AppendUint32(p.sealed, last.sealed)
	p.sealed = appendBlockFoot(append(p.sealed, b.Data...), b.Codec, b.Chunks)
	inside := p.sealed[lengthSize:]
	p.sealed = p.sealed[:lengthSize+len(p.cipher.seal(inside[:0], inside, uint64(len(p.blocks))))]
	if _, err := p.spool.Write(p.sealed); err != nil {
		return nil, w.fail(fmt.Errorf("writing a pack: %w", err))
	}
	p.blocks = append(p.blocks, last)
	p.end = last.end()
	p.chunks += len(b.Chunks)
	for _, c := range b.Chunks {
		ref := Ref{b.Audience, c.ID}
		if _, ok := w.claimed[ref]; !ok {
			w.claimed[ref] = struct{}{}
			p.claimed = append(p.claimed, ref)
		}
	}
	if p.end < packSize && p.chunks < packChunks {
		return nil, nil
	}
	delete(w.open, b.Audience)
	w.pending[p] = struct{}{}
	return p, nil
}

// news tells whether any of the block's chunks is not there yet.
func (w *Writer) news(b Block) bool {
	for _, c := range b.Chunks {
		ref := Ref{b.Audience, c.ID}
		if _, ok := w.claimed[ref]; !ok && !w.v.Has(ref) {
			return true
		}
	}
	return false
}

// begin starts a pack.
func (w *Writer) begin(ctx context.Context, key *Key, aud Audience) (*newPack, error) {
	h := header{magic: packMagic, version: packVersion, audience: aud, fingerprint: key.Fingerprint()}
	if _, err := rand.Read(h.salt[:]); err != nil {
		return nil, fmt.Errorf("beginning a pack: %w", err)
	}
	c, err := h.cipher(key)
	if err != nil {
		return nil, fmt.Errorf("beginning a pack: %w", err)
	}
	// The pack outlives the call that begins it.
	spool, err := NewSpool(context.WithoutCancel(ctx), w.v.st, KindPack)
	if err != nil {
		return nil, fmt.Errorf("beginning a pack: %w", err)
	}
	p := &newPack{pack: pack{cipher: c}, spool: spool, end: headerSize, done: make(chan struct{})}
	if _, err := spool.Write(h.append(nil)); err != nil {
		return nil, errors.Join(fmt.Errorf("writing a pack: %w", err), spool.Discard())
	}
	return p, nil
}

// finish writes a pack's table, makes the pack durable, and only then puts it
// into the index. The writer's lock is not held: other blocks go on into
// another pack.
func (w *Writer) finish(p *newPack) error {
	err := p.finish()
	if err == nil {
		w.v.add(&p.pack)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ref := range p.claimed {
		delete(w.claimed, ref)
	}
	delete(w.pending, p)
	close(p.done)
	if err != nil {
		return w.fail(err)
	}
	return nil
}

func (p *newPack) finish() error {
	p.sealed = nil
	trailer := p.cipher.seal(nil, appendTrailer(nil, p.blocks), trailerNumber)
	_, err := p.spool.Write(appendFooter(trailer, p.end, int64(len(trailer))))
	if err != nil {
		return errors.Join(fmt.Errorf("writing a pack: %w", err), p.spool.Discard())
	}
	p.size = p.end + int64(len(trailer)) + footerSize
	p.id, err = p.spool.Commit()
	return err
}

// fail remembers the first error and lets go of everything open, so that a
// full disk gets its space back at once.
func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = err
	}
	w.drop()
	return err
}

// drop discards the open packs.
func (w *Writer) drop() error {
	var errs []error
	for aud, p := range w.open {
		errs = append(errs, p.spool.Discard())
		for _, ref := range p.claimed {
			delete(w.claimed, ref)
		}
		delete(w.open, aud)
	}
	return errors.Join(errs...)
}

// Commit makes everything durable that was added by calls that have returned,
// and puts it into the vault's index. The writer can go on afterwards.
func (w *Writer) Commit(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w.mu.Lock()
	if w.err != nil {
		defer w.mu.Unlock()
		return fmt.Errorf("committing packs: %w", w.err)
	}
	var mine, theirs []*newPack
	for p := range w.pending {
		theirs = append(theirs, p) // being finished by the Add that filled it
	}
	for aud, p := range w.open {
		mine = append(mine, p)
		w.pending[p] = struct{}{}
		delete(w.open, aud)
	}
	w.mu.Unlock()

	var errs []error
	for _, p := range mine {
		errs = append(errs, w.finish(p))
	}
	for _, p := range theirs {
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("committing packs: %w", err)
	}
	if w.err != nil {
		return fmt.Errorf("committing packs: %w", w.err)
	}
	return nil
}

// Close drops what was not committed, and waits for calls that are finishing a
// pack. Closing again does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.err == nil {
		w.err = errWriterClosed
	}
	err := w.drop()
	var pending []*newPack
	for p := range w.pending {
		pending = append(pending, p)
	}
	w.mu.Unlock()
	for _, p := range pending {
		<-p.done
	}
	if err != nil {
		return fmt.Errorf("dropping packs that were not committed: %w", err)
	}
	return nil
}
