package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestBlockRoundTrip(t *testing.T) {
	text := bytes.Repeat([]byte("the same words again and again "), 1000)
	noise := testChunks(1, 2, 5000)[1]
	for name, c := range map[string]struct {
		chunks [][]byte
		codec  Codec
	}{
		"text":     {[][]byte{text, text[:10], text}, Zstd},
		"noise":    {[][]byte{noise}, Raw},
		"one byte": {[][]byte{{7}}, Raw},
		"both":     {[][]byte{text, noise}, Zstd},
		"largest":  {[][]byte{make([]byte, MaxBlock)}, Zstd},
	} {
		t.Run(name, func(t *testing.T) {
			b := testBlock(t, Head, c.chunks)
			if b.Codec != c.codec || b.Audience != Head || len(b.Chunks) != len(c.chunks) {
				t.Errorf("codec %d, audience %s, %d chunks", b.Codec, b.Audience, len(b.Chunks))
			}
			plain, err := DecodeBlock(b)
			if err != nil || !bytes.Equal(plain, bytes.Join(c.chunks, nil)) {
				t.Errorf("decoding: %v", err)
			}
		})
	}
}

// Three parts in a hundred is what compression must save.
func TestBlockThreshold(t *testing.T) {
	for _, c := range []struct {
		zeros int
		codec Codec
	}{{1000, Raw}, {6000, Zstd}} {
		chunk := append(testChunks(3, 2, 100_000)[1], make([]byte, c.zeros)...)
		if b := testBlock(t, Cluster, [][]byte{chunk}); b.Codec != c.codec {
			t.Errorf("%d zeros among 100000 random bytes: codec %d, %d bytes", c.zeros, b.Codec, len(b.Data))
		}
	}
}

func TestBlockBounds(t *testing.T) {
	for name, chunks := range map[string][][]byte{
		"no chunk":    {},
		"empty chunk": {{1}, {}},
		"too large":   {make([]byte, MaxBlock), {1}},
	} {
		if _, err := BuildBlock(Cluster, chunks); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	bomb := compress(t, make([]byte, 64<<20))
	small := compress(t, make([]byte, 100))
	for name, b := range map[string]Block{
		"a bomb":             {Codec: Zstd, Chunks: []Chunk{{Size: 100}}, Data: bomb},
		"a bomb, honest":     {Codec: Zstd, Chunks: []Chunk{{Size: 64 << 20}}, Data: bomb},
		"many bombs":         {Codec: Zstd, Chunks: []Chunk{{Size: MaxBlock}, {Size: MaxBlock}}, Data: bomb},
		"sizes that wrap":    {Codec: Zstd, Chunks: []Chunk{{Size: 1 << 31}, {Size: 1<<31 + 100}}, Data: small},
		"two frames":         {Codec: Zstd, Chunks: []Chunk{{Size: 100}}, Data: append(bytes.Clone(small), small...)},
		"too short":          {Codec: Zstd, Chunks: []Chunk{{Size: 101}}, Data: small},
		"cut":                {Codec: Zstd, Chunks: []Chunk{{Size: 100}}, Data: small[:len(small)-1]},
		"nothing":            {Codec: Zstd, Chunks: []Chunk{{Size: 100}}},
		"raw, too short":     {Codec: Raw, Chunks: []Chunk{{Size: 101}}, Data: make([]byte, 100)},
		"raw, too long":      {Codec: Raw, Chunks: []Chunk{{Size: 99}}, Data: make([]byte, 100)},
		"unknown codec":      {Codec: 9, Chunks: []Chunk{{Size: 100}}, Data: small},
		"no chunks":          {Codec: Raw},
		"larger than blocks": {Codec: Zstd, Chunks: []Chunk{{Size: 100}}, Data: make([]byte, maxData+1)},
		"too many chunks":    {Codec: Raw, Chunks: make([]Chunk, MaxChunks+1), Data: small},
	} {
		if plain, err := DecodeBlock(b); err == nil {
			t.Errorf("%s: %d bytes", name, len(plain))
		}
	}
}

func compress(t testing.TB, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

func TestBlobRoundTrip(t *testing.T) {
	keys := testKeys(t)
	for _, plain := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("manifest "), 100_000), testChunks(5, 2, 100_000)[1]} {
		sealed, err := sealBlob(keys, Head, "manifest", plain)
		if err != nil {
			t.Fatal(err)
		}
		if len(plain) > 8 && bytes.Contains(sealed, plain[:8]) {
			t.Error("the plain bytes show")
		}
		got, err := openBlob(keys, Head, "manifest", sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", len(plain), err)
		}
		again, err := sealBlob(keys, Head, "manifest", plain)
		if err != nil || bytes.Equal(again, sealed) {
			t.Errorf("sealed again: the same bytes, %v", err)
		}
	}
}

func TestBlobWrongKey(t *testing.T) {
	keys, others := testKeys(t), testKeys(t)
	sealed, err := sealBlob(keys, Cluster, "manifest", []byte("plain"))
	if err != nil {
		t.Fatal(err)
	}
	var wrong *WrongKeyError
	if _, err := openBlob(others, Cluster, "manifest", sealed); !errors.As(err, &wrong) ||
		wrong.Sealed != keys.Cluster.Fingerprint() || wrong.Held != others.Cluster.Fingerprint() {
		t.Errorf("another key: %v", err)
	}
	if _, err := openBlob(Keys{Head: keys.Head}, Cluster, "manifest", sealed); !errors.As(err, &wrong) {
		t.Errorf("no key: %v", err)
	}
	var corrupt *CorruptError
	if _, err := openBlob(keys, Cluster, "catalog", sealed); !errors.As(err, &corrupt) {
		t.Errorf("another kind: %v", err)
	}
	if _, err := openBlob(keys, Head, "manifest", sealed); err == nil {
		t.Error("another audience: no error")
	}
	if _, err := sealBlob(Keys{Head: keys.Head}, Cluster, "manifest", nil); err == nil {
		t.Error("sealed without a key")
	}
	if _, err := sealBlob(keys, 7, "manifest", nil); err == nil {
		t.Error("sealed for an unknown audience")
	}
}

// Every bit of a sealed blob counts, and so does its length.
func TestBlobDamage(t *testing.T) {
	keys := testKeys(t)
	sealed, err := sealBlob(keys, Cluster, "manifest", []byte("some plain bytes of a manifest"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(sealed) * 8 {
		b := bytes.Clone(sealed)
		b[i/8] ^= 1 << (i % 8)
		if _, err := openBlob(keys, Cluster, "manifest", b); err == nil {
			t.Errorf("bit %d of byte %d may change", i%8, i/8)
		}
	}
	for n := range sealed {
		if _, err := openBlob(keys, Cluster, "manifest", sealed[:n]); err == nil {
			t.Errorf("the first %d bytes open", n)
		}
	}
}
