package store

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func TestVaultRoundTrip(t *testing.T) {
	for name, st := range map[string]Store{"dir": testDir(t), "memory": NewMemory(), "no spool": struct{ Store }{NewMemory()}} {
		t.Run(name, func(t *testing.T) {
			keys := testKeys(t)
			v := testVault(t, st, keys)
			chunks := testChunks(1, 40, 10_000)
			pack := addPack(t, v, Cluster, chunks[:15], chunks[15:16], chunks[16:])
			checkVault(t, v, pack, chunks)
			checkVault(t, testVault(t, st, keys), pack, chunks)
			srv := httptest.NewServer(Handler(st))
			defer srv.Close()
			far, err := OpenVault(context.Background(), NewHTTP(srv.URL, nil), Keys{Cluster: keys.Cluster}, []ID{pack, pack})
			if err != nil {
				t.Fatal(err)
			}
			checkVault(t, far, pack, chunks)
		})
	}
}

func checkVault(t *testing.T, v *Vault, pack ID, chunks [][]byte) {
	t.Helper()
	refs := refsOf(Cluster, chunks)
	got := collect(t, v, refs, 3)
	if len(got) != len(chunks) {
		t.Errorf("%d of %d chunks", len(got), len(chunks))
	}
	for i, ref := range refs {
		if !bytes.Equal(got[ref], chunks[i]) {
			t.Errorf("Stream: chunk %d has other bytes", i)
		}
		if size, ok := v.Size(ref); !ok || int(size) != len(chunks[i]) || !v.Has(ref) {
			t.Errorf("Size of chunk %d: %d, %v", i, size, ok)
		}
		if b, err := v.Chunk(context.Background(), ref); err != nil || !bytes.Equal(b, chunks[i]) {
			t.Errorf("Chunk %d: %v", i, err)
		}
	}
	if v.Has(Ref{Head, refs[0].ID}) {
		t.Error("a chunk is there for the other audience")
	}
	if ids, err := v.PacksOf(refs); err != nil || !slices.Equal(ids, []ID{pack}) {
		t.Errorf("PacksOf: %v, %v", ids, err)
	}
	if err := v.Verify(context.Background(), Chunks, func(f Fault) { t.Errorf("Verify: %v", f) }); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

func TestVaultEmpty(t *testing.T) {
	v := testVault(t, NewMemory(), testKeys(t))
	if err := v.Stream(context.Background(), nil, 0, nil); err != nil {
		t.Errorf("Stream of nothing: %v", err)
	}
	if ids, err := v.PacksOf(nil); err != nil || len(ids) != 0 {
		t.Errorf("PacksOf nothing: %v, %v", ids, err)
	}
	w := v.NewWriter()
	if err := errors.Join(w.Commit(context.Background()), w.Close(), w.Close()); err != nil {
		t.Errorf("a writer that wrote nothing: %v", err)
	}
	if _, err := OpenVault(context.Background(), NewMemory(), Keys{}, []ID{{1}}); err == nil {
		t.Error("a missing pack is opened")
	}
	if _, err := OpenVault(context.Background(), NewHTTP("http://127.0.0.1:1", nil), Keys{}, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("all packs of a store that cannot list: %v", err)
	}
	if v, err := OpenVault(context.Background(), NewHTTP("http://127.0.0.1:1", nil), Keys{}, []ID{}); err != nil || v == nil {
		t.Errorf("no packs of a store that cannot list: %v", err)
	}
}

func TestStreamMissing(t *testing.T) {
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, testKeys(t))
	chunks := testChunks(1, 4, 100)
	addPack(t, v, Cluster, chunks)
	spy.taken()
	refs := append(refsOf(Cluster, chunks), Ref{Cluster, Sum([]byte("nowhere"))})
	var missing *MissingError
	err := v.Stream(context.Background(), refs, 1, func(Ref, []byte) error { t.Error("fn is called"); return nil })
	if !errors.As(err, &missing) || missing.What != "chunk" || missing.ID != refs[4].ID {
		t.Errorf("Stream: %v", err)
	}
	if _, err := v.Chunk(context.Background(), refs[4]); !errors.As(err, &missing) {
		t.Errorf("Chunk: %v", err)
	}
	if _, err := v.PacksOf(refs); !errors.As(err, &missing) {
		t.Errorf("PacksOf: %v", err)
	}
	if opens := spy.taken(); len(opens) != 0 {
		t.Errorf("read: %v", opens)
	}
}

