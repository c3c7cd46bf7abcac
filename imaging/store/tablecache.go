package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sync/errgroup"
)

// TableCache is a Store that keeps what OpenVault reads of packs, their lengths,
// headers and sealed tables, in a directory: who opens almost the same packs of a
// distant store again and again then fetches only those of new ones. Everything
// else is read from the store, and so is what the directory has not, or has not
// whole. Only one process may use a directory at a time; all methods are safe for
// concurrent use.
type TableCache struct {
	Store
	dir string
}

// NewTableCache keeps tables of st in dir, which is made when there is something
// to keep.
func NewTableCache(st Store, dir string) *TableCache { return &TableCache{st, dir} }

// A kept table is the SHA-256 of what follows it: the length of the pack, the
// offset of the pack's end that comes last, the header, that end. The trailer is
// in the end, or the pack is not kept.
const (
	tablesMagic = "doppel table 1\n"
	tablesHead  = sha256.Size + len(tablesMagic) + 16 + headerSize
	// maxTable bounds the end of a pack that is kept: some 100,000 chunks.
	maxTable = 8 << 20
)

// ends is what is read of a pack to open it.
type ends struct {
	size, start int64
	head, tail  []byte // of the pack: its header, and all from start on
}

func (t *TableCache) path(id ID) string { return filepath.Join(t.dir, id.Hex()) }

// load reads what is kept of a pack; nil: nothing, or nothing that is whole.
func (t *TableCache) load(id ID) *ends {
	b, err := os.ReadFile(t.path(id))
	if err != nil {
		return nil
	}
	e, err := parseEnds(b)
	if err != nil {
		return nil
	}
	return e
}

var errEnds = errors.New("what is kept of a pack is not whole")

func parseEnds(b []byte) (*ends, error) {
	if len(b) < tablesHead {
		return nil, errEnds
	}
	sum := sha256.Sum256(b[sha256.Size:])
	if !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, errEnds
	}
	magic, rest, _ := bytes.Cut(b[sha256.Size:], []byte("\n"))
	if string(magic)+"\n" != tablesMagic || len(rest) < 16+headerSize {
		return nil, errEnds
	}
	e := &ends{size: int64(binary.BigEndian.Uint64(rest)), start: int64(binary.BigEndian.Uint64(rest[8:])), head: rest[16:][:headerSize], tail: rest[16+headerSize:]}
	if e.start < 0 || e.size < 0 || e.size-e.start != int64(len(e.tail)) {
		return nil, errEnds
	}
	return e, nil
}

func (e *ends) encode() []byte {
	b := make([]byte, sha256.Size, tablesHead+len(e.tail))
	b = append(b, tablesMagic...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.size))
	b = binary.BigEndian.AppendUint64(b, uint64(e.start))
	b = append(append(b, e.head...), e.tail...)
	sum := sha256.Sum256(b[sha256.Size:])
	copy(b, sum[:])
	return b
}

// Stat tells the length of a pack without asking the store, where it is kept.
func (t *TableCache) Stat(ctx context.Context, k Kind, id ID) (int64, error) {
	if k == KindPack {
		if e := t.load(id); e != nil {
			return e.size, nil
		}
	}
	return t.Store.Stat(ctx, k, id)
}

// Open reads from what is kept, if the range is in there.
func (t *TableCache) Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error) {
	if k == KindPack && n >= 0 {
		if e := t.load(id); e != nil {
			switch {
			case off == 0 && n == headerSize:
				return io.NopCloser(bytes.NewReader(e.head)), nil
			case off >= e.start && off+n <= e.size:
				return io.NopCloser(bytes.NewReader(e.tail[off-e.start:][:n])), nil
			}
		}
	}
	return t.Store.Open(ctx, k, id, off, n)
}

// Keep reads and keeps what is not kept yet of these packs, and forgets all others.
// What cannot be kept is only fetched again the next time: an error is of the
// store.
func (t *TableCache) Keep(ctx context.Context, packs []ID) error {
	wanted := map[string]bool{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(openers)
	for _, id := range packs {
		if wanted[id.Hex()] {
			continue
		}
		wanted[id.Hex()] = true
		if t.load(id) == nil {
			g.Go(func() error { return t.fetch(ctx, id) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	names, err := os.ReadDir(t.dir)
	if err != nil {
		return nil // there is none
	}
	for _, n := range names {
		if !wanted[n.Name()] {
			os.Remove(filepath.Join(t.dir, n.Name()))
		}
	}
	return nil
}

// fetch reads and keeps the ends of one pack.
func (t *TableCache) fetch(ctx context.Context, id ID) error {
	size, err := t.Store.Stat(ctx, KindPack, id)
	if err != nil {
		return err
	}
	if size < headerSize+tagSize+footerSize {
		return nil // OpenVault will say so
	}
	p := &pack{packFile: packFile{id, size}}
	e := &ends{size: size, start: max(0, size-tailGuess)}
	if e.tail, err = p.read(ctx, t.Store, e.start, size-e.start); err != nil {
		return err
	}
	if e.head = e.tail[:min(headerSize, len(e.tail))]; e.start > 0 {
		if e.head, err = p.read(ctx, t.Store, 0, headerSize); err != nil {
			return err
		}
	}
	off, _, err := parseFooter(e.tail[len(e.tail)-footerSize:], size)
	if err != nil || size-off > maxTable {
		return nil // likewise
	}
	if off < e.start {
		rest, err := p.read(ctx, t.Store, off, e.start-off)
		if err != nil {
			return err
		}
		e.tail, e.start = append(rest, e.tail...), off
	}
	t.write(id, e) // what cannot be kept is fetched again
	return nil
}

func (t *TableCache) write(id ID, e *ends) error {
	if err := os.MkdirAll(filepath.Dir(t.dir), 0o755); err != nil {
		return fmt.Errorf("keeping the table of a pack: %w", err)
	}
	if err := os.Mkdir(t.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keeping the table of a pack: %w", err)
	}
	return renameio.WriteFile(t.path(id), e.encode(), 0o600, renameio.WithTempDir(t.dir))
}
