package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// HTTP reads a store that a web server offers: GET BASE/packs/HEX and
// BASE/manifests/HEX, with ranges. Handler is such a server; any server of
// static files will do. It cannot be written or listed.
//
// A transfer that breaks off or stalls goes on where it stopped by another
// request. Only tries in a row that brought nothing are counted.
type HTTP struct {
	// Tries is how many in a row may bring nothing. The pauses between them
	// grow to 8 s: 8 tries are some 24 s, 100 some 13 minutes.
	Tries int

	base   string
	client *http.Client
	pause  time.Duration // before the second try; doubles with each further one, up to maxPause
	stall  time.Duration // without a byte, after which a connection is given up
}

var _ Store = (*HTTP)(nil)
var _ Spooler = (*HTTP)(nil)

const maxPause = 8 * time.Second

// NewHTTP reads the blobs below the URL base. A nil client is one without a
// timeout over all, as whole transfers may take long; a client that has one
// bounds each request by it.
func NewHTTP(base string, client *http.Client) *HTTP {
	if client == nil {
		client = &http.Client{}
		if t, ok := http.DefaultTransport.(*http.Transport); ok {
			t = t.Clone()
			t.MaxIdleConnsPerHost = 16 // the default of 2 makes workers redial
			client.Transport = t
		}
	}
	return &HTTP{
		base:   strings.TrimRight(base, "/"),
		client: client,
		Tries:  8, // a server may restart meanwhile
		pause:  250 * time.Millisecond,
		stall:  30 * time.Second,
	}
}

func (h *HTTP) Put(context.Context, Kind, ID, io.Reader) error { return ErrReadOnly }

func (h *HTTP) Spool(context.Context, Kind) (Spool, error) { return nil, ErrReadOnly }

func (h *HTTP) Delete(context.Context, Kind, ID) error { return ErrReadOnly }

// List cannot be: a web server tells what it is asked for, not what it has.
func (h *HTTP) List(context.Context, Kind, func(id ID, size int64) error) error {
	return fmt.Errorf("listing %s: %w", h.base, errors.ErrUnsupported)
}

func (h *HTTP) Stat(ctx context.Context, k Kind, id ID) (int64, error) {
	b, err := h.newBody(ctx, k, id)
	if err != nil {
		return 0, err
	}
	var size int64
	err = b.retry(func() error {
		res, err := b.do(http.MethodHead, "")
		if err != nil {
			return err
		}
		defer b.hangUp()
		if size = res.ContentLength; res.StatusCode != http.StatusOK || size < 0 {
			return b.refused("answered %s with no length", res.Status)
		}
		return nil
	})
	return size, err
}

func (h *HTTP) Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error) {
	if off < 0 {
		_, err := rangeOf(k, id, 0, off, n)
		return nil, err
	}
	if n == 0 { // has no range in HTTP
		size, err := h.Stat(ctx, k, id)
		if err == nil {
			_, err = rangeOf(k, id, size, off, n)
		}
		if err != nil {
			return nil, err
		}
		return io.NopCloser(strings.NewReader("")), nil
	}
	b, err := h.newBody(ctx, k, id)
	if err != nil {
		return nil, err
	}
	b.off, b.end, b.size = off, -1, -1
	if n > 0 {
		b.end = off + n
	}
	if err := b.retry(b.request); err != nil {
		return nil, err
	}
	return b, nil
}

// body is a blob's range being read, over as many requests as it takes.
type body struct {
	h      *HTTP
	ctx    context.Context
	kind   Kind
	id     ID
	url    string
	off    int64 // of the next byte
	end    int64 // after the last byte; -1 until known
	size   int64 // of the blob; -1 until known
	res    io.ReadCloser
	req    context.Context // of the open request
	cancel context.CancelCauseFunc
	guard  *time.Timer // ends the request when it stalls
	failed int         // tries in a row without progress
	err    error
}

func (h *HTTP) newBody(ctx context.Context, k Kind, id ID) (*body, error) {
	f, err := k.folder()
	if err != nil {
		return nil, err
	}
	return &body{h: h, ctx: ctx, kind: k, id: id, url: h.base + "/" + f + "/" + id.Hex()}, nil
}

// fatal marks an error that another try would only repeat.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

var errStalled = errors.New("the connection brought nothing for too long")

func (b *body) refused(format string, a ...any) error {
	return fatal{fmt.Errorf("reading %s %s: %s "+format, append([]any{b.kind, b.id, b.url}, a...)...)}
}

// retry tries until it works, cannot work, or was tried often enough.
func (b *body) retry(try func() error) error {
	for {
		err := try()
		if err == nil {
			return nil
		}
		b.hangUp()
		if b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		if f := (fatal{}); errors.As(err, &f) {
			return f.error
		}
		if b.failed++; b.failed >= b.h.Tries {
			return fmt.Errorf("reading %s %s: gave up after %d tries in a row without progress: %w", b.kind, b.id, b.failed, err)
		}
		t := time.NewTimer(min(maxPause, b.h.pause<<(b.failed-1)))
		select {
		case <-t.C:
		case <-b.ctx.Done():
			t.Stop()
			return context.Cause(b.ctx)
		}
	}
}

