package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Serve is the agent's end: it greets, and carries out on source what the
// client asks, until r ends. That end is the usual one and gives nil; a client
// that breaks the protocol, is silent for the length of Silence, or cannot be
// written to, gives an error. When it ends, r and w are closed if they can be,
// which is what ends a Read or Write under way; when Serve has returned nothing
// of it runs any more.
func Serve(ctx context.Context, r io.Reader, w io.Writer, source imaging.Source, self Hello) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &pacedWriter{ctx: ctx, w: w}
	a := &agent{source: source, cancel: cancel, out: out, w: newFrameWriter(out), waiting: map[uint64]chan []bool{}}
	unblock := context.AfterFunc(ctx, func() {
		for _, end := range []any{r, w} {
			if c, ok := end.(io.Closer); ok {
				c.Close()
			}
		}
	})
	defer unblock()

	self.Version = Version
	if _, err := a.w.w.WriteString(magic); err != nil {
		return fmt.Errorf("greet the capturing end: %w", err)
	}
	if err := a.send(kindHello, self.encode()); err != nil {
		return fmt.Errorf("greet the capturing end: %w", err)
	}
	silence := time.AfterFunc(Silence, func() { cancel(ErrSilent) })
	defer silence.Stop()

	err := a.listen(ctx, newFrameReader(r), silence)
	cancel(ErrGone)
	a.running.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil && !errors.Is(cause, ErrGone) {
		return cause // closed r in the middle of a Read
	}
	return err
}

// agent is the state of one Serve.
type agent struct {
	source  imaging.Source
	cancel  context.CancelCauseFunc
	running sync.WaitGroup // the operation

	mu  sync.Mutex // of w and of the entries gathered
	w   *frameWriter
	out *pacedWriter

	waitMu  sync.Mutex
	last    uint64
	waiting map[uint64]chan []bool
	busy    bool
}

// listen takes the client's frames until the stream ends.
func (a *agent) listen(ctx context.Context, r *frameReader, silence *time.Timer) error {
	if chatter, err := r.skipTo(magic); err != nil || len(chatter) > 0 {
		if len(chatter) == 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = violation("it does not greet")
		}
		return err
	}
	greeted := false
	for {
		k, p, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		silence.Reset(Silence)
		if greeted != (k != kindHello) {
			return violation("an unexpected %s", k)
		}
		if err := a.take(ctx, k, p); err != nil {
			return err
		}
		greeted = true
	}
}

func (a *agent) take(ctx context.Context, k kind, p []byte) error {
	switch k {
	case kindHello:
		peer, err := decodeHello(p)
		if err == nil && peer.Version != Version {
			err = violation("it speaks version %d, this is %d", peer.Version, Version)
		}
		return err
	case kindPing:
		return nil
	case kindCachedAnswer, kindMissingAnswer:
		return a.answered(p)
	case kindDescribe:
		root, err := decodeDescribe(p)
		if err != nil {
			return err
		}
		return a.start(func() error { return a.describe(ctx, root) })
	case kindScan:
		req, err := decodeScan(p)
		if err != nil {
			return err
		}
		return a.start(func() error { return a.scan(ctx, req) })
	case kindQuiet:
		since, err := decodeQuiet(p)
		if err != nil {
			return err
		}
		return a.start(func() error { return a.quiet(ctx, since) })
	}
	return violation("an unexpected %s", k)
}

// start runs an operation; there is one at a time.
func (a *agent) start(op func() error) error {
	a.waitMu.Lock()
	defer a.waitMu.Unlock()
	if a.busy {
		return violation("a second operation beside the first")
	}
	a.busy = true
	a.running.Go(func() {
		err := op()
		a.waitMu.Lock()
		a.busy = false
		a.waitMu.Unlock()
		if err != nil {
			err = a.send(kindError, encodeError(err))
		} else {
			err = a.send(kindDone)
		}
		if err != nil {
			a.cancel(fmt.Errorf("write to the capturing end: %w", err))
		}
	})
	return nil
}

