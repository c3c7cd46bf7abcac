package imaging

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// Limits bound what a scan takes of the host it runs on. Zero is no limit.
type Limits struct {
	// Rate is how many bytes a second the scan may send away: over the wire,
	// when the tree is a remote one; into the store, when it is this machine's.
	Rate int64
	// CPU is how much of the CPUs the scan's process may use, in percent of one
	// core as top shows it: 50 is half a core, 200 are two.
	CPU int
}

// paceAhead is how far a pace may be caught up with after a pause.
const paceAhead = 100 * time.Millisecond

// Pace holds something to a rate: within any t seconds at most rate × (t + 0.1)
// of it are spent. It stands concurrent use. The nil Pace holds nothing back.
type Pace struct {
	rate float64
	mu   sync.Mutex
	free time.Time // when what was spent so far is paid for
}

// NewPace is a pace of so much a second, which must be more than 0.
func NewPace(perSecond float64) *Pace { return &Pace{rate: perSecond} }

// Spend waits until n more may be spent. What it gives is the cause of ctx,
// when that ends first.
func (p *Pace) Spend(ctx context.Context, n int64) error {
	if p == nil {
		return nil
	}
	now := time.Now()
	p.mu.Lock()
	if earliest := now.Add(-paceAhead); p.free.Before(earliest) {
		p.free = earliest
	}
	p.free = p.free.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
	wait := p.free.Sub(now)
	p.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// cpuPace holds this process to a share of a core.
type cpuPace struct {
	pace  *Pace
	used  func() time.Duration // by the process, so far
	calls atomic.Int64
	mu    sync.Mutex
	seen  time.Duration
}

func newCPUPace(percent int) *cpuPace {
	return &cpuPace{pace: NewPace(float64(percent) / 100 * 1e9), used: processCPU, seen: processCPU()}
}

// processCPU is the CPU time of all threads.
func processCPU() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// rest waits until what the process has used is paid for.
func (c *cpuPace) rest(ctx context.Context) error {
	c.mu.Lock()
	used := c.used()
	spent := used - c.seen
	c.seen = used
	c.mu.Unlock()
	return c.pace.Spend(ctx, int64(spent))
}

// often is rest for what is done often and costs little: asking the clock
// every time would cost more.
func (c *cpuPace) often(ctx context.Context) error {
	if c.calls.Add(1)%64 != 0 {
		return nil
	}
	return c.rest(ctx)
}

// held gives a tree and a sink that keep a scan within its limits, and what
// undoes the part of it that is the whole process's.
func (l Limits) held(tree Tree, sink Sink) (Tree, Sink, func()) {
	undo := func() {}
	if l.Rate > 0 {
		sink = &pacedSink{Sink: sink, rate: NewPace(float64(l.Rate))}
	}
	if l.CPU > 0 {
		// Fewer threads at a time, so that half a core is not two for a quarter
		// of the time.
		if cores := (l.CPU + 99) / 100; cores < runtime.GOMAXPROCS(0) {
			before := runtime.GOMAXPROCS(cores)
			undo = func() { runtime.GOMAXPROCS(before) }
		}
		cpu := newCPUPace(l.CPU)
		tree, sink = &pacedTree{tree, cpu}, &pacedSink{Sink: sink, cpu: cpu}
	}
	return tree, sink, undo
}

// pacedSink takes things at a pace.
type pacedSink struct {
	Sink
	rate *Pace
	cpu  *cpuPace
}

func (s *pacedSink) rest(ctx context.Context) error {
	if s.cpu == nil {
		return nil
	}
	return s.cpu.rest(ctx)
}

func (s *pacedSink) Missing(ctx context.Context, refs []store.Ref) ([]bool, error) {
	if err := s.rest(ctx); err != nil {
		return nil, err
	}
	return s.Sink.Missing(ctx, refs)
}

func (s *pacedSink) Block(ctx context.Context, b store.Block) error {
	if err := s.rate.Spend(ctx, int64(len(b.Data))); err != nil {
		return err
	}
	if err := s.rest(ctx); err != nil {
		return err
	}
	return s.Sink.Block(ctx, b)
}

func (s *pacedSink) Entries(ctx context.Context, entries []Entry, stamps []Stamp) error {
	if err := s.rest(ctx); err != nil {
		return err
	}
	return s.Sink.Entries(ctx, entries, stamps)
}

// pacedTree is a tree that is walked and read at a pace.
type pacedTree struct {
	Tree
	cpu *cpuPace
}

func (t *pacedTree) Root(ctx context.Context) (Dir, error) {
	d, err := t.Tree.Root(ctx)
	if err != nil {
		return nil, err
	}
	return &pacedDir{d, t.cpu}, nil
}

// unpaced is Dir by a name that its method leaves free.
type unpaced = Dir

type pacedDir struct {
	unpaced
	cpu *cpuPace
}

func (d *pacedDir) Names(ctx context.Context) ([]string, error) {
	if err := d.cpu.rest(ctx); err != nil {
		return nil, err
	}
	return d.unpaced.Names(ctx)
}

func (d *pacedDir) Stat(ctx context.Context, name string) (Node, error) {
	if err := d.cpu.often(ctx); err != nil {
		return Node{}, err
	}
	return d.unpaced.Stat(ctx, name)
}

func (d *pacedDir) Dir(ctx context.Context, name string) (Dir, error) {
	sub, err := d.unpaced.Dir(ctx, name)
	if err != nil {
		return nil, err
	}
	return &pacedDir{sub, d.cpu}, nil
}

func (d *pacedDir) Open(ctx context.Context, name string) (File, error) {
	if err := d.cpu.often(ctx); err != nil {
		return nil, err
	}
	f, err := d.unpaced.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return &pacedFile{f, ctx, d.cpu}, nil
}

type pacedFile struct {
	File
	ctx context.Context // of the scan that opened it
	cpu *cpuPace
}

func (f *pacedFile) ReadAt(b []byte, off int64) (int, error) {
	rest := f.cpu.rest
	if len(b) < smallFile/4 {
		rest = f.cpu.often
	}
	if err := rest(f.ctx); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}
