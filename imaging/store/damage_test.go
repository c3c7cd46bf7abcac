package store

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
)

// damaged is a store whose one pack is b under the name id.
func damaged(id ID, b []byte) *Memory {
	m := NewMemory()
	m.blobs[KindPack][id] = b
	return m
}

// isDamage tells whether an error says, in the right way, that the pack is not
// what it was.
func isDamage(err error, id ID) bool {
	var corrupt *CorruptError
	return errors.As(err, &corrupt) && corrupt.ID == id
}

// examine opens a damaged pack in every way there is. No byte that is not as
// it was may come out, and Verify must find something.
func examine(t *testing.T, keys Keys, id ID, b []byte, chunks [][]byte) {
	t.Helper()
	ctx := context.Background()
	m := damaged(id, b)
	v, err := OpenVault(ctx, m, keys, nil)
	if err != nil {
		t.Fatalf("opening all: %v", err)
	}
	_, err = OpenVault(ctx, m, keys, []ID{id})
	if hurt := v.Damaged(); len(hurt) > 0 {
		if len(hurt) != 1 || hurt[0].Pack != id || hurt[0].Block != -1 || !isDamage(hurt[0].Err, id) || !isDamage(err, id) {
			t.Errorf("damaged: %v; opening it: %v", hurt, err)
		}
	} else if err != nil {
		t.Errorf("opening it: %v", err)
	}
	var faults []Fault
	if err := v.Verify(ctx, Chunks, func(f Fault) { faults = append(faults, f) }); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if len(faults) == 0 || faults[0].Pack != id {
		t.Errorf("Verify finds %v", faults)
	}
	quick := 0
	if err := v.Verify(ctx, Bytes, func(Fault) { quick++ }); err != nil || quick != len(faults) {
		t.Errorf("reading the bytes alone finds %d faults, not %d: %v", quick, len(faults), err)
	}
	for i, ref := range refsOf(Cluster, chunks) {
		if !v.Has(ref) {
			continue
		}
		got, err := v.Chunk(ctx, ref)
		if err != nil && !isDamage(err, ref.ID) || err == nil && !bytes.Equal(got, chunks[i]) {
			t.Errorf("chunk %d: %v", i, err)
		}
		lost := slices.ContainsFunc(faults, func(f Fault) bool { return slices.Contains(f.Lost, ref) })
		if err != nil && !lost {
			t.Errorf("chunk %d is lost, which no fault tells", i)
		}
	}
}

func TestPackDamage(t *testing.T) {
	m := NewMemory()
	keys := testKeys(t)
	chunks := testChunks(1, 5, 120)
	id := addPack(t, testVault(t, m, keys), Cluster, chunks[:2], chunks[2:3], chunks[3:])
	whole := m.blobs[KindPack][id]
	t.Run("flipped bits", func(t *testing.T) {
		for i := range whole {
			b := bytes.Clone(whole)
			b[i] ^= 1 << (i % 8)
			if i == 9 {
				b[i] = 9 // as if for an audience that is not
			}
			examine(t, keys, id, b, chunks)
			if t.Failed() {
				t.Fatalf("that was byte %d of %d", i, len(whole))
			}
		}
	})
	t.Run("cut short", func(t *testing.T) {
		for n := range whole {
			examine(t, keys, id, whole[:n:n], chunks)
			if t.Failed() {
				t.Fatalf("that was %d bytes of %d", n, len(whole))
			}
		}
	})
	t.Run("more at the end", func(t *testing.T) {
		examine(t, keys, id, append(bytes.Clone(whole), 0), chunks)
		examine(t, keys, id, append(bytes.Clone(whole), whole...), chunks)
	})
	t.Run("blocks that change places", func(t *testing.T) {
		v := testVault(t, m, keys)
		p := v.packs[0]
		b := bytes.Clone(whole)
		first := p.blocks[0]
		copy(b[first.off:first.end()], whole[p.blocks[2].off:])
		examine(t, keys, id, b, chunks)
	})
	t.Run("another audience", func(t *testing.T) {
		b := bytes.Clone(whole)
		b[9] = byte(Head)
		_, err := OpenVault(context.Background(), damaged(id, b), keys, nil)
		var wrong *WrongKeyError // for the head key did not seal it
		if !errors.As(err, &wrong) {
			t.Errorf("opening: %v", err)
		}
	})
}

