package imaging

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"doppel/imaging/store"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Bounds on what a scan has in hand, whatever the tree is like.
const (
	batchItems   = 256           // entries that go through the stages together
	batchDirs    = 64            // directories a batch may hold open
	openDirs     = 256           // directories the walk itself holds open
	smallFile    = chunkerBuffer // read ahead, by several readers
	readAhead    = 16 << 20      // bytes of small files read ahead
	readers      = 8             // which hides a network's latency, and a disk's
	askBytes     = 4 << 20       // of chunks, before the sink is asked about them
	askChunks    = 1024          // likewise
	blockTarget  = 4 << 20       // plain bytes of a block
	blockRoom    = blockTarget + maxChunk
	encodedAhead = 2               // blocks, while the sink is busy
	maxTries     = 3               // to read a file that does not hold still
	progressGap  = time.Second / 4 // between two calls of Progress
)

// ownPaths are directories whose contents no image has: what the kernel and
// the running system make anew, and doppel's own state, keys among it.
var ownPaths = [...]string{"proc", "sys", "dev", "run", "tmp", "var/tmp", "var/lib/doppel", "etc/doppel"}

// ScanTree walks tree and gives sink everything that is in it, in canonical
// order, and the chunks that sink lacks, in blocks for their audience. It is
// the whole of a capture on the side where the tree is.
//
// What changes while it is read is dealt with as the package says; that which
// cannot be read at all, be it a single file, fails the scan.
func ScanTree(ctx context.Context, tree Tree, req ScanRequest, sink Sink) error {
	return scanTree(ctx, tree, req, sink, time.Now, nil)
}

// scan is one run of ScanTree. Its stages hand items on in the walk's order:
//
//	walk → walked → ask → batches → dispatch → items → collect → blocks → encode → encoded → deliver
//	                     └→ jobs → read (small files, several at a time)
type scan struct {
	tree    Tree
	req     ScanRequest
	sink    Sink
	start   time.Time
	exclude []glob
	mounts  *Mounts
	left    map[string]left
	rootDev uint64
	part    *part // nil: of everything, and nothing is to be remembered

	walked  chan []*item
	batches chan []*item
	items   chan *item
	jobs    chan *item
	blocks  chan rawBlock
	encoded chan fullBlock
	spare   chan []byte // room of blocks that are delivered
	memory  *semaphore.Weighted

	bytesRead atomic.Int64
	flying    flying
}

func scanTree(ctx context.Context, tree Tree, req ScanRequest, sink Sink, now func() time.Time, p *part) error {
	s := &scan{
		part:    p,
		tree:    tree,
		req:     req,
		sink:    sink,
		start:   now(),
		walked:  make(chan []*item, 2),
		batches: make(chan []*item, 1),
		items:   make(chan *item, batchItems),
		jobs:    make(chan *item),
		blocks:  make(chan rawBlock),
		encoded: make(chan fullBlock, encodedAhead),
		spare:   make(chan []byte, 2*encodedAhead),
		memory:  semaphore.NewWeighted(readAhead),
		flying:  flying{refs: make(map[store.Ref]struct{})},
	}
	var err error
	if s.exclude, err = parseGlobs(req.Exclude); err != nil {
		return fmt.Errorf("exclude: %w", err)
	}
	if s.mounts, err = tree.Mounts(ctx); err != nil {
		return err
	}
	if s.mounts != nil {
		s.left = s.mounts.left(s.excludedWithin)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { defer close(s.walked); return s.walk(ctx) })
	g.Go(func() error { defer close(s.batches); return s.ask(ctx) })
	g.Go(func() error { defer close(s.items); defer close(s.jobs); return s.dispatch(ctx) })
	for range readers {
		g.Go(func() error { return s.readSmall(ctx) })
	}
	g.Go(func() error { defer close(s.blocks); return s.collect(ctx) })
	var encoding sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		encoding.Add(1)
		g.Go(func() error { defer encoding.Done(); return s.encode(ctx) })
	}
	g.Go(func() error { encoding.Wait(); close(s.encoded); return nil })
	g.Go(func() error { return s.deliver(ctx) })
	err = g.Wait()
	s.release()
	return err
}