func (a *agent) describe(ctx context.Context, root string) error {
	facts, layout, err := a.source.Describe(ctx, root)
	if err != nil {
		return err
	}
	p, err := encodeDescribed(facts, layout)
	if err != nil {
		return err
	}
	return a.send(kindDescribed, p)
}

// quiet answers for a source that cannot watch that it is not quiet.
func (a *agent) quiet(ctx context.Context, since imaging.Mark) error {
	quiet := false
	if w, ok := a.source.(imaging.Watcher); ok {
		var err error
		if quiet, err = w.Quiet(ctx, since); err != nil {
			return err
		}
	}
	return a.send(kindQuieted, encodeQuieted(quiet))
}

func (a *agent) scan(ctx context.Context, req imaging.ScanRequest) error {
	// The rate is that of the wire, so it is kept here and not by the source.
	if req.Limits.Rate > 0 {
		a.out.pace.Store(imaging.NewPace(float64(req.Limits.Rate)))
		defer a.out.pace.Store(nil)
		req.Limits.Rate = 0
	}
	return a.source.Scan(ctx, req, &agentSink{agent: a, ctx: ctx, asked: map[string]imaging.Stamp{}})
}

// send writes one frame and sees it off.
func (a *agent) send(k kind, parts ...[]byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.w.write(k, parts...); err != nil {
		return err
	}
	return a.w.flush()
}

// put writes one frame that may wait for company.
func (a *agent) put(k kind, parts ...[]byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.w.write(k, parts...)
}

// ask sends a question and waits for its answer.
func (a *agent) ask(ctx context.Context, k kind, n int, encode func(id uint64) []byte) ([]bool, error) {
	ch := make(chan []bool, 1)
	a.waitMu.Lock()
	a.last++
	id := a.last
	a.waiting[id] = ch
	a.waitMu.Unlock()
	if err := a.send(k, encode(id)); err != nil {
		return nil, err
	}
	select {
	case bits := <-ch:
		if len(bits) != n {
			err := violation("%d answers to %d questions", len(bits), n)
			a.cancel(err)
			return nil, err
		}
		return bits, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *agent) answered(p []byte) error {
	ans, err := decodeAnswer(p)
	if err != nil {
		return err
	}
	a.waitMu.Lock()
	defer a.waitMu.Unlock()
	ch, ok := a.waiting[ans.id]
	if !ok {
		return violation("an answer to question %d, which is not open", ans.id)
	}
	delete(a.waiting, ans.id)
	ch <- ans.bits
	return nil
}

// agentSink is the sink that a scan on the head gives to.
type agentSink struct {
	agent *agent
	ctx   context.Context // of the whole Serve: ends with the stream

	mu    sync.Mutex
	asked map[string]imaging.Stamp // answered "cached", not yet in an entry
}

// askAll splits a long question, puts all parts, and joins the answers.
func askAll[Q any](ctx context.Context, s *agentSink, k kind, max int, all []Q, encode func(id uint64, from, to int) []byte) ([]bool, error) {
	type part struct {
		bits []bool
		err  error
	}
	var parts []chan part
	for from := 0; from < len(all); from += max {
		to, ch := min(from+max, len(all)), make(chan part, 1)
		parts = append(parts, ch)
		go func() {
			bits, err := s.agent.ask(ctx, k, to-from, func(id uint64) []byte { return encode(id, from, to) })
			ch <- part{bits, err}
		}()
	}
	var bits []bool
	var failed error
	for _, ch := range parts {
		p := <-ch
		if p.err != nil && failed == nil {
			failed = p.err
		}
		bits = append(bits, p.bits...)
	}
	return bits, failed
}

func (s *agentSink) Cached(ctx context.Context, class []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	if len(class) != len(files) {
		return nil, fmt.Errorf("%d classes for %d files", len(class), len(files))
	}
	ctx, cancel := s.join(ctx)
	defer cancel()
	bits, err := askAll(ctx, s, kindCached, maxFiles/8, files, func(id uint64, from, to int) []byte {
		return question{id: id, class: class[from:to], files: files[from:to]}.encode()
	})
	if err != nil {
		return nil, err
	}
	contents := make([]*imaging.Content, len(files))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, cached := range bits {
		if cached {
			contents[i] = cachedContent()
			s.asked[files[i].Path] = files[i]
		}
	}
	return contents, nil
}

// isAsked tells whether the client knows the stamp from having been asked. It
// forgets as the client does: with the entry.
func (s *agentSink) isAsked(stamp *imaging.Stamp, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked, ok := s.asked[path]
	delete(s.asked, path)
	return ok && asked == *stamp
}

func (s *agentSink) Missing(ctx context.Context, refs []store.Ref) ([]bool, error) {
	ctx, cancel := s.join(ctx)
	defer cancel()
	return askAll(ctx, s, kindMissing, maxRefs, refs, func(id uint64, from, to int) []byte {
		return missing{id: id, refs: refs[from:to]}.encode()
	})
}

// join gives a context that ends with either.
func (s *agentSink) join(ctx context.Context) (context.Context, context.CancelFunc) {
	joined, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })
	return joined, func() { stop(); cancel(nil) }
}

