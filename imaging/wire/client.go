package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"doppel/imaging"
)

// Client is the capturing end: an imaging.Source whose tree is at the other
// end of a stream. Its operations run one at a time.
type Client struct {
	agent Hello
	r     *frameReader
	total atomic.Int64

	mu sync.Mutex // of w
	w  *frameWriter
	in io.Closer // the stream to the agent

	abort  func()
	broken atomic.Bool
	stop   context.CancelFunc
	pings  sync.WaitGroup
}

var _ imaging.Watcher = (*Client)(nil)

// NewClient waits for the agent's greeting on r and greets back on w. abort
// ends both streams at once, so that a Read or Write under way returns; it is
// called when a context ends or a sink fails, maybe more than once.
func NewClient(ctx context.Context, r io.Reader, w io.WriteCloser, build string, abort func()) (*Client, error) {
	c := &Client{r: newFrameReader(r), w: newFrameWriter(w), in: w, abort: abort}
	unhook := context.AfterFunc(ctx, c.cut)
	err := c.greet(build)
	unhook()
	if err != nil {
		c.cut()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	alive, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.pings.Go(func() { c.ping(alive) })
	return c, nil
}

func (c *Client) greet(build string) error {
	if chatter, err := c.r.skipTo(magic); err != nil {
		if isEOF(err) && len(chatter) > 0 {
			err = fmt.Errorf("%w after %q", err, cut(string(chatter), 200))
		}
		return asCut(err)
	}
	k, p, err := c.r.next()
	if err != nil {
		return asCut(err)
	}
	if k != kindHello {
		return violation("a %s in place of a greeting", k)
	}
	if c.agent, err = decodeHello(p); err != nil {
		return err
	}
	if c.agent.Version != Version {
		return fmt.Errorf("the agent speaks version %d of the protocol, this doppel speaks %d: use the doppel-agent that was built with it", c.agent.Version, Version)
	}
	c.total.Store(c.r.total)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.w.WriteString(magic); err != nil {
		return asCut(err)
	}
	if err := c.w.write(kindHello, Hello{Version: Version, Build: build}.encode()); err != nil {
		return asCut(err)
	}
	return asCut(c.w.flush())
}

// Agent is how the agent greeted.
func (c *Client) Agent() Hello { return c.agent }

// Received counts the bytes that came from the agent.
func (c *Client) Received() int64 { return c.total.Load() }

// ping gives a sign of life until ctx ends or writing fails.
func (c *Client) ping(ctx context.Context) {
	tick := time.NewTicker(Silence / 6)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if c.send(kindPing, nil) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (c *Client) cut() {
	c.broken.Store(true)
	c.abort()
}

func (c *Client) send(k kind, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.w.write(k, p); err != nil {
		return err
	}
	return asCut(c.w.flush())
}

func (c *Client) next() (kind, []byte, error) {
	k, p, err := c.r.next()
	c.total.Store(c.r.total)
	return k, p, asCut(err)
}

func isEOF(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func isCut(err error) bool {
	var c *CutError
	return errors.As(err, &c)
}

// asCut says of a stream's error that the stream ended.
func asCut(err error) error {
	var p *ProtocolError
	if err == nil || errors.As(err, &p) {
		return err
	}
	return &CutError{Err: err}
}

// during runs one operation. When ctx ends, or the operation fails in a way
// that leaves the stream in the middle of something, the stream is cut.
func (c *Client) during(ctx context.Context, op func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if c.broken.Load() {
		return &CutError{Err: errors.New("an earlier operation broke it off")}
	}
	unhook := context.AfterFunc(ctx, c.cut)
	defer unhook()
	err := op(ctx)
	var remote *RemoteError
	switch {
	case err == nil, errors.As(err, &remote) && ctx.Err() == nil:
		return err
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	c.cut()
	return err
}

// Describe implements imaging.Source.
func (c *Client) Describe(ctx context.Context, root string) (facts imaging.Facts, layout *imaging.Layout, err error) {
	err = c.ask(ctx, kindDescribe, encodeDescribe(root), kindDescribed, func(p []byte) error {
		facts, layout, err = decodeDescribed(p)
		return err
	})
	return facts, layout, err
}

// Quiet implements imaging.Watcher.
func (c *Client) Quiet(ctx context.Context, since imaging.Mark) (quiet bool, err error) {
	err = c.ask(ctx, kindQuiet, encodeQuiet(since), kindQuieted, func(p []byte) error {
		quiet, err = decodeQuieted(p)
		return err
	})
	return quiet, err
}

// ask runs an operation that has one answer.
func (c *Client) ask(ctx context.Context, question kind, payload []byte, answer kind, decode func([]byte) error) error {
	return c.during(ctx, func(context.Context) error {
		if err := c.send(question, payload); err != nil {
			return err
		}
		k, p, err := c.next()
		switch {
		case err != nil:
			return err
		case k == kindError:
			return decodeError(p)
		case k != answer:
			return violation("a %s in place of a %s", k, answer)
		}
		if err := decode(p); err != nil {
			return err
		}
		if k, _, err = c.next(); err == nil && k != kindDone {
			err = violation("a %s after a %s", k, answer)
		}
		return err
	})
}

// Scan implements imaging.Source.
func (c *Client) Scan(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
	if len(req.Exclude) > maxExcludes {
		return fmt.Errorf("%d exclusions are more than the protocol carries (%d)", len(req.Exclude), maxExcludes)
	}
	if req.Limits.Rate < 0 || req.Limits.CPU < 0 || req.Limits.CPU > maxCPU {
		return fmt.Errorf("limits of %d bytes a second and %d %% of a core are out of range", req.Limits.Rate, req.Limits.CPU)
	}
	if err := checkConsistency(&req.Consistency); err != nil {
		return err
	}
	return c.during(ctx, func(ctx context.Context) error {
		if err := c.send(kindScan, encodeScan(req)); err != nil {
			return err
		}
		s := &scan{
			client: c, sink: sink, known: map[string]known{},
			cached: make(chan []byte, 4), missing: make(chan []byte, 4), things: make(chan thing, 2),
		}
		return s.run(ctx)
	})
}

// Close says goodbye: the agent ends when its input does. It does not wait for
// that.
func (c *Client) Close() error {
	c.stop()
	c.broken.Store(true)
	err := c.in.Close()
	c.pings.Wait()
	if isEOF(err) {
		return nil // the stream had ended before
	}
	return err
}

// scan is one Scan under way. One goroutine reads the stream; one each answers
// either kind of question; one gives things to the sink in their order. The
// reader waits when the one it has something for is busy, so what is in memory
// is bounded by a few frames.
type scan struct {
	client  *Client
	sink    imaging.Sink
	cached  chan []byte
	missing chan []byte
	things  chan thing
	entries entryDecoder

	mu    sync.Mutex
	known map[string]known // answered "cached", not yet in an entry
}

// thing is a frame that goes to the sink in order.
type thing struct {
	kind    kind
	payload []byte
}

func (s *scan) run(ctx context.Context) error {
	s.entries.cached = s.takeKnown
	g, ctx := errgroup.WithContext(ctx)
	var ended error
	g.Go(func() error {
		// What had come before the stream ended, or before the agent gave up,
		// is still taken: it is not to be sent again next time.
		ended = s.read(ctx)
		close(s.cached)
		close(s.missing)
		close(s.things)
		var lied *ProtocolError
		if errors.As(ended, &lied) {
			return ended
		}
		return nil
	})
	// A failure of one of these must end the Read of the reader.
	worker := func(work func() error) {
		g.Go(func() error {
			err := work()
			if err != nil {
				s.client.cut()
			}
			return err
		})
	}
	worker(func() error { return drain(ctx, s.cached, s.answerCached) })
	worker(func() error { return drain(ctx, s.missing, s.answerMissing) })
	worker(func() error { return drain(ctx, s.things, s.give) })
	if err := g.Wait(); err != nil && (ended == nil || !isCut(err)) {
		return err
	}
	return ended
}

// drain hands what comes through ch to fn until ch closes.
func drain[T any](ctx context.Context, ch <-chan T, fn func(context.Context, T) error) error {
	for {
		select {
		case v, ok := <-ch:
			if !ok {
				return nil
			}
			if err := fn(ctx, v); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func pass[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read takes frames off the stream until the agent is done.
func (s *scan) read(ctx context.Context) error {
	for {
		k, p, err := s.client.next()
		if err != nil {
			return err
		}
		switch k {
		case kindCached:
			err = pass(ctx, s.cached, p)
		case kindMissing:
			err = pass(ctx, s.missing, p)
		case kindBlock, kindChunks, kindExtents, kindEntries, kindSame, kindNote:
			err = pass(ctx, s.things, thing{k, p})
		case kindProgress:
			var totals imaging.ScanProgress
			if totals, err = decodeProgress(p); err == nil {
				s.sink.Progress(totals)
			}
		case kindDone:
			return nil
		case kindError:
			return decodeError(p)
		default:
			err = violation("a %s in the middle of a scan", k)
		}
		if err != nil {
			return err
		}
	}
}

func (s *scan) answerCached(ctx context.Context, p []byte) error {
	q, err := decodeQuestion(p)
	if err != nil {
		return err
	}
	contents, err := s.sink.Cached(ctx, q.class, q.files)
	if err != nil {
		return err
	}
	if len(contents) != len(q.files) {
		return fmt.Errorf("%d answers to %d questions", len(contents), len(q.files))
	}
	bits := make([]bool, len(contents))
	s.mu.Lock()
	for i, c := range contents {
		if bits[i] = c != nil; bits[i] {
			s.known[q.files[i].Path] = known{c, q.files[i]}
		}
	}
	n := len(s.known)
	s.mu.Unlock()
	if n > maxCached {
		return violation("it asked for %d files and gave an entry for none", n)
	}
	return s.client.send(kindCachedAnswer, answer{id: q.id, bits: bits}.encode())
}

// takeKnown gives what was answered for a path, once.
func (s *scan) takeKnown(path string) (known, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.known[path]
	delete(s.known, path)
	return k, ok
}

func (s *scan) answerMissing(ctx context.Context, p []byte) error {
	q, err := decodeMissing(p)
	if err != nil {
		return err
	}
	bits, err := s.sink.Missing(ctx, q.refs)
	if err != nil {
		return err
	}
	return s.client.send(kindMissingAnswer, answer{id: q.id, bits: bits}.encode())
}

// give gives one thing to the sink.
func (s *scan) give(ctx context.Context, t thing) error {
	switch t.kind {
	case kindBlock:
		b, err := decodeBlock(t.payload)
		if err != nil {
			return err
		}
		return s.sink.Block(ctx, b)
	case kindChunks:
		return s.entries.pending.addChunks(t.payload)
	case kindExtents:
		return s.entries.pending.addExtents(t.payload)
	case kindSame:
		path, err := decodeSame(t.payload)
		if err != nil {
			return err
		}
		return s.sink.Same(ctx, path)
	case kindNote:
		n, err := decodeNote(t.payload)
		if err != nil {
			return err
		}
		return s.sink.Note(ctx, n)
	}
	entries, stamps, err := s.entries.decode(t.payload)
	if err != nil || len(entries) == 0 {
		return err
	}
	return s.sink.Entries(ctx, entries, stamps)
}
