package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
)

// Memory is a Store in memory.
type Memory struct {
	mu    sync.RWMutex
	blobs map[Kind]map[ID][]byte
}

var _ Store = (*Memory)(nil)
var _ Spooler = (*Memory)(nil)

// NewMemory makes an empty Memory.
func NewMemory() *Memory {
	return &Memory{blobs: map[Kind]map[ID][]byte{KindPack: {}, KindManifest: {}}}
}

func (m *Memory) Put(ctx context.Context, k Kind, id ID, r io.Reader) error {
	if _, err := k.folder(); err != nil {
		return err
	}
	b, err := io.ReadAll(contextReader{ctx, r})
	if err != nil {
		return fmt.Errorf("storing %s %s: %w", k, id, err)
	}
	if got := Sum(b); got != id {
		return putError(k, id, got)
	}
	return m.put(k, id, b)
}

func (m *Memory) put(k Kind, id ID, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.blobs[k][id]; ok {
		return sameSize(k, id, int64(len(old)), int64(len(b)))
	}
	m.blobs[k][id] = b
	return nil
}

// Spool takes a blob piece by piece.
func (m *Memory) Spool(_ context.Context, k Kind) (Spool, error) {
	if _, err := k.folder(); err != nil {
		return nil, err
	}
	return &memorySpool{put: func(id ID, b []byte) error { return m.put(k, id, b) }}, nil
}

func (m *Memory) blob(k Kind, id ID) ([]byte, error) {
	if _, err := k.folder(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	b, ok := m.blobs[k][id]
	if !ok {
		return nil, &MissingError{What: string(k), ID: id}
	}
	return b, nil
}

func (m *Memory) Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := m.blob(k, id)
	if err != nil {
		return nil, err
	}
	if n, err = rangeOf(k, id, int64(len(b)), off, n); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

func (m *Memory) Stat(ctx context.Context, k Kind, id ID) (int64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	b, err := m.blob(k, id)
	return int64(len(b)), err
}

func (m *Memory) List(ctx context.Context, k Kind, fn func(id ID, size int64) error) error {
	if _, err := k.folder(); err != nil {
		return err
	}
	type item struct {
		id   ID
		size int64
	}
	m.mu.RLock()
	var all []item
	for id, b := range m.blobs[k] {
		all = append(all, item{id, int64(len(b))})
	}
	m.mu.RUnlock()
	slices.SortFunc(all, func(a, b item) int { return bytes.Compare(a.id[:], b.id[:]) })
	for _, it := range all {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := fn(it.id, it.size); err != nil {
			return err
		}
	}
	return nil
}

func (m *Memory) Delete(_ context.Context, k Kind, id ID) error {
	if _, err := m.blob(k, id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs[k], id)
	return nil
}
