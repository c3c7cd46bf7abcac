package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// What makes a pack worth writing anew. A quarter dead: then each byte that is
// given back costs at most three that are copied, and a store is never a third
// larger than what lives in it. Small packs are what incremental captures
// leave; each costs a reader an open and a seek. They are merged only when
// there are many, so that the same bytes are not copied again at every prune.
const (
	deadShare  = 4 // one in so many bytes
	smallPack  = packSize / 4
	manySmall  = 8
	blockFill  = 4 << 20 // plain bytes of a block that is put together anew
	nobody     = -1
	beingMoved = -2
)

// Live are the chunks that versions need, in the order in which they are best
// read. A Live belongs to one goroutine.
type Live struct {
	chunks map[Ref]owned
}

// owned is what is known of a live chunk.
type owned struct {
	rank uint32 // in reading order
	pack int32  // the pack that keeps it, or nobody, or beingMoved
}

// NewLive makes an empty one.
func NewLive() *Live { return &Live{chunks: map[Ref]owned{}} }

// Add adds a chunk, behind all others unless it is there already.
func (l *Live) Add(ref Ref) {
	if _, ok := l.chunks[ref]; !ok {
		l.chunks[ref] = owned{uint32(len(l.chunks)), nobody}
	}
}

// Len is how many there are.
func (l *Live) Len() int { return len(l.chunks) }

// Repack finds packs that are not worth their room and writes what lives in
// them anew, in the order of Live. Its steps are SurveyPacks and Copy, under
// LockShared, so that captures go on; then Removable and Dir.Retire, under
// LockExclusive. Nothing is taken away before what replaces it is durable. A
// Repack belongs to one goroutine.
type Repack struct {
	st      Store
	keys    Keys
	live    *Live
	packs   []surveyed // by descending size
	known   map[ID]int // index in packs; nobody for those that could not be opened
	fresh   *Vault     // what Copy wrote
	corrupt []error
}

// surveyed is what the survey found out about a pack.
type surveyed struct {
	packFile
	audience Audience
	living   int64 // of the sealed bytes of blocks, those that live chunks make up
	sealed   int64
	used     bool
	victim   bool
}