// do asks once. Answers that say the blob is not there, or that asking again
// does not help, are fatal.
func (b *body) do(method, rng string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(b.ctx)
	b.req, b.cancel = ctx, cancel
	b.guard = time.AfterFunc(b.h.stall, func() { cancel(errStalled) })
	req, err := http.NewRequestWithContext(ctx, method, b.url, nil)
	if err != nil {
		return nil, fatal{fmt.Errorf("reading %s %s: %w", b.kind, b.id, err)}
	}
	req.Header.Set("Accept-Encoding", "identity") // offsets are into the blob itself
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	res, err := b.h.client.Do(req)
	b.guard.Stop()
	if err != nil {
		return nil, b.why(err)
	}
	b.res = res.Body
	switch s := res.StatusCode; {
	case s == http.StatusNotFound || s == http.StatusGone:
		return nil, fatal{&MissingError{What: string(b.kind), ID: b.id}}
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s >= 500:
		return nil, fmt.Errorf("%s answered %s", b.url, res.Status)
	case res.Header.Get("Content-Encoding") != "":
		return nil, b.refused("is sent with the encoding %q, which was not asked for", res.Header.Get("Content-Encoding"))
	}
	return res, nil
}

// why tells a request that stalled from one that was called off.
func (b *body) why(err error) error {
	if err != nil && errors.Is(context.Cause(b.req), errStalled) {
		return errStalled
	}
	return err
}

// request asks for what is still to come.
func (b *body) request() error {
	rng := fmt.Sprintf("bytes=%d-", b.off)
	if b.end >= 0 {
		rng += strconv.FormatInt(b.end-1, 10)
	} else if b.off == 0 {
		rng = ""
	}
	res, err := b.do(http.MethodGet, rng)
	if err != nil {
		return err
	}
	switch res.StatusCode {
	case http.StatusOK:
		if rng != "" && res.ContentLength == 0 { // of nothing, servers send all of it
			if _, err := rangeOf(b.kind, b.id, 0, b.off, b.length()); err != nil {
				return fatal{err}
			}
		} else if rng != "" {
			return b.refused("ignores ranges: it sent the whole for %q", rng)
		}
		if res.ContentLength < 0 {
			return b.refused("sent no length")
		}
		return b.learn(0, res.ContentLength, res.ContentLength)
	case http.StatusPartialContent:
		from, to, size, ok := parseContentRange(res.Header.Get("Content-Range"))
		if !ok || from != b.off || res.ContentLength >= 0 && res.ContentLength != to-from {
			return b.refused("sent the range %q and the length %d for %q", res.Header.Get("Content-Range"), res.ContentLength, rng)
		}
		return b.learn(from, to, size)
	case http.StatusRequestedRangeNotSatisfiable:
		total, _ := strings.CutPrefix(res.Header.Get("Content-Range"), "bytes */")
		size, err := strconv.ParseInt(total, 10, 64)
		if err != nil || size < 0 {
			break
		}
		if _, err := rangeOf(b.kind, b.id, size, b.off, b.length()); err != nil {
			return fatal{err}
		}
		if b.off == size { // an empty rest has no range in HTTP
			b.hangUp() // the answer's body is about the error
			return b.learn(size, size, size)
		}
	}
	return b.refused("answered %s for %q", res.Status, rng)
}

// length is what is still to come, -1 for all there is.
func (b *body) length() int64 {
	if b.end < 0 {
		return -1
	}
	return b.end - b.off
}

// learn takes what an answer says of itself and holds it against what was
// asked and what earlier answers said.
func (b *body) learn(from, to, size int64) error {
	if b.size >= 0 && size != b.size {
		return b.refused("said it has %d bytes, and now %d", b.size, size)
	}
	if b.end < 0 {
		b.end = size
	}
	if b.end > size {
		_, err := rangeOf(b.kind, b.id, size, b.off, b.length())
		return fatal{err}
	}
	if to != b.end {
		return b.refused("sent bytes %d to %d instead of %d to %d", from, to, b.off, b.end)
	}
	b.size = size
	return nil
}

// parseContentRange reads "bytes FROM-LAST/SIZE" (RFC 9110, 14.4) and gives
// the offset after the last byte.
func parseContentRange(s string) (from, to, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	rng, total, ok1 := strings.Cut(s, "/")
	first, last, ok2 := strings.Cut(rng, "-")
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	size, err3 := strconv.ParseInt(total, 10, 64)
	ok = ok && ok1 && ok2 && err1 == nil && err2 == nil && err3 == nil &&
		0 <= from && from <= to && to < size
	return from, to + 1, size, ok
}

func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	var n int
	b.err = b.retry(func() error {
		if b.off == b.end {
			return fatal{b.finish()}
		}
		if b.res == nil {
			if err := b.request(); err != nil {
				return err
			}
		}
		var err error
		if n, err = b.read(p[:min(int64(len(p)), b.end-b.off)]); n > 0 {
			b.off += int64(n)
			b.failed = 0
			if err != nil {
				b.hangUp()
			}
			return nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
	return n, b.err
}

// read reads once from the open answer, for as long as it does not stall. The
// time that the caller takes between two reads does not count.
func (b *body) read(p []byte) (int, error) {
	b.guard.Reset(b.h.stall)
	defer b.guard.Stop()
	for {
		n, err := b.res.Read(p)
		if n > 0 || err != nil {
			return n, b.why(err)
		}
	}
}

// finish makes sure that the answer ends where it should. Reading its end
// also lets the connection be used again.
func (b *body) finish() error {
	if b.res == nil {
		return io.EOF
	}
	var extra [1]byte
	n, _ := b.read(extra[:])
	b.hangUp()
	if n > 0 {
		return b.refused("sent more than the bytes it announced")
	}
	return io.EOF
}

func (b *body) hangUp() {
	if b.res != nil {
		b.res.Close()
		b.res = nil
	}
	if b.cancel != nil {
		b.guard.Stop()
		b.cancel(nil)
		b.cancel = nil
	}
}

func (b *body) Close() error {
	b.hangUp()
	if b.err == nil {
		b.err = fmt.Errorf("reading %s %s: it is closed", b.kind, b.id)
	}
	return nil
}