// Stream reads every block once, in order, and only blocks that are wanted.
func TestStreamReads(t *testing.T) {
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, testKeys(t))
	var sets [][][]byte
	for i := range 6 {
		sets = append(sets, testChunks(uint64(i+1), 4, 400_000)[1:2]) // raw, beyond maxGap
	}
	first := addPack(t, v, Cluster, sets[:3]...)
	second := addPack(t, v, Cluster, sets[3:]...)
	ref := func(i int) Ref { return Ref{Cluster, Sum(sets[i][0])} }

	// The pack wanted first is read first; each chunk comes once.
	spy.taken()
	var order []Ref
	refs := []Ref{ref(4), ref(1), ref(3), ref(0), ref(4), ref(2), ref(5)}
	err := v.Stream(context.Background(), refs, 1, func(r Ref, _ []byte) error { order = append(order, r); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if want := []Ref{ref(3), ref(4), ref(5), ref(0), ref(1), ref(2)}; !slices.Equal(order, want) {
		t.Error("chunks came in another order")
	}
	opens := spy.taken()
	if len(opens) != 2 || opens[0].id != second || opens[1].id != first {
		t.Errorf("reads: %v", opens)
	}
	if ids, _ := v.PacksOf(refs); !slices.Equal(ids, []ID{second, first}) {
		t.Error("PacksOf has another order")
	}

	// A block in between that is not wanted is not read when it is large.
	if err := v.Stream(context.Background(), []Ref{ref(0), ref(2)}, 1, func(Ref, []byte) error { return nil }); err != nil {
		t.Fatal(err)
	}
	opens = spy.taken()
	if len(opens) != 2 || opens[0].off != headerSize || opens[1].off != headerSize+2*opens[0].n || opens[1].n != int64(lengthSize+400_000+footed(1)+tagSize) {
		t.Errorf("reads: %v", opens)
	}
}

func TestStreamSkipsSmallGaps(t *testing.T) {
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, testKeys(t))
	chunks := testChunks(1, 8, 1000)
	addPack(t, v, Cluster, chunks[:1], chunks[1:4], chunks[4:7], chunks[7:])
	spy.taken()
	refs := refsOf(Cluster, [][]byte{chunks[7], chunks[2]})
	if got := collect(t, v, refs, 4); !bytes.Equal(got[refs[0]], chunks[7]) || !bytes.Equal(got[refs[1]], chunks[2]) {
		t.Error("other bytes")
	}
	if opens := spy.taken(); len(opens) != 1 {
		t.Errorf("reads: %v", opens)
	}
}

// Large packs are fetched in ranges of bounded size by several workers.
func TestStreamRanges(t *testing.T) {
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, testKeys(t))
	var blocks [][][]byte
	var refs []Ref
	for i := range 12 {
		b := testChunks(uint64(i+1), 2, 1<<20)[1:]
		blocks = append(blocks, b)
		refs = append(refs, refsOf(Cluster, b)...)
	}
	addPack(t, v, Cluster, blocks...)
	for workers, least := range map[int]int{1: 2, 4: 4} {
		spy.taken()
		collect(t, v, refs, workers)
		opens := spy.taken()
		if len(opens) < least {
			t.Errorf("%d workers: %d reads", workers, len(opens))
		}
		slices.SortFunc(opens, func(a, b spyOpen) int { return int(a.off - b.off) })
		at := int64(headerSize)
		for _, o := range opens {
			if o.n > maxFetch || o.off != at {
				t.Errorf("%d workers: a read of %d bytes at %d, expected at %d", workers, o.n, o.off, at)
			}
			at = o.off + o.n
		}
	}
}

