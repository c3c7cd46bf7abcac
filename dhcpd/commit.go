package dhcpd

import (
	"context"
	"sync"
)

// committer makes changes durable in the order in which they are queued. What
// is queued while it writes goes into the next write together, where Leases can
// do that (Batch).
type committer struct {
	leases Leases
	wake   chan struct{} // holds one: there is something to do
	done   sync.WaitGroup

	mu      sync.Mutex
	pending []pending
}

// pending is a change of somebody who waits for it.
type pending struct {
	changes []Change
	durable chan<- error
}

func newCommitter(l Leases) *committer {
	c := &committer{leases: l, wake: make(chan struct{}, 1)}
	c.done.Go(func() {
		for range c.wake {
			c.mu.Lock()
			batch := c.pending
			c.pending = nil
			c.mu.Unlock()
			c.write(batch)
		}
	})
	return c
}

// queue never blocks. The channel gets one error, nil if all is durable; it is
// closed at once if there is nothing to do.
func (c *committer) queue(changes []Change) <-chan error {
	durable := make(chan error, 1)
	if len(changes) == 0 {
		close(durable)
		return durable
	}
	c.mu.Lock()
	c.pending = append(c.pending, pending{changes, durable})
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return durable
}

// close waits for what is queued. Nobody may queue any more.
func (c *committer) close() {
	close(c.wake)
	c.done.Wait()
}

// write is not to be interrupted: what was decided is to be remembered, even by
// a server that is about to stop.
func (c *committer) write(batch []pending) {
	ctx := context.Background()
	b, ok := c.leases.(Batch)
	if !ok || len(batch) == 0 {
		for _, p := range batch {
			p.durable <- c.one(ctx, p.changes)
		}
		return
	}
	var all []Change
	for _, p := range batch {
		all = append(all, p.changes...)
	}
	err := b.Apply(ctx, all)
	for _, p := range batch {
		p.durable <- err
	}
}

func (c *committer) one(ctx context.Context, changes []Change) error {
	for _, change := range changes {
		var err error
		if change.Gone {
			err = c.leases.Delete(ctx, change.Lease.Addr)
		} else {
			err = c.leases.Put(ctx, change.Lease)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
