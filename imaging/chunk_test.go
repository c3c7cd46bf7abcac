package imaging

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"doppel/imaging/store"
)

// TestGear holds the table still: another table would cut every file
// otherwise, and nothing would be shared with what is in the stores already.
func TestGear(t *testing.T) {
	var b []byte
	for _, v := range gear {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	const want = "c8a0f3f5df95626adc2675017b12dbb3b1e8adf4fd7e110ee3729b40346c57ba"
	if got := store.Sum(b).Hex(); got != want {
		t.Errorf("digest of the table: %s, want %s", got, want)
	}
}

// noise is reproducible and does not compress.
func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func cuts(t *testing.T, r io.Reader) (sizes []int, all []byte) {
	t.Helper()
	var c Chunker
	c.Reset(r)
	for {
		b, err := c.Next()
		if err == io.EOF {
			return sizes, all
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(b))
		all = append(all, b...)
	}
}

func TestCutPoints(t *testing.T) {
	sizes, _ := cuts(t, bytes.NewReader(noise(1<<20, 1)))
	want := []int{87837, 25642, 121522, 81836, 67543, 50363, 87028, 24081, 90106, 106244, 70490, 90528, 38609, 46187, 60560}
	if !slices.Equal(sizes, want) {
		t.Errorf("cut points: %v, want %v", sizes, want)
	}
	if sizes, _ := cuts(t, bytes.NewReader(make([]byte, 3*maxChunk+5))); !slices.Equal(sizes, []int{maxChunk, maxChunk, maxChunk, 5}) {
		t.Errorf("zeros are cut into %v", sizes)
	}
}

// TestCutSizes checks what normalised chunking is for.
func TestCutSizes(t *testing.T) {
	sizes, _ := cuts(t, bytes.NewReader(noise(64<<20, 2)))
	if mean := 64 << 20 / len(sizes); mean < 56<<10 || mean > 84<<10 {
		t.Errorf("the mean chunk has %d bytes", mean)
	}
}

// TestCutsFindBack: after a change, the cuts come together again.
func TestCutsFindBack(t *testing.T) {
	a := noise(8<<20, 3)
	b := slices.Concat(a[:1<<20], []byte("inserted"), a[1<<20:])
	ends := func(data []byte) map[store.ID]bool {
		m := make(map[store.ID]bool)
		for len(data) > 0 {
			n := cut(data)
			m[store.Sum(data[:n])] = true
			data = data[n:]
		}
		return m
	}
	x, y := ends(a), ends(b)
	other := 0
	for id := range y {
		if !x[id] {
			other++
		}
	}
	if other > 4 {
		t.Errorf("%d of %d chunks are others after 8 bytes were inserted", other, len(y))
	}
}

func TestChunkerReader(t *testing.T) {
	data := noise(3<<20, 4)
	want, _ := cuts(t, bytes.NewReader(data))
	got, all := cuts(t, iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(data))))
	if !slices.Equal(got, want) || !bytes.Equal(all, data) {
		t.Error("how the input comes changes where it is cut")
	}
	var c Chunker
	boom := errors.New("boom")
	c.Reset(io.MultiReader(bytes.NewReader(data[:100]), iotest.ErrReader(boom)))
	if _, err := c.Next(); !errors.Is(err, boom) {
		t.Errorf("error of the input: %v", err)
	}
}

func TestChunkerAllocates(t *testing.T) {
	data := noise(8<<20, 5)
	var c Chunker
	r := bytes.NewReader(data)
	c.Reset(r)
	if n := testing.AllocsPerRun(3, func() {
		r.Reset(data)
		c.Reset(r)
		for {
			if _, err := c.Next(); err != nil {
				return
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzChunker(f *testing.F) {
	f.Add([]byte("seed"), uint32(1<<20), uint16(7))
	f.Add([]byte{0}, uint32(maxChunk), uint16(0))
	f.Add([]byte{}, uint32(minChunk+1), uint16(1))
	f.Fuzz(func(t *testing.T, pattern []byte, length uint32, step uint16) {
		data := make([]byte, length%(3*maxChunk))
		for i := range data {
			if len(pattern) > 0 {
				data[i] = pattern[i%len(pattern)] + byte(i/(int(step)+1))
			}
		}
		sizes, all := cuts(t, bytes.NewReader(data))
		if !bytes.Equal(all, data) {
			t.Fatal("the chunks are not the input")
		}
		for i, n := range sizes {
			if n > maxChunk || n < minChunk && i < len(sizes)-1 {
				t.Fatalf("chunk %d of %d has %d bytes", i, len(sizes), n)
			}
		}
	})
}

func BenchmarkCut(b *testing.B) {
	data := noise(16<<20, 6)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			rest = rest[cut(rest):]
		}
	}
}
