package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// Spooler is a Store that takes a blob piece by piece, before its digest is
// known, so that nobody need hold all of it.
type Spooler interface {
	Spool(ctx context.Context, k Kind) (Spool, error)
}

// Spool is a blob being written. Commit makes it durable under the digest of
// what was written; nothing is visible before. Discard drops it, and does
// nothing after Commit. A Spool belongs to one goroutine at a time.
type Spool interface {
	io.Writer
	Commit() (ID, error)
	Discard() error
}

// digester counts and digests what is written through it.
type digester struct {
	w io.Writer
	h hash.Hash
	n int64
}

func newDigester(w io.Writer) *digester { return &digester{w: w, h: sha256.New()} }

func (d *digester) Write(b []byte) (int, error) {
	n, err := d.w.Write(b)
	d.h.Write(b[:n])
	d.n += int64(n)
	return n, err
}

func (d *digester) ID() ID { return ID(d.h.Sum(nil)) }

// NewSpool gives a spool of the store's own, or one in memory.
func NewSpool(ctx context.Context, st Store, k Kind) (Spool, error) {
	if s, ok := st.(Spooler); ok {
		return s.Spool(ctx, k)
	}
	return &memorySpool{put: func(id ID, b []byte) error {
		return st.Put(ctx, k, id, bytes.NewReader(b))
	}}, nil
}

// memorySpool holds a blob until it is handed on whole.
type memorySpool struct {
	b    []byte
	put  func(id ID, b []byte) error
	done bool
}

func (s *memorySpool) Write(b []byte) (int, error) {
	if s.done {
		return 0, errSpoolDone
	}
	s.b = append(s.b, b...)
	return len(b), nil
}

func (s *memorySpool) Commit() (ID, error) {
	if s.done {
		return ID{}, errSpoolDone
	}
	s.done = true
	id := Sum(s.b)
	err := s.put(id, s.b)
	s.b = nil
	return id, err
}

func (s *memorySpool) Discard() error {
	s.done, s.b = true, nil
	return nil
}

var errSpoolDone = errors.New("the spool is committed or discarded")

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// putError is what Put says about bytes that are not the blob.
func putError(k Kind, id, got ID) error {
	return &CorruptError{What: string(k), ID: id, Detail: "the bytes to be stored have the digest " + got.String()}
}

// rangeOf checks a range against a blob's size and gives its length.
func rangeOf(k Kind, id ID, size, off, n int64) (int64, error) {
	if off >= 0 && off <= size {
		if n < 0 {
			return size - off, nil
		}
		if n <= size-off {
			return n, nil
		}
	}
	return 0, fmt.Errorf("reading %s %s: %d bytes from %d on are not within its %d: %w", k, id, n, off, size, io.ErrUnexpectedEOF)
}

// folder is the directory, and the path element, of a kind.
func (k Kind) folder() (string, error) {
	switch k {
	case KindPack:
		return "packs", nil
	case KindManifest:
		return "manifests", nil
	}
	return "", fmt.Errorf("%q is not a kind of blob", string(k))
}
