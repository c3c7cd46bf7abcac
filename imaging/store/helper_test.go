package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
)

func testKeys(t testing.TB) Keys {
	t.Helper()
	var keys Keys
	for _, k := range []**Key{&keys.Cluster, &keys.Head} {
		key, err := GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		*k = &key
	}
	return keys
}

func testDir(t testing.TB) *Dir {
	t.Helper()
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testVault(t testing.TB, st Store, keys Keys) *Vault {
	t.Helper()
	v, err := OpenVault(context.Background(), st, keys, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testChunks makes n chunks of size bytes; every other one compresses.
func testChunks(seed uint64, n, size int) [][]byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	chunks := make([][]byte, n)
	for i := range chunks {
		chunks[i] = make([]byte, size)
		r.Read(chunks[i])
		if i%2 == 0 {
			for j := range chunks[i] {
				chunks[i][j] &= 0x0f
			}
		}
	}
	return chunks
}

func testBlock(t testing.TB, aud Audience, chunks [][]byte) Block {
	t.Helper()
	b, err := BuildBlock(aud, chunks)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func refsOf(aud Audience, chunks [][]byte) []Ref {
	refs := make([]Ref, len(chunks))
	for i, c := range chunks {
		refs[i] = Ref{aud, Sum(c)}
	}
	return refs
}

// addPack writes one pack with a block for each set of chunks and gives its ID.
func addPack(t testing.TB, v *Vault, aud Audience, blocks ...[][]byte) ID {
	t.Helper()
	had := map[ID]bool{}
	for _, p := range v.packs {
		had[p.id] = true
	}
	w := v.NewWriter()
	defer w.Close()
	for _, chunks := range blocks {
		if err := w.Add(context.Background(), testBlock(t, aud, chunks)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	var id ID
	for _, p := range v.packs {
		if !had[p.id] {
			if !id.IsZero() {
				t.Fatal("more than one pack was written")
			}
			id = p.id
		}
	}
	return id
}

func putBytes(t testing.TB, st Store, k Kind, b []byte) ID {
	t.Helper()
	id, err := PutBlob(context.Background(), st, k, b)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func readAll(t testing.TB, st Store, k Kind, id ID, off, n int64) []byte {
	t.Helper()
	r, err := st.Open(context.Background(), k, id, off, n)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func listIDs(t testing.TB, st Store, k Kind) map[ID]int64 {
	t.Helper()
	all := map[ID]int64{}
	err := st.List(context.Background(), k, func(id ID, size int64) error {
		all[id] = size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// dirNames gives all names below a store's packs and manifests.
func dirNames(t testing.TB, d *Dir) []string {
	t.Helper()
	var names []string
	for _, k := range []Kind{KindPack, KindManifest} {
		entries, err := os.ReadDir(d.folder(k))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return names
}

// collect streams refs and fails on any that come twice.
func collect(t testing.TB, v *Vault, refs []Ref, workers int) map[Ref][]byte {
	t.Helper()
	var mu sync.Mutex
	got := map[Ref][]byte{}
	err := v.Stream(context.Background(), refs, workers, func(ref Ref, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if got[ref] != nil {
			t.Errorf("chunk %s came twice", ref.ID)
		}
		got[ref] = bytes.Clone(b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// spyStore notes what is asked of a store.
type spyStore struct {
	Store
	mu    sync.Mutex
	opens []spyOpen
}

type spyOpen struct {
	id     ID
	off, n int64
}

func (s *spyStore) Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error) {
	s.mu.Lock()
	s.opens = append(s.opens, spyOpen{id, off, n})
	s.mu.Unlock()
	return s.Store.Open(ctx, k, id, off, n)
}

func (s *spyStore) taken() []spyOpen {
	s.mu.Lock()
	defer s.mu.Unlock()
	opens := s.opens
	s.opens = nil
	return opens
}

// sealBlob seals plain in segments of 30,000 bytes.
func sealBlob(keys Keys, aud Audience, kind string, plain []byte) ([]byte, error) {
	var out bytes.Buffer
	s, err := NewSealer(&out, keys, aud, kind)
	for err == nil {
		n := min(len(plain), 30_000)
		last := n == len(plain)
		err = s.Segment(plain[:n], last)
		if plain = plain[n:]; last {
			break
		}
	}
	return out.Bytes(), err
}

// openBlob opens a section with nothing behind it.
func openBlob(keys Keys, aud Audience, kind string, sealed []byte) ([]byte, error) {
	r := bytes.NewReader(sealed)
	o, err := NewOpener(r, Sum(sealed), keys, aud, kind)
	var plain []byte
	for err == nil {
		var b []byte
		if b, err = o.Next(); err == nil {
			plain = append(plain, b...)
		}
	}
	if err == io.EOF {
		err = nil
	}
	if r.Len() > 0 && err == nil {
		err = fmt.Errorf("%d bytes are left over", r.Len())
	}
	return plain, err
}