// A pack that is cut or spoilt after it was opened is noticed when it is read.
func TestPackDamageLater(t *testing.T) {
	m := NewMemory()
	keys := testKeys(t)
	chunks := testChunks(1, 6, 2000)
	v := testVault(t, m, keys)
	id := addPack(t, v, Cluster, chunks[:2], chunks[2:4], chunks[4:])
	whole := m.blobs[KindPack][id]
	refs := refsOf(Cluster, chunks)
	block := v.packs[0].blocks[1]
	spoilt := bytes.Clone(whole)
	spoilt[block.off+5] ^= 4
	for name, b := range map[string][]byte{"spoilt": spoilt, "cut": whole[: block.off+100 : block.off+100]} {
		m.blobs[KindPack][id] = b
		err := v.Stream(context.Background(), refs, 1, func(ref Ref, got []byte) error {
			if i := slices.Index(refs, ref); i >= 2 || !bytes.Equal(got, chunks[i]) {
				t.Errorf("%s: chunk %d comes out", name, i)
			}
			return nil
		})
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || corrupt.What != "chunk" || !slices.Contains(refs, Ref{Cluster, corrupt.ID}) {
			t.Errorf("%s: Stream: %v", name, err)
		}
	}
	delete(m.blobs[KindPack], id)
	var missing *MissingError
	if err := v.Stream(context.Background(), refs, 2, func(Ref, []byte) error { return nil }); !errors.As(err, &missing) || missing.ID != id {
		t.Errorf("gone: Stream: %v", err)
	}
	for _, depth := range []Depth{Chunks, Bytes, Tables} {
		var faults []Fault
		if err := v.Verify(context.Background(), depth, func(f Fault) { faults = append(faults, f) }); err != nil {
			t.Fatal(err)
		}
		if len(faults) != 1 || !errors.As(faults[0].Err, &missing) || len(faults[0].Lost) != len(refs) {
			t.Errorf("gone: Verify: %v", faults)
		}
	}
}

// A chunk whose bytes are not what the table says, sealed all the same: what a
// bug or bad memory makes. Only the digest can tell.
func TestWrongChunkSealed(t *testing.T) {
	m := NewMemory()
	keys := testKeys(t)
	v := testVault(t, m, keys)
	good, bad := testChunks(1, 2, 1000), testChunks(2, 2, 1000)
	plain := bytes.Join([][]byte{good[0], bad[0]}, nil)
	b := EncodeBlock(Cluster, []Chunk{{Sum(good[0]), 1000}, {Sum(good[1]), 1000}}, plain, nil)
	w := v.NewWriter()
	defer w.Close()
	if _, err := w.append(context.Background(), keys.Cluster, b, 2000); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	refs := refsOf(Cluster, good)
	came := 0
	err := v.Stream(context.Background(), refs, 1, func(Ref, []byte) error { came++; return nil })
	if !isDamage(err, refs[1].ID) || came != 1 {
		t.Errorf("Stream: %v after %d chunks", err, came)
	}
	if _, err := v.Chunk(context.Background(), refs[1]); !isDamage(err, refs[1].ID) {
		t.Errorf("Chunk: %v", err)
	}
	if _, err := v.Chunk(context.Background(), refs[0]); err != nil {
		t.Errorf("the good chunk beside it: %v", err)
	}
	var faults []Fault
	if err := v.Verify(context.Background(), Chunks, func(f Fault) { faults = append(faults, f) }); err != nil {
		t.Fatal(err)
	}
	if len(faults) != 1 || faults[0].Block != 0 || faults[0].Chunk != refs[1].ID || !slices.Equal(faults[0].Lost, refs[1:]) {
		t.Errorf("Verify: %v", faults)
	}
	faults = nil
	// It is as it was written.
	if err := v.Verify(context.Background(), Bytes, func(f Fault) { faults = append(faults, f) }); err != nil || len(faults) != 0 {
		t.Errorf("Verify of the bytes: %v, %v", faults, err)
	}
	if err := v.Verify(context.Background(), Tables, func(f Fault) { faults = append(faults, f) }); err != nil || len(faults) != 0 {
		t.Errorf("Verify without data: %v, %v", faults, err)
	}
}

// One damaged pack among others: the others are open, the damaged is told, and
// what it held can be stored again.
func TestVaultHeals(t *testing.T) {
	m := NewMemory()
	keys := testKeys(t)
	v := testVault(t, m, keys)
	chunks := testChunks(1, 8, 1000)
	a := addPack(t, v, Cluster, chunks[:4])
	addPack(t, v, Cluster, chunks[4:])
	m.blobs[KindPack][a] = m.blobs[KindPack][a][:500]
	v = testVault(t, m, keys)
	if hurt := v.Damaged(); len(hurt) != 1 || hurt[0].Pack != a {
		t.Errorf("damaged: %v", hurt)
	}
	refs := refsOf(Cluster, chunks)
	if v.Has(refs[0]) || !v.Has(refs[4]) {
		t.Error("the wrong chunks are there")
	}
	addPack(t, v, Cluster, chunks[:4])
	if got := collect(t, v, refs, 2); len(got) != 8 {
		t.Errorf("%d chunks", len(got))
	}
}
