package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
)

func TestWriterRefusesLies(t *testing.T) {
	m := NewMemory()
	v := testVault(t, m, testKeys(t))
	w := v.NewWriter()
	defer w.Close()
	ctx := context.Background()
	chunks := testChunks(1, 3, 1000)
	good := testBlock(t, Cluster, chunks)
	for name, spoil := range map[string]func(b *Block){
		"another ID":        func(b *Block) { b.Chunks[1].ID[0] ^= 1 },
		"sizes shifted":     func(b *Block) { b.Chunks[0].Size--; b.Chunks[1].Size++ },
		"too long":          func(b *Block) { b.Chunks[2].Size++ },
		"too short":         func(b *Block) { b.Chunks = b.Chunks[:2] },
		"no chunks":         func(b *Block) { b.Chunks = nil },
		"an empty chunk":    func(b *Block) { b.Chunks = append(b.Chunks, Chunk{ID: Sum(nil)}) },
		"unknown codec":     func(b *Block) { b.Codec = 5 },
		"spoilt data":       func(b *Block) { b.Data[len(b.Data)/2] ^= 0x10 },
		"order of chunks":   func(b *Block) { b.Chunks[0], b.Chunks[1] = b.Chunks[1], b.Chunks[0] },
		"largest and more":  func(b *Block) { b.Chunks[0].Size = MaxBlock },
		"a size that wraps": func(b *Block) { b.Chunks[0].Size = 1<<32 - 1 },
	} {
		b := good
		b.Chunks, b.Data = slices.Clone(good.Chunks), bytes.Clone(good.Data)
		spoil(&b)
		var corrupt *CorruptError
		if err := w.Add(ctx, b); !errors.As(err, &corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := good
	bad.Audience = 9
	if err := w.Add(ctx, bad); err == nil {
		t.Error("an unknown audience is taken")
	}
	// None of that stopped it.
	if err := errors.Join(w.Add(ctx, good), w.Commit(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := collect(t, v, refsOf(Cluster, chunks), 1); len(got) != 3 || len(v.packs) != 1 {
		t.Errorf("%d chunks, %d packs", len(got), len(v.packs))
	}
}

// Chunks show when they are durable, not before.
func TestWriterVisibility(t *testing.T) {
	d := testDir(t)
	keys := testKeys(t)
	v := testVault(t, d, keys)
	ctx := context.Background()
	chunks := testChunks(1, 4, 1000)
	ref := Ref{Cluster, Sum(chunks[0])}

	w := v.NewWriter()
	if err := w.Add(ctx, testBlock(t, Cluster, chunks)); err != nil {
		t.Fatal(err)
	}
	if v.Has(ref) || !w.Has(ref) || len(listIDs(t, d, KindPack)) != 0 {
		t.Error("a chunk shows before it is durable, or the writer forgot it")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if v.Has(ref) || w.Has(ref) || len(dirNames(t, d)) != 0 {
		t.Errorf("something is left of what was not committed: %q", dirNames(t, d))
	}
	if err := w.Add(ctx, testBlock(t, Cluster, chunks)); err == nil {
		t.Error("a closed writer takes a block")
	}
	if err := w.Commit(ctx); err == nil {
		t.Error("a closed writer commits")
	}

	w = v.NewWriter()
	defer w.Close()
	for i := range chunks { // commits in between
		if err := errors.Join(w.Add(ctx, testBlock(t, Cluster, chunks[i:i+1])), w.Commit(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	if all := listIDs(t, d, KindPack); len(all) != 4 || len(v.packs) != 4 {
		t.Errorf("%d packs", len(all))
	}
}

// What is there already is not stored again.
func TestWriterDeduplicates(t *testing.T) {
	m := NewMemory()
	v := testVault(t, m, testKeys(t))
	ctx := context.Background()
	chunks := testChunks(1, 6, 1000)
	addPack(t, v, Cluster, chunks[:4])
	w := v.NewWriter()
	defer w.Close()
	if err := errors.Join(w.Add(ctx, testBlock(t, Cluster, chunks[1:3])), w.Commit(ctx)); err != nil {
		t.Fatal(err)
	}
	if len(m.blobs[KindPack]) != 1 {
		t.Errorf("%d packs after adding what is there", len(m.blobs[KindPack]))
	}
	for range 2 {
		if err := w.Add(ctx, testBlock(t, Cluster, chunks[3:])); err != nil { // one of three is there
			t.Fatal(err)
		}
	}
	if err := w.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if len(v.packs) != 2 || len(v.packs[1].blocks) != 1 {
		t.Errorf("%d packs", len(v.packs))
	}
	if got := collect(t, v, refsOf(Cluster, chunks), 2); len(got) != 6 {
		t.Errorf("%d chunks", len(got))
	}
	// The same bytes for the other audience are other chunks.
	addPack(t, v, Head, chunks)
	if got := collect(t, v, append(refsOf(Head, chunks), refsOf(Cluster, chunks)...), 2); len(got) != 12 {
		t.Errorf("%d chunks of both audiences", len(got))
	}
}

// Packs are cut, and each shows before Commit: no more than one is open and one
// on its way to the disk.
func TestWriterCutsPacks(t *testing.T) {
	d := testDir(t)
	keys := testKeys(t)
	v := testVault(t, d, keys)
	ctx := context.Background()
	w := v.NewWriter()
	defer w.Close()
	noise := testChunks(1, 2, MaxBlock)[1]
	var refs []Ref
	for i := range 5 {
		noise[0] = byte(i)
		refs = append(refs, Ref{Cluster, Sum(noise)})
		if err := w.Add(ctx, testBlock(t, Cluster, [][]byte{noise})); err != nil {
			t.Fatal(err)
		}
		if least := (i+1)/2 - 1; len(listIDs(t, d, KindPack)) < least {
			t.Errorf("%d packs after %d blocks of %d bytes", len(listIDs(t, d, KindPack)), i+1, MaxBlock)
		}
	}
	if err := w.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	packs := listIDs(t, d, KindPack)
	if len(packs) != 3 {
		t.Errorf("%d packs of 5 blocks of %d bytes", len(packs), MaxBlock)
	}
	for id, size := range packs {
		if size > packSize+MaxBlock {
			t.Errorf("pack %s has %d bytes", id, size)
		}
	}
	if got := collect(t, testVault(t, d, keys), refs, 2); len(got) != 5 {
		t.Errorf("%d chunks", len(got))
	}
}

// Several vaults on one directory, several goroutines on each.
func TestConcurrentWriters(t *testing.T) {
	path := testDir(t).Path()
	keys := testKeys(t)
	ctx := context.Background()
	chunks := testChunks(1, 64, 2000)
	var wg sync.WaitGroup
	for range 2 {
		d, err := OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		release, err := d.LockShared(ctx)
		if err != nil {
			t.Fatal(err)
		}
		v := testVault(t, d, keys)
		w := v.NewWriter()
		var adds sync.WaitGroup
		for g := range 4 {
			adds.Go(func() {
				for i := range 16 { // each starts elsewhere, so that they overlap
					at := (g*12 + i*4) % 64
					aud := Cluster
					if i%2 == 1 {
						aud = Head
					}
					if err := w.Add(ctx, testBlock(t, aud, chunks[at:at+4])); err != nil {
						t.Error(err)
					}
					if i%5 == 4 {
						if err := w.Commit(ctx); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
		wg.Go(func() {
			defer release()
			adds.Wait()
			if err := errors.Join(w.Commit(ctx), w.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	v := testVault(t, d, keys)
	if err := v.Verify(ctx, Chunks, func(f Fault) { t.Errorf("Verify: %v", f) }); err != nil {
		t.Error(err)
	}
	var refs []Ref
	for _, ref := range append(refsOf(Cluster, chunks), refsOf(Head, chunks)...) {
		if v.Has(ref) {
			refs = append(refs, ref)
		}
	}
	if len(refs) < 64 {
		t.Errorf("%d chunks", len(refs))
	}
	collect(t, v, refs, 4)
}

func TestWriterReadOnly(t *testing.T) {
	v, err := OpenVault(context.Background(), NewHTTP("http://127.0.0.1:1", nil), testKeys(t), []ID{})
	if err != nil {
		t.Fatal(err)
	}
	w := v.NewWriter()
	defer w.Close()
	if err := w.Add(context.Background(), testBlock(t, Cluster, testChunks(1, 1, 10))); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Add: %v", err)
	}
}
