package web

import (
	"context"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// pickupTime is how long a node may take to ask for work that waits for it:
// longer than one that waits for work is let wait.
const pickupTime = 40 * time.Second

// question is a task whose answer somebody waits for.
type question struct {
	node   string
	task   clone.Task
	taken  chan struct{} // closed when the node has it
	answer chan any
}

// questions are those that wait for nodes. What nobody waits for any more is
// not among them.
type questions struct {
	mu    sync.Mutex
	open  map[string]*question // by ID
	added chan struct{}        // closed, and made anew, with every question
}

// ask gives a node a task and waits for its answer. A node that does not ask
// for work gives a *cluster.RefusedError.
func (q *questions) ask(ctx context.Context, node, id string, task clone.Task) (any, error) {
	v := &question{node: node, task: task, taken: make(chan struct{}), answer: make(chan any, 1)}
	q.put(id, v)
	defer q.drop(id)
	late := time.NewTimer(pickupTime)
	defer late.Stop()
	select {
	case <-v.taken:
	case <-late.C:
		return nil, &cluster.RefusedError{What: node + " does not ask for work", Hint: "see that it is up and that its doppel-agent.service runs; doppel status tells when it was last heard from"}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case a := <-v.answer:
		return a, nil
	case <-ctx.Done():
	}
	q.drop(id)
	select {
	case a := <-v.answer: // it came just before, and may be a connection
		return a, nil
	default:
		return nil, context.Cause(ctx)
	}
}

// askBriefly is ask for what a node answers as soon as it has the task. One that
// takes it and is gone then, by a power cut say, has been given it for nothing:
// that it does not answer gives a *cluster.RefusedError, too.
func (q *questions) askBriefly(ctx context.Context, node, id string, task clone.Task) (any, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*pickupTime, &cluster.RefusedError{
		What: node + " took the task, and has not answered",
		Hint: "see that it is up, and journalctl -u doppel-agent on it; then ask again",
	})
	defer cancel()
	return q.ask(ctx, node, id, task)
}

func (q *questions) put(id string, v *question) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.open == nil {
		q.open = map[string]*question{}
	}
	q.open[id] = v
	if q.added != nil {
		close(q.added)
		q.added = nil
	}
}

func (q *questions) drop(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.open, id)
}

// next finds a task for a node, and what is closed when there are more. A node
// does one thing at a time: one that asks again has not answered because it was
// started anew, and is given the same.
func (q *questions) next(node string) (*clone.Task, <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, v := range q.open {
		if v.node != node {
			continue
		}
		select {
		case <-v.taken:
		default:
			close(v.taken)
		}
		return &v.task, nil
	}
	if q.added == nil {
		q.added = make(chan struct{})
	}
	return nil, q.added
}

// answered gives a node's answer to who asked, if anybody still waits for it.
func (q *questions) answered(node, id string, answer any) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	v := q.open[id]
	if v == nil || v.node != node {
		return false
	}
	delete(q.open, id)
	v.answer <- answer // has room for it
	return true
}
