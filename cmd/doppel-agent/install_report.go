package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"doppel/clone"
)

// reportEvery keeps progress to two reports a second.
const reportEvery = 500 * time.Millisecond

// reporter carries a machine's word on its stages to the head, in order. Of
// one stage only the newest word is kept while the head is not asked.
type reporter struct {
	head   *head
	path   string                  // that words go to
	cancel context.CancelCauseFunc // ends the install when the head refuses its reports

	mu      sync.Mutex
	pending []clone.Report
	waiting []chan struct{} // closed when all that was pending has been taken by the head
	news    chan struct{}
	ended   chan struct{}
	printed time.Time
}

func startReporter(ctx context.Context, h *head, path string, cancel context.CancelCauseFunc) *reporter {
	r := &reporter{head: h, path: path, cancel: cancel, news: make(chan struct{}, 1), ended: make(chan struct{})}
	go r.carry(ctx)
	return r
}

// report takes a word without blocking.
func (r *reporter) report(w clone.Report) {
	w.Detail = clip(w.Detail)
	r.mu.Lock()
	if n := len(r.pending); n > 0 && r.pending[n-1].Stage == w.Stage && w.Done > 0 {
		r.pending[n-1] = w
	} else {
		r.pending = append(r.pending, w)
	}
	r.mu.Unlock()
	r.show(w)
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// confirm waits until the head has taken every word so far, however long it
// does not answer. When it refuses one, that is the error.
func (r *reporter) confirm(ctx context.Context) error {
	taken := make(chan struct{})
	r.mu.Lock()
	r.waiting = append(r.waiting, taken)
	r.mu.Unlock()
	select {
	case r.news <- struct{}{}:
	default:
	}
	select {
	case <-taken:
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// show prints stages as they begin and how far they are every few seconds.
func (r *reporter) show(w clone.Report) {
	r.mu.Lock()
	quiet := w.Done > 0 && w.Done < w.Total && time.Since(r.printed) < 5*time.Second
	if !quiet {
		r.printed = time.Now()
	}
	r.mu.Unlock()
	if quiet {
		return
	}
	switch {
	case w.Total > 0:
		r.head.say("%s: %s of %s (%d%%) %s", w.Stage, bytesText(w.Done), bytesText(w.Total), percent(w.Done, w.Total), w.Detail)
	default:
		r.head.say("%s %s", w.Stage, w.Detail)
	}
}

// maxDetail bounds the words that go with a stage, in bytes: the head keeps no
// more of them.
const maxDetail = 4096

func clip(words string) string {
	if len(words) > maxDetail {
		return strings.ToValidUTF8(words[:maxDetail], "")
	}
	return words
}

func percent(done, total int64) int64 {
	if total <= 0 {
		return 0
	}
	return int64(100 * (float64(done) / float64(total)))
}

// carry posts what is pending until ctx is done. A head that cannot be reached
// is waited for; one that refuses (a disarmed node, a new deploy) ends the
// install.
func (r *reporter) carry(ctx context.Context) {
	defer close(r.ended)
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.news:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		words, waiting := r.pending, r.waiting
		r.pending, r.waiting = nil, nil
		r.mu.Unlock()
		for i, w := range words {
			if _, err := r.head.ask(ctx, r.path, w, nil); err != nil {
				var no *refusal
				if errors.As(err, &no) {
					r.cancel(no)
				}
				r.putBack(words[i:])
				return
			}
		}
		for _, taken := range waiting {
			close(taken)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *reporter) take() []clone.Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pending
	r.pending = nil
	return p
}

// putBack keeps what could not be told.
func (r *reporter) putBack(words []clone.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = append(words, r.pending...)
}