// release lets go of what an error left in the stages.
func (s *scan) release() {
	for _, batches := range []chan []*item{s.walked, s.batches} {
		for batch := range batches {
			for _, it := range batch {
				it.letGo()
			}
		}
	}
	for it := range s.items {
		it.letGo()
	}
}

// send sends v unless ctx ends first.
func send[T any](ctx context.Context, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// excludedWithin tells whether path or a directory it is in is left out by the
// request or always.
func (s *scan) excludedWithin(path string) bool {
	for path != "." {
		if isOwn(path) || matchAny(s.exclude, path) {
			return true
		}
		path = parentPath(path)
	}
	return false
}

func isOwn(path string) bool {
	for _, p := range ownPaths {
		if p == path {
			return true
		}
	}
	return false
}

// dispatch hands the items of a batch to the collector, in order, and those
// that are small files to the readers before.
func (s *scan) dispatch(ctx context.Context) error {
	for batch := range s.batches {
		for i, it := range batch {
			if err := s.dispatchItem(ctx, it); err != nil {
				for _, it := range batch[i:] {
					it.letGo()
				}
				return err
			}
		}
	}
	return nil
}

func (s *scan) dispatchItem(ctx context.Context, it *item) error {
	if it.wanted() && it.node.Size <= smallFile {
		it.memory = it.node.Size
		if err := s.memory.Acquire(ctx, it.memory); err != nil {
			return context.Cause(ctx)
		}
		it.done = make(chan struct{})
		if err := send(ctx, s.jobs, it); err != nil {
			it.done = nil // no reader has it
			return err
		}
	}
	return send(ctx, s.items, it)
}

// rawBlock is a block that is full and not yet compressed.
type rawBlock struct {
	audience store.Audience
	chunks   []store.Chunk
	plain    []byte
}

// fullBlock is a block that is compressed, and the room it came from.
type fullBlock struct {
	store.Block
	plain, buf []byte
}

// encode compresses blocks.
func (s *scan) encode(ctx context.Context) error {
	for b := range s.blocks {
		buf := take(s.spare)
		full := fullBlock{store.EncodeBlock(b.audience, b.chunks, b.plain, buf), b.plain, buf}
		if err := send(ctx, s.encoded, full); err != nil {
			return err
		}
	}
	return nil
}

// deliver gives blocks to the sink. While it waits there, others are encoded.
func (s *scan) deliver(ctx context.Context) error {
	for b := range s.encoded {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.sink.Block(ctx, b.Block); err != nil {
			return err
		}
		s.flying.landed(b.Audience, b.Chunks)
		giveBack(s.spare, b.plain)
		giveBack(s.spare, b.buf)
	}
	return nil
}

// take takes room for a block, from spare if there is any.
func take(spare chan []byte) []byte {
	select {
	case b := <-spare:
		return b[:0]
	default:
		return make([]byte, 0, blockRoom)
	}
}

func giveBack(spare chan []byte, b []byte) {
	select {
	case spare <- b:
	default:
	}
}

// flying are the chunks on their way to the sink, which does not know of them
// yet: without it, a chunk that a tree holds twice within a few MiB would be
// sent twice.
type flying struct {
	mu   sync.Mutex
	refs map[store.Ref]struct{}
}

// start tells whether ref is not on its way, and counts it as being from now.
func (f *flying) start(ref store.Ref) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.refs[ref]; ok {
		return false
	}
	f.refs[ref] = struct{}{}
	return true
}

// cancel takes back what start said of a chunk the sink has already.
func (f *flying) cancel(ref store.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.refs, ref)
}

func (f *flying) landed(aud store.Audience, chunks []store.Chunk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range chunks {
		delete(f.refs, store.Ref{Audience: aud, ID: c.ID})
	}
}
