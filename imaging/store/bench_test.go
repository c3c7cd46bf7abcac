package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/http/httptest"
	"testing"
)

// benchChunks makes chunks of 64 KiB that compress about as files do, n blocks
// of 64.
func benchChunks(n int) [][][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+r.IntN(9))
		for j := range words[i] {
			words[i][j] = byte(r.Uint32())
		}
	}
	blocks := make([][][]byte, n)
	for i := range blocks {
		for range 64 {
			var c []byte
			for len(c) < 64<<10 {
				c = append(c, words[min(r.IntN(4096), r.IntN(4096))]...)
			}
			blocks[i] = append(blocks[i], c)
		}
	}
	return blocks
}

func blockBytes(blocks [][][]byte) (n int64) {
	for _, chunks := range blocks {
		for _, c := range chunks {
			n += int64(len(c))
		}
	}
	return n
}

func BenchmarkEncodeBlock(b *testing.B) {
	blocks := benchChunks(1)
	plain := bytes.Join(blocks[0], nil)
	table := testBlock(b, Cluster, blocks[0]).Chunks
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		EncodeBlock(Cluster, table, plain, nil)
	}
}

// Add alone: checking, sealing and writing blocks that were encoded before.
func BenchmarkAdd(b *testing.B) {
	keys := testKeys(b)
	sets := benchChunks(8)
	blocks := make([]Block, len(sets))
	for i, chunks := range sets {
		blocks[i] = testBlock(b, Cluster, chunks)
	}
	b.SetBytes(blockBytes(sets))
	b.ReportAllocs()
	for b.Loop() {
		v := testVault(b, testDir(b), keys)
		w := v.NewWriter()
		for _, bl := range blocks {
			if err := w.Add(context.Background(), bl); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Commit(context.Background()); err != nil {
			b.Fatal(err)
		}
		w.Close()
	}
}

func BenchmarkStream(b *testing.B) {
	keys := testKeys(b)
	d := testDir(b)
	v := testVault(b, d, keys)
	sets := benchChunks(16)
	addPack(b, v, Cluster, sets...)
	var refs []Ref
	for _, chunks := range sets {
		refs = append(refs, refsOf(Cluster, chunks)...)
	}
	srv := httptest.NewServer(Handler(d))
	defer srv.Close()
	far, err := OpenVault(context.Background(), NewHTTP(srv.URL, nil), keys, []ID{v.packs[0].id})
	if err != nil {
		b.Fatal(err)
	}
	for name, v := range map[string]*Vault{"dir": v, "http": far} {
		for _, workers := range []int{1, 2} {
			b.Run(name+"/"+string(rune('0'+workers)), func(b *testing.B) {
				b.SetBytes(blockBytes(sets))
				b.ReportAllocs()
				for b.Loop() {
					if err := v.Stream(context.Background(), refs, workers, func(Ref, []byte) error { return nil }); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