func (s *agentSink) live(ctx context.Context) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (s *agentSink) Block(ctx context.Context, b store.Block) error {
	if err := s.live(ctx); err != nil {
		return err
	}
	return s.agent.send(kindBlock, encodeBlock(b), b.Data)
}

func (s *agentSink) Entries(ctx context.Context, entries []imaging.Entry, stamps []imaging.Stamp) error {
	if err := s.live(ctx); err != nil {
		return err
	}
	if len(entries) != len(stamps) {
		return fmt.Errorf("%d stamps for %d entries", len(stamps), len(entries))
	}
	var frame []byte
	n, prev := 0, ""
	flush := func() error {
		if n == 0 {
			return nil
		}
		err := s.agent.put(kindEntries, putUint(nil, uint64(n)), frame)
		frame, n, prev = frame[:0], 0, ""
		return err
	}
	for i := range entries {
		e := &entries[i]
		if needsRuns(e) {
			if err := flush(); err != nil {
				return err
			}
			if err := s.runs(e); err != nil {
				return err
			}
		}
		var err error
		if frame, err = putEntry(frame, prev, e, stamps[i], s.isAsked(&stamps[i], e.Path)); err != nil {
			return err
		}
		n, prev = n+1, e.Path
		if len(frame) >= flushEntries {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// runs sends the long lists of an entry in frames of their own.
func (s *agentSink) runs(e *imaging.Entry) error {
	if len(e.Chunks) > maxEntryRuns || len(e.Extents) > maxEntryRuns {
		return fmt.Errorf("%s has %d chunks in %d extents, more than the protocol carries (%d)", e.Path, len(e.Chunks), len(e.Extents), maxEntryRuns)
	}
	for run := range slices.Chunk(e.Chunks, maxRun) {
		if err := s.agent.put(kindChunks, putChunks(nil, run)); err != nil {
			return err
		}
	}
	end := int64(0)
	if e.Extents != nil && len(e.Extents) == 0 {
		return s.agent.put(kindExtents, putExtents(nil, nil, 0))
	}
	for run := range slices.Chunk(e.Extents, maxRun) {
		if err := s.agent.put(kindExtents, putExtents(nil, run, end)); err != nil {
			return err
		}
		last := run[len(run)-1]
		end = last.Offset + last.Length
	}
	return nil
}

func (s *agentSink) Same(ctx context.Context, path string) error {
	if err := s.live(ctx); err != nil {
		return err
	}
	return s.agent.put(kindSame, encodeSame(path))
}

func (s *agentSink) Note(ctx context.Context, n imaging.Note) error {
	if err := s.live(ctx); err != nil {
		return err
	}
	if n.Kind == imaging.NoteInstant {
		return s.agent.send(kindNote, encodeNote(n)) // somebody may wait for it
	}
	return s.agent.put(kindNote, encodeNote(n))
}

// Progress sends the totals and, with them, whatever entries wait.
func (s *agentSink) Progress(p imaging.ScanProgress) {
	if s.ctx.Err() != nil {
		return
	}
	if err := s.agent.send(kindProgress, encodeProgress(p)); err != nil {
		s.agent.cancel(fmt.Errorf("write to the capturing end: %w", err))
	}
}
