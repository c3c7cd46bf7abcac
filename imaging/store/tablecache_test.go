package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What was read of packs to open them is not asked for again; that of new ones is,
// and that of others is forgotten. What was damaged meanwhile is fetched anew.
func TestTableCache(t *testing.T) {
	keys := testKeys(t)
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, keys)
	var packs []ID
	var all [][][]byte
	add := func(n, size int) {
		chunks := testChunks(uint64(len(packs)+1), n, size)
		packs, all = append(packs, addPack(t, v, Cluster, chunks)), append(all, chunks)
	}
	add(40, 10_000)
	add(4000, 20) // of a table longer than is guessed
	add(1, 10)
	dir := filepath.Join(t.TempDir(), "var", "tables")
	open := func() (asked int) {
		t.Helper()
		spy.taken()
		c := NewTableCache(spy, dir)
		if err := c.Keep(t.Context(), packs); err != nil {
			t.Fatal(err)
		}
		far, err := OpenVault(t.Context(), c, keys, packs)
		if err != nil {
			t.Fatal(err)
		}
		asked = len(spy.taken())
		for i := range packs {
			for ref, want := range all[i] {
				if ref%100 > 0 {
					continue
				}
				if got, err := far.Chunk(t.Context(), Ref{Cluster, Sum(want)}); err != nil || !bytes.Equal(got, want) {
					t.Errorf("pack %d, chunk %d: %v", i, ref, err)
				}
			}
		}
		return asked
	}
	if n := open(); n == 0 {
		t.Error("the first time nothing was read")
	}
	if n := open(); n > 0 {
		t.Errorf("the second time %d things were read", n)
	}
	add(30, 1000)
	if n := open(); n == 0 || n > 3 {
		t.Errorf("with one new pack %d things were read", n)
	}
	for _, c := range []struct {
		name  string
		spoil func(path string) error
	}{
		{"flipped", func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)-50]++
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		}},
		{"cut", func(path string) error { return os.Truncate(path, 100) }},
		{"empty", func(path string) error { return os.Truncate(path, 0) }},
		{"gone", os.Remove},
		{"a directory", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }},
	} {
		if err := c.spoil(filepath.Join(dir, packs[1].Hex())); err != nil {
			t.Fatal(err)
		}
		if n := open(); n == 0 || n > 6 {
			t.Errorf("%s: %d things were read", c.name, n)
		}
	}
	os.Remove(filepath.Join(dir, packs[1].Hex()))
	packs, all = packs[1:], all[1:]
	open()
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != len(packs) {
		t.Errorf("of %d packs %d are kept, %v", len(packs), len(names), err)
	}
	if info, err := os.Stat(filepath.Join(dir, packs[0].Hex())); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}

	// A directory that cannot be is no hindrance.
	dir = filepath.Join("/proc/self/nothing/tables")
	if n := open(); n == 0 {
		t.Error("nothing was read, and nothing could be kept")
	}
	packs = append(packs, ID{1})
	if err := NewTableCache(spy, dir).Keep(t.Context(), packs); !errors.As(err, new(*MissingError)) {
		t.Errorf("a pack that is not there: %v", err)
	}
}

func FuzzEnds(f *testing.F) {
	e := &ends{size: 1000, start: 900, head: make([]byte, headerSize), tail: make([]byte, 100)}
	f.Add(e.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEnds(b)
		if err != nil {
			return
		}
		if !bytes.Equal(e.encode(), b) {
			t.Error("it encodes to something else")
		}
	})
}
