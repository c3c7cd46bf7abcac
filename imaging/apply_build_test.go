package imaging

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// memoryChunks is a ChunkSource in memory.
type memoryChunks struct {
	mu     sync.Mutex
	refs   []store.Ref // by number
	chunks map[store.Ref][]byte
	given  int64                 // bytes streamed
	bad    map[store.Ref]error   // what to answer instead
	before func(store.Ref) error // called before each chunk is given
}

func newMemoryChunks() *memoryChunks {
	return &memoryChunks{chunks: map[store.Ref][]byte{}, bad: map[store.Ref]error{}}
}

func (m *memoryChunks) add(a store.Audience, b []byte) store.Chunk {
	ref := store.Ref{Audience: a, ID: store.Sum(b)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chunks[ref] == nil {
		m.refs = append(m.refs, ref)
	}
	m.chunks[ref] = slices.Clone(b)
	return store.Chunk{ID: ref.ID, Size: uint32(len(b))}
}

func (m *memoryChunks) Find(ref store.Ref) (uint32, bool) {
	i := slices.Index(m.refs, ref)
	return uint32(i), i >= 0
}

func (m *memoryChunks) StreamNumbers(ctx context.Context, numbers []uint32, workers int, fn func(uint32, []byte) error) error {
	// By digest, which is as far from the order of the files as can be.
	order := slices.SortedFunc(slices.Values(numbers), func(a, b uint32) int { return bytes.Compare(m.refs[a].ID[:], m.refs[b].ID[:]) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(workers, 1))
	for _, number := range slices.Compact(order) {
		ref := m.refs[number]
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			m.mu.Lock()
			b, there := m.chunks[ref]
			err := m.bad[ref]
			m.given += int64(len(b))
			before := m.before
			m.mu.Unlock()
			if err == nil && before != nil {
				err = before(ref)
			}
			if err != nil {
				return err
			}
			if !there {
				return &store.MissingError{What: "chunk", ID: ref.ID}
			}
			return fn(number, b)
		})
	}
	return g.Wait()
}

// tree builds a manifest by hand.
type tree struct {
	list   []Entry
	chunks *memoryChunks
}

// m is the tree's manifest.
func (t *tree) m() *Manifest {
	sorted := slices.Clone(t.list)
	sortEntries(sorted)
	return manifestOf(sorted...)
}

// manifestOf makes a manifest of entries that can be in one.
func manifestOf(list ...Entry) *Manifest {
	entries, err := NewEntries(list...)
	if err != nil {
		panic(err)
	}
	return &Manifest{List: entries}
}

func sortEntries(list []Entry) {
	slices.SortStableFunc(list, func(a, b Entry) int { return ComparePath(a.Path, b.Path) })
}

const testSec = 1_700_000_000

func newTree() *tree {
	t := &tree{chunks: newMemoryChunks()}
	t.add(Entry{Path: ".", Kind: Directory, Mode: 0o755})
	return t
}

// add adds an entry with the owner of this process and a time, unless it has
// some.
func (t *tree) add(e Entry) *Entry {
	if e.UID == 0 && e.GID == 0 {
		e.UID, e.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	}
	if e.MTime == (Time{}) {
		e.MTime = Time{Sec: testSec + int64(len(t.list)), Nsec: 123456789}
	}
	t.list = append(t.list, e)
	return &t.list[len(t.list)-1]
}

func (t *tree) dir(path string) *Entry {
	return t.add(Entry{Path: path, Kind: Directory, Mode: 0o755})
}

// file adds a file whose content is cut into chunks of 64 KiB.
func (t *tree) file(path, content string) *Entry {
	e := t.add(Entry{Path: path, Kind: Regular, Mode: 0o644, Size: int64(len(content))})
	for part := range slices.Chunk([]byte(content), 64<<10) {
		e.Chunks = append(e.Chunks, t.chunks.add(store.Cluster, part))
	}
	return e
}

func (t *tree) link(path, target string) *Entry {
	return t.add(Entry{Path: path, Kind: HardLink, Target: target})
}

// apply applies the tree to dir and fails the test if that fails.
func (t *tree) apply(tb testing.TB, dir string, o ApplyOptions) *ApplyReport {
	tb.Helper()
	r, err := Apply(tb.Context(), t.m(), t.chunks, dir, o)
	if err != nil {
		tb.Fatalf("apply: %v", err)
	}
	return r
}

// equal fails the test if dir is not the tree.
func (t *tree) equal(tb testing.TB, dir string) {
	tb.Helper()
	diffs, err := CompareTree(tb.Context(), t.m(), dir, CompareOptions{})
	if err != nil {
		tb.Fatalf("compare: %v", err)
	}
	for _, d := range diffs {
		tb.Errorf("differs: %v", d)
	}
}

// needRoot stops a test that makes devices, owners and mounts.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("this test makes owners, devices and mounts: run it as root")
	}
}

// stamp is what must stay the same of what was right.
type stamp struct {
	ino   uint64
	ctime unix.Timespec
}

// stamps are those of everything below dir.
func stamps(tb testing.TB, dir string) map[string]stamp {
	tb.Helper()
	all := map[string]stamp{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		all[rel] = stamp{st.Ino, st.Ctim}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// temps are the temporary files below dir.
func temps(tb testing.TB, dir string) []string {
	tb.Helper()
	var found []string
	for path := range stamps(tb, dir) {
		if strings.HasPrefix(filepath.Base(path), tempPrefix) {
			found = append(found, path)
		}
	}
	return found
}

func write(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}
