package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// ErrLocked says that another process owns the state.
var ErrLocked = errors.New("another doppel serve owns this state")

// ErrClosed says that the cluster was closed.
var ErrClosed = errors.New("the cluster's state is closed")

// Options are the rules that a cluster is kept by, and its limits.
type Options struct {
	Network   netip.Prefix // that nodes have their addresses in; invalid: not checked
	Server    netip.Addr   // this server's own address in it
	PoolFirst netip.Addr   // of the pool for machines not yet assigned; invalid: no pool
	PoolLast  netip.Addr

	Now           func() time.Time // default time.Now
	LockTimeout   time.Duration    // how long Open waits for another owner; default 1 s
	FlushEvery    time.Duration    // of counts and progress; default 3 s
	KeepLog       int              // entries; default 65536
	KeepEvents    int              // default 16384
	KeepSightings int              // of machines that are no node's; default 4096
	Log           *slog.Logger     // default: none
}

func (o Options) filled() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.LockTimeout = cmp.Or(o.LockTimeout, time.Second)
	o.FlushEvery = cmp.Or(o.FlushEvery, 3*time.Second)
	o.KeepLog = cmp.Or(o.KeepLog, 1<<16)
	o.KeepEvents = cmp.Or(o.KeepEvents, 1<<14)
	o.KeepSightings = cmp.Or(o.KeepSightings, 1<<12)
	return o
}

func (o Options) now() time.Time { return o.Now().UTC().Round(0) }

func (o Options) inPool(a netip.Addr) bool {
	return o.PoolFirst.IsValid() && a.Compare(o.PoolFirst) >= 0 && a.Compare(o.PoolLast) <= 0
}

// Cluster is the state of one cluster. All methods are safe for concurrent
// use.
type Cluster struct {
	options  Options
	db       *bbolt.DB
	requests chan *request
	dirty    chan struct{} // something waits to be flushed
	closing  chan struct{}
	close    sync.Once
	done     chan struct{} // the writer has ended
	closeErr error         // of the writer's last acts; read after done

	work *state // the writer's own; ahead of what readers see

	mu       sync.RWMutex // guards what follows
	seen     *state
	events   []Event // oldest first
	soft     soft
	watchers map[chan struct{}]struct{}
}

// request is one caller's changes on their way through the writer.
type request struct {
	changes []Change
	entries []Entry // of another cluster's log, instead of changes
	try     bool    // only tell what would come of it
	nodes   []Node  // that would come of it
	err     error
	done    chan struct{}
}

// Open opens the state at path, or makes a new one. The caller must Close it.
// It gives ErrLocked when another process has it open.
func Open(path string, o Options) (*Cluster, error) {
	c := &Cluster{
		options:  o.filled(),
		requests: make(chan *request),
		dirty:    make(chan struct{}, 1),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		soft:     newSoft(),
		watchers: map[chan struct{}]struct{}{},
	}
	var err error
	if c.db, err = openDB(path, c.options.LockTimeout); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, errors.Join(err, c.db.Close())
	}
	go c.write()
	return c, nil
}

// Close writes what waits to be written and gives up the state. It waits for
// the commits that have begun; later ones give ErrClosed.
func (c *Cluster) Close() error {
	c.close.Do(func() { close(c.closing) })
	<-c.done
	return c.closeErr
}

// Commit makes the changes, all or none, and returns when they are durable.
// A change that breaks a rule gives a *RefusedError. When ctx ends before the
// writer has taken the changes up, nothing happens; after that Commit waits
// for the outcome, so an error always means that nothing was changed.
func (c *Cluster) Commit(ctx context.Context, changes ...Change) error {
	return c.submit(ctx, &request{changes: changes, done: make(chan struct{})})
}

// Try tells what the inventory would be after the changes, and changes nothing.
func (c *Cluster) Try(ctx context.Context, changes ...Change) ([]Node, error) {
	r := &request{changes: changes, try: true, done: make(chan struct{})}
	err := c.submit(ctx, r)
	return r.nodes, err
}

// Replicate applies entries of another cluster's log, which must follow on the
// last one here. Rules are not checked again.
func (c *Cluster) Replicate(ctx context.Context, entries ...Entry) error {
	return c.submit(ctx, &request{entries: entries, done: make(chan struct{})})
}