// SurveyPacks reads the tables of all packs, one at a time. Of a chunk that
// several hold, the largest pack keeps it. Packs that are damaged are left
// alone, as what they hold is not known.
func SurveyPacks(ctx context.Context, st Store, keys Keys, live *Live) (*Repack, error) {
	r := &Repack{st: st, keys: keys, live: live, known: map[ID]int{}}
	var files []packFile
	err := st.List(ctx, KindPack, func(id ID, size int64) error {
		files = append(files, packFile{id, size})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at the packs: %w", err)
	}
	slices.SortStableFunc(files, func(a, b packFile) int { return cmp.Compare(b.size, a.size) })
	for _, f := range files {
		p, err := openPack(ctx, st, keys, f)
		if isFault(err) || errors.Is(err, errNotHeld) {
			r.known[f.id] = nobody
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking at the packs: %w", err)
		}
		r.known[f.id] = len(r.packs)
		r.packs = append(r.packs, r.survey(p))
	}
	r.choose()
	return r, nil
}

// survey has a pack claim what nobody keeps yet.
func (r *Repack) survey(p *pack) surveyed {
	s := surveyed{packFile: p.packFile, audience: p.cipher.head.audience}
	for _, b := range p.blocks {
		var living int64
		for _, c := range b.chunks {
			ref := Ref{s.audience, c.ID}
			if o, ok := r.live.chunks[ref]; ok && o.pack == nobody {
				r.live.chunks[ref] = owned{o.rank, int32(len(r.packs))}
				living += int64(c.Size)
			}
		}
		s.used = s.used || living > 0
		s.sealed += int64(b.sealed)
		s.living += living * int64(b.sealed) / int64(b.plain)
	}
	return s
}

// choose marks the packs that are to be written anew.
func (r *Repack) choose() {
	small := map[Audience]int{}
	for _, s := range r.packs {
		if s.used && s.size < smallPack {
			small[s.audience]++
		}
	}
	for i := range r.packs {
		s := &r.packs[i]
		s.victim = s.used && ((s.sealed-s.living)*deadShare >= s.sealed ||
			s.size < smallPack && small[s.audience] >= manySmall)
	}
}

// RepackEstimate is what Copy and deleting would come to. Sizes are in bytes;
// those of packs that are written anew are estimates.
type RepackEstimate struct {
	Packs    int   // to be deleted
	Deletes  int64 // their size
	Rewrites int   // of them, those that are written anew
	Copies   int64 // what is copied of those
}

// Estimate says what a prune would come to, with Copy or without it.
func (r *Repack) Estimate(copying bool) RepackEstimate {
	var e RepackEstimate
	for _, s := range r.packs {
		if s.used && !(s.victim && copying) {
			continue
		}
		e.Packs++
		e.Deletes += s.size
		if s.victim {
			e.Rewrites++
			e.Copies += s.living
		}
	}
	return e
}

// Corrupt tells what Copy could not copy because it is not what it was. The
// packs that hold it stay.
func (r *Repack) Corrupt() []error { return r.corrupt }

// move is a block of which something is to be copied.
type move struct {
	pack   *pack
	number int
	want   []bool // of its chunks; nil: all
	rank   uint32 // of the first of them
}

// Copy writes what lives in the chosen packs into new ones and makes them
// durable. It returns how many packs it took from and how many encoded bytes it
// wrote. Blocks that live as a whole are not compressed again. Every chunk is
// held against its ID. After an error, a full disk say, Removable knows what of
// it is done.
func (r *Repack) Copy(ctx context.Context) (packs int, bytes int64, err error) {
	if r.fresh, err = OpenVault(ctx, r.st, r.keys, []ID{}); err != nil {
		return 0, 0, err
	}
	packs, moves, err := r.moves(ctx)
	if err != nil || len(moves) == 0 {
		return 0, 0, err
	}
	w := r.fresh.NewWriter()
	defer w.Close()
	c := copier{st: r.st, w: w, partial: map[Audience]*building{}}
	err = c.run(ctx, moves)
	r.corrupt = append(r.corrupt, c.corrupt...)
	if err == nil {
		err = w.Commit(ctx)
	}
	if err != nil {
		err = fmt.Errorf("writing packs anew: %w", err)
	}
	return packs, c.bytes.Load(), err
}

// moves are the blocks to be read, in the order of what they hold.
func (r *Repack) moves(ctx context.Context) (packs int, moves []move, err error) {
	for i, s := range r.packs {
		if !s.victim {
			continue
		}
		p, err := openPack(ctx, r.st, r.keys, s.packFile)
		if isFault(err) {
			r.corrupt = append(r.corrupt, err)
			continue
		}
		if err != nil {
			return 0, nil, err
		}
		packs++
		for n := range p.blocks {
			if m, ok := r.move(p, n, int32(i)); ok {
				moves = append(moves, m)
			}
		}
	}
	slices.SortStableFunc(moves, func(a, b move) int { return cmp.Compare(a.rank, b.rank) })
	return packs, moves, nil
}

// move finds what a victim keeps in one of its blocks.
func (r *Repack) move(p *pack, number int, owner int32) (move, bool) {
	b := p.blocks[number]
	m := move{pack: p, number: number, want: make([]bool, len(b.chunks)), rank: ^uint32(0)}
	wanted := 0
	for j, c := range b.chunks {
		ref := Ref{p.cipher.head.audience, c.ID}
		o, ok := r.live.chunks[ref]
		if !ok || o.pack != owner {
			continue
		}
		r.live.chunks[ref] = owned{o.rank, beingMoved}
		m.want[j] = true
		m.rank = min(m.rank, o.rank)
		wanted++
	}
	if wanted == len(b.chunks) {
		m.want = nil
	}
	return m, wanted > 0
}

// Removable gives the packs that are unused or were replaced: every chunk of
// theirs that is live, or that more says is live meanwhile, is in a pack that
// stays. Whoever calls it holds LockExclusive; more are the chunks of versions
// that were added since Live was made, and may be nil.
func (r *Repack) Removable(ctx context.Context, more *Live) ([]ID, error) {
	if more == nil {
		more = NewLive()
	}
	listed := map[ID]bool{}
	var since []ID // packs that captures have added
	err := r.st.List(ctx, KindPack, func(id ID, _ int64) error {
		listed[id] = true
		if _, ok := r.known[id]; !ok && !r.wrote(id) {
			since = append(since, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking at the packs: %w", err)
	}
	added, err := r.openAdded(ctx, since)
	if err != nil {
		return nil, err
	}
	stays := func(ref Ref) bool {
		o, ok := r.live.chunks[ref]
		if _, later := more.chunks[ref]; !ok && !later {
			return true // nobody needs it
		}
		if ok && o.pack >= 0 && !r.packs[o.pack].victim && listed[r.packs[o.pack].id] {
			return true
		}
		return r.fresh != nil && r.fresh.Has(ref) || added.Has(ref)
	}
	var ids []ID
	for _, s := range r.packs {
		if s.used && !s.victim || s.victim && r.fresh == nil || !listed[s.id] {
			continue
		}
		ok, err := r.replaced(ctx, s, stays)
		if err != nil {
			return nil, err
		}
		if ok {
			ids = append(ids, s.id)
		}
	}
	return ids, nil
}

// wrote tells whether a pack is one of Copy's.
func (r *Repack) wrote(id ID) bool {
	if r.fresh == nil {
		return false
	}
	r.fresh.mu.RLock()
	defer r.fresh.mu.RUnlock()
	return r.fresh.byID[id] != nil
}

// openAdded opens packs that came since the survey; a damaged one holds nothing.
func (r *Repack) openAdded(ctx context.Context, ids []ID) (*Vault, error) {
	var good []ID
	for _, id := range ids {
		_, err := openPack(ctx, r.st, r.keys, packFile{id, -1})
		switch {
		case err == nil:
			good = append(good, id)
		case !isFault(err) && !errors.Is(err, errNotHeld):
			return nil, fmt.Errorf("looking at the packs: %w", err)
		}
	}
	return OpenVault(ctx, r.st, r.keys, append([]ID{}, good...))
}

// replaced tells whether all of a pack is elsewhere, or of no use.
func (r *Repack) replaced(ctx context.Context, s surveyed, stays func(Ref) bool) (bool, error) {
	p, err := openPack(ctx, r.st, r.keys, s.packFile)
	if isFault(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at the packs: %w", err)
	}
	for _, b := range p.blocks {
		for _, c := range b.chunks {
			if !stays(Ref{s.audience, c.ID}) {
				return false, nil
			}
		}
	}
	return true, nil
}

// copier writes moved blocks, several at a time.
type copier struct {
	st      Store
	w       *Writer
	g       *errgroup.Group
	partial map[Audience]*building
	bytes   atomic.Int64

	mu      sync.Mutex
	corrupt []error
}

// building is a block that is put together from parts of others.
type building struct {
	chunks []Chunk
	plain  []byte
}

func (c *copier) run(ctx context.Context, moves []move) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	c.g = g
	read := func() error {
		for _, m := range moves {
			if err := c.move(gctx, m); err != nil {
				return err
			}
		}
		for aud := range c.partial {
			c.flush(gctx, aud)
		}
		return nil
	}
	err := read()
	if werr := g.Wait(); werr != nil {
		return werr // what ended the reading, too
	}
	return err
}

// move reads a block and hands on what is wanted of it. A block that is not
// what it was is noted and left where it is.
func (c *copier) move(ctx context.Context, m move) error {
	b, err := m.pack.readEncoded(ctx, c.st, m.number)
	if err == nil && m.want == nil {
		c.add(ctx, func() Block { return b })
		return nil
	}
	var plain []byte
	if err == nil {
		plain, err = m.pack.checkedBlock(b, m.number)
	}
	if isFault(err) {
		c.note(err)
		return nil
	}
	if err != nil {
		return err
	}
	for i, chunk := range b.Chunks {
		if m.want[i] {
			c.collect(ctx, b.Audience, chunk, plain[:chunk.Size])
		}
		plain = plain[chunk.Size:]
	}
	return nil
}

// collect adds a chunk to the block that is being put together.
func (c *copier) collect(ctx context.Context, aud Audience, chunk Chunk, plain []byte) {
	p := c.partial[aud]
	if p != nil && len(p.plain)+len(plain) > MaxBlock {
		c.flush(ctx, aud)
		p = nil
	}
	if p == nil {
		p = &building{}
		c.partial[aud] = p
	}
	p.chunks = append(p.chunks, chunk)
	p.plain = append(p.plain, plain...)
	if len(p.plain) >= blockFill {
		c.flush(ctx, aud)
	}
}

func (c *copier) flush(ctx context.Context, aud Audience) {
	p := c.partial[aud]
	if p == nil {
		return
	}
	delete(c.partial, aud)
	c.add(ctx, func() Block { return EncodeBlock(aud, p.chunks, p.plain, nil) })
}

// add writes a block. The writer holds every chunk against its ID once more.
func (c *copier) add(ctx context.Context, block func() Block) {
	c.g.Go(func() error {
		b := block()
		err := c.w.Add(ctx, b)
		if isFault(err) {
			c.note(err)
			return nil
		}
		c.bytes.Add(int64(len(b.Data)))
		return err
	})
}

func (c *copier) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corrupt = append(c.corrupt, err)
}

// readEncoded reads a block and opens its seal, but does not decode it.
func (p *pack) readEncoded(ctx context.Context, st Store, number int) (Block, error) {
	b := p.blocks[number]
	r, err := st.Open(ctx, KindPack, p.id, b.off, b.size())
	if err != nil {
		return Block{}, p.readError(err)
	}
	defer r.Close()
	data, err := p.openBlock(r, number, &buffers{})
	if err != nil {
		return Block{}, err
	}
	return Block{Audience: p.cipher.head.audience, Codec: b.codec, Chunks: b.chunks, Data: data}, nil
}

// checkedBlock decodes a block and holds its chunks against their IDs.
func (p *pack) checkedBlock(b Block, number int) ([]byte, error) {
	plain, err := DecodeBlock(b)
	if err != nil {
		return nil, p.corruptBlock("block %d does not decode: %v", number, err)
	}
	rest := plain
	for _, c := range b.Chunks {
		if got := Sum(rest[:c.Size]); got != c.ID {
			return nil, &CorruptError{What: "chunk", ID: c.ID, Detail: "its bytes have the digest " + got.String()}
		}
		rest = rest[c.Size:]
	}
	return plain, nil
}