func TestStreamStops(t *testing.T) {
	v := testVault(t, NewMemory(), testKeys(t))
	var refs []Ref
	for i := range 20 {
		chunks := testChunks(uint64(i+1), 10, 1000)
		refs = append(refs, refsOf(Cluster, chunks)...)
		addPack(t, v, Cluster, chunks)
	}
	why := errors.New("disk full")
	var calls atomic.Int32
	err := v.Stream(context.Background(), refs, 4, func(Ref, []byte) error {
		if calls.Add(1) == 5 {
			return why
		}
		return nil
	})
	if !errors.Is(err, why) || int(calls.Load()) == len(refs) {
		t.Errorf("fn fails: %v after %d calls", err, calls.Load())
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	calls.Store(0)
	err = v.Stream(ctx, refs, 4, func(Ref, []byte) error {
		if calls.Add(1) == 5 {
			cancel(why)
		}
		return nil
	})
	if !errors.Is(err, why) || int(calls.Load()) == len(refs) {
		t.Errorf("called off: %v after %d calls", err, calls.Load())
	}
}

// Chunk reads a block once for all its chunks, also when many ask at a time.
func TestChunkCaches(t *testing.T) {
	spy := &spyStore{Store: NewMemory()}
	v := testVault(t, spy, testKeys(t))
	var all [][]byte
	for i := range cachedBlocks {
		chunks := testChunks(uint64(i+1), 10, 1000)
		addPack(t, v, Head, chunks)
		all = append(all, chunks...)
	}
	spy.taken()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, ref := range refsOf(Head, all) {
				b, err := v.Chunk(context.Background(), ref)
				if err != nil || !bytes.Equal(b, all[i]) {
					t.Errorf("chunk %d: %v", i, err)
					return
				}
				clear(b) // belongs to the caller
			}
		})
	}
	wg.Wait()
	if opens := spy.taken(); len(opens) != cachedBlocks {
		t.Errorf("%d reads", len(opens))
	}
}

func TestVaultAudiences(t *testing.T) {
	m := NewMemory()
	keys := testKeys(t)
	v := testVault(t, m, keys)
	chunks := testChunks(1, 4, 1000)
	forAll := addPack(t, v, Cluster, chunks)
	forHeads := addPack(t, v, Head, chunks[:2])
	if got := collect(t, v, append(refsOf(Cluster, chunks), refsOf(Head, chunks[:2])...), 2); len(got) != 6 {
		t.Errorf("%d chunks", len(got))
	}
	node := testVault(t, m, Keys{Cluster: keys.Cluster})
	if node.Has(Ref{Head, Sum(chunks[0])}) || !node.Has(Ref{Cluster, Sum(chunks[0])}) {
		t.Error("a node has what it should not, or not what it should")
	}
	if len(node.Damaged()) != 0 {
		t.Error("a node judges the pack of another audience")
	}
	if _, err := OpenVault(context.Background(), m, Keys{Cluster: keys.Cluster}, []ID{forHeads, forAll}); err != nil {
		t.Errorf("naming a pack of another audience: %v", err)
	}
	// Its name can be checked all the same.
	if err := node.Verify(context.Background(), Chunks, func(f Fault) { t.Errorf("Verify: %v", f) }); err != nil {
		t.Error(err)
	}
	m.blobs[KindPack][forHeads][100] ^= 1
	found := 0
	err := node.Verify(context.Background(), Chunks, func(f Fault) {
		if found++; f.Pack != forHeads {
			t.Errorf("Verify: %v", f)
		}
	})
	if err != nil || found != 1 {
		t.Errorf("Verify: %d faults, %v", found, err)
	}
	w := node.NewWriter()
	defer w.Close()
	if err := w.Add(context.Background(), testBlock(t, Head, chunks)); err == nil {
		t.Error("a node writes for heads")
	}
}

func TestVaultWrongKey(t *testing.T) {
	m := NewMemory()
	keys, others := testKeys(t), testKeys(t)
	id := addPack(t, testVault(t, m, keys), Cluster, testChunks(1, 4, 1000))
	for _, packs := range [][]ID{nil, {id}} {
		_, err := OpenVault(context.Background(), m, others, packs)
		var wrong *WrongKeyError
		if !errors.As(err, &wrong) || wrong.Sealed != keys.Cluster.Fingerprint() || wrong.Held != others.Cluster.Fingerprint() {
			t.Errorf("opening with another key: %v", err)
		}
	}
}

// Nothing about the content shows in a pack: no bytes, no IDs.
func TestPackIsSealed(t *testing.T) {
	m := NewMemory()
	chunks := testChunks(1, 4, 1000)
	id := addPack(t, testVault(t, m, testKeys(t)), Cluster, chunks)
	b := m.blobs[KindPack][id]
	for _, c := range chunks {
		sum := Sum(c)
		for _, sign := range [][]byte{c[:16], sum[:8], []byte(hex.EncodeToString(sum[:8]))} {
			if bytes.Contains(b, sign) {
				t.Errorf("%x is in the pack", sign)
			}
		}
	}
	if Sum(b) != id {
		t.Error("the pack is not named by its digest")
	}
}