func (c *Cluster) submit(ctx context.Context, r *request) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	select {
	case c.requests <- r:
	case <-c.closing:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	<-r.done
	return r.err
}

// maxBatch bounds how many callers share a transaction.
const maxBatch = 256

// write is the only goroutine that writes; Close ends it.
func (c *Cluster) write() {
	defer close(c.done)
	var flush <-chan time.Time
	for {
		select {
		case r := <-c.requests:
			c.batch(r)
		case <-c.dirty:
			if flush == nil {
				flush = time.After(c.options.FlushEvery)
			}
		case <-flush:
			flush = nil
			if err := c.flush(); err != nil {
				c.options.Log.Warn("writing counts and progress", "error", err)
				c.markDirty()
			}
		case <-c.closing:
			c.closeErr = errors.Join(c.flush(), c.db.Close())
			c.endWatches()
			return
		}
	}
}

// batch takes up all requests that wait, and commits them together.
func (c *Cluster) batch(first *request) {
	requests := []*request{first}
gather:
	for len(requests) < maxBatch {
		select {
		case r := <-c.requests:
			requests = append(requests, r)
		default:
			break gather
		}
	}
	c.commit(requests)
	for _, r := range requests {
		close(r.done)
	}
}

// commit carries out the requests in one transaction and sets each one's err.
func (c *Cluster) commit(requests []*request) {
	at := c.options.now()
	for _, r := range requests {
		from := c.work.mark()
		r.err = c.work.carryOut(r, at)
		if r.try && r.err == nil {
			for _, n := range c.work.sorted() {
				r.nodes = append(r.nodes, n.clone())
			}
		}
		if r.try || r.err != nil {
			c.work.rollback(from)
		}
	}
	if len(c.work.journal.entries) == 0 {
		c.work.journal = newJournal()
		return
	}
	if err := c.persist(c.work); err != nil {
		err = fmt.Errorf("writing the cluster's state: %w", err)
		for _, r := range requests {
			if r.err == nil && !r.try {
				r.err = err
			}
		}
		if err := c.recover(); err != nil {
			c.options.Log.Error("reading the cluster's state again", "error", err)
		}
		return
	}
	c.publish()
}

// carryOut alters the state as a request asks.
func (s *state) carryOut(r *request, at time.Time) error {
	for _, change := range r.changes {
		done, err := change.prepare(s, at)
		if err != nil {
			return err
		}
		if done == nil {
			continue
		}
		if err := s.enter(Entry{Seq: s.seq + 1, Time: at, Change: done}); err != nil {
			return err
		}
	}
	for _, e := range r.entries {
		if e.Seq != s.seq+1 {
			return fmt.Errorf("entry %d does not follow on %d", e.Seq, s.seq)
		}
		if err := s.enter(e); err != nil {
			return err
		}
	}
	return nil
}

// enter applies an entry and puts it in the journal.
func (s *state) enter(e Entry) error {
	if err := e.Change.apply(s, e.Time); err != nil {
		return fmt.Errorf("applying entry %d (%s): %w", e.Seq, e.Change.Kind(), err)
	}
	s.seq = e.Seq
	s.journal.entries = append(s.journal.entries, e)
	return nil
}

// publish lets readers see what has become durable.
func (c *Cluster) publish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.follow(c.work)
	c.soft.outdate(c.work)
	c.events = append(c.events, c.work.journal.events...)
	if over := len(c.events) - c.options.KeepEvents; over > 0 {
		c.events = c.events[over:]
	}
	c.work.journal = newJournal()
	c.notify()
}

// recover brings the writer back to what is on disk after a write that did not
// succeed. Nearly always that is what readers see; but when it was the last
// fsync that gave the error, the transaction may have come through, and what
// is on disk is the truth.
func (c *Cluster) recover() error {
	seq, err := c.seqOnDisk()
	if err != nil {
		c.work.rollback(mark{seq: c.seen.seq})
		c.work.journal = newJournal()
		return err
	}
	if seq == c.seen.seq {
		c.work.rollback(mark{seq: seq})
		c.work.journal = newJournal()
		return nil
	}
	return c.load()
}
