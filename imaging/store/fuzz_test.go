package store

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// What the fuzz tests seal with: the same in every process that helps.
func fuzzKeys() Keys {
	return Keys{Cluster: &Key{1, 2, 3}, Head: &Key{4, 5, 6}}
}

func FuzzParseID(f *testing.F) {
	f.Add("")
	f.Add("sha256:")
	f.Add(Sum(nil).String())
	f.Add(Sum(nil).Hex())
	f.Add(strings.ToUpper(Sum(nil).Hex()))
	f.Add("sha256:sha256:" + Sum(nil).Hex())
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseID(s)
		if err != nil {
			return
		}
		if again, err := ParseID(id.String()); err != nil || again != id {
			t.Errorf("%q reads as %s, which reads as %s, %v", s, id, again, err)
		}
		if !strings.EqualFold(strings.TrimPrefix(s, "sha256:"), id.Hex()) {
			t.Errorf("%q reads as %s", s, id)
		}
		if _, ok := fileID(s); ok != (s == id.Hex()) {
			t.Errorf("%q is a file name: %v", s, ok)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte(strings.Repeat("a1", 32) + "\n"))
	f.Add([]byte(strings.Repeat("A1", 32) + "\r\n"))
	f.Add([]byte(strings.Repeat("0", 64)))
	f.Add([]byte("\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKey(b)
		if (err == nil) != (k != Key{}) {
			t.Errorf("%q: %v", b, err)
		}
	})
}

func FuzzParseTrailer(f *testing.F) {
	blocks := []packBlock{
		{off: headerSize, sealed: uint32(100 + footed(2) + tagSize), plain: 100, codec: Raw, chunks: []Chunk{{Sum(nil), 40}, {Sum([]byte("x")), 60}}},
		{off: headerSize + lengthSize + 100 + int64(footed(2)) + tagSize, sealed: 50, plain: 2000, codec: Zstd, chunks: []Chunk{{Sum(nil), 2000}}},
	}
	f.Add(appendTrailer(nil, blocks), blocks[1].end())
	f.Add(appendTrailer(nil, blocks[:1]), blocks[0].end())
	f.Add(appendTrailer(nil, nil), int64(headerSize))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, int64(1))
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		blocks, err := parseTrailer(b, end)
		if err != nil {
			return
		}
		at := int64(headerSize)
		for _, p := range blocks {
			if p.off != at || p.plain > MaxBlock || p.sealed > maxSealed {
				t.Errorf("a block of %d bytes at %d, after %d", p.plain, p.off, at)
			}
			at = p.end()
		}
		if at != end {
			t.Errorf("the blocks end at %d, not %d", at, end)
		}
		if again := appendTrailer(nil, blocks); !bytes.Equal(again, b) {
			t.Errorf("written again it is %x", again)
		}
	})
}

func FuzzParseFooter(f *testing.F) {
	f.Add(appendFooter(nil, 100, 50), int64(174))
	f.Add(appendFooter(nil, -1, 1<<62), int64(1)<<62)
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		off, length, err := parseFooter(b, size)
		if err == nil && (off < headerSize || length < tagSize || off+length+footerSize != size) {
			t.Errorf("%d bytes from %d on of %d", length, off, size)
		}
	})
}

// A whole pack of any bytes: opened, read, and verified without harm.
func FuzzPack(f *testing.F) {
	m := NewMemory()
	id := addPack(f, testVault(f, m, fuzzKeys()), Cluster, testChunks(1, 2, 50), testChunks(2, 1, 50))
	f.Add(m.blobs[KindPack][id])
	f.Add(m.blobs[KindPack][id][:200])
	f.Add([]byte(packMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx := context.Background()
		m := NewMemory()
		putBytes(t, m, KindPack, b)
		v, err := OpenVault(ctx, m, fuzzKeys(), nil)
		if err != nil {
			return // sealed with another key, as it seems
		}
		if len(v.packs)+len(v.damaged)+len(v.foreign) != 1 {
			t.Error("the pack is neither open nor damaged")
		}
		if err := v.Verify(ctx, Chunks, func(Fault) {}); err != nil {
			t.Errorf("Verify: %v", err)
		}
	})
}

func FuzzDecodeBlock(f *testing.F) {
	text := bytes.Repeat([]byte("text "), 100)
	b := testBlock(f, Cluster, [][]byte{text})
	f.Add(uint8(b.Codec), b.Data, uint32(len(text)), uint32(0))
	f.Add(uint8(Raw), []byte("raw"), uint32(1), uint32(2))
	f.Add(uint8(Zstd), []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa4, 0, 0, 0, 0xff}, uint32(MaxBlock), uint32(1))
	f.Fuzz(func(t *testing.T, codec uint8, data []byte, first, second uint32) {
		b := Block{Audience: Cluster, Codec: Codec(codec), Chunks: []Chunk{{Size: first}}, Data: data}
		if second > 0 {
			b.Chunks = append(b.Chunks, Chunk{Size: second})
		}
		plain, err := DecodeBlock(b)
		if err == nil && (uint64(len(plain)) != uint64(first)+uint64(second) || len(plain) > MaxBlock) {
			t.Errorf("%d and %d decode to %d bytes", first, second, len(plain))
		}
	})
}

func FuzzOpenBlob(f *testing.F) {
	keys := fuzzKeys()
	sealed, err := sealBlob(keys, Head, "manifest", []byte("the plain bytes"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:headerSize])
	f.Add([]byte(blobMagic + "\x01\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := openBlob(keys, Head, "manifest", b)
		if err == nil && !bytes.Equal(b, sealed) && string(plain) != "the plain bytes" {
			t.Errorf("%x opens as %q", b, plain)
		}
	})
}

func FuzzHandlerPath(f *testing.F) {
	m := NewMemory()
	id := putBytes(f, m, KindPack, []byte("content"))
	h := Handler(m)
	f.Add("/packs/"+id.Hex(), "GET", "")
	f.Add("/packs/"+id.Hex(), "GET", "bytes=1-2,3-")
	f.Add("/manifests/"+id.Hex(), "HEAD", "")
	f.Add("/packs/../lock", "GET", "")
	f.Add("/packs//"+id.Hex(), "PUT", "bytes=-")
	f.Fuzz(func(t *testing.T, path, method, rng string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: path}, Header: http.Header{"Range": {rng}}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code < 300 && (path != "/packs/"+id.Hex() || method != "GET" && method != "HEAD") {
			t.Errorf("%q %q is answered %d", method, path, w.Code)
		}
	})
}

func FuzzParseContentRange(f *testing.F) {
	f.Add("bytes 0-9/10")
	f.Add("bytes */10")
	f.Add("bytes 5-4/10")
	f.Add("bytes -1--1/-1")
	f.Add("bytes 0-9223372036854775807/9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		from, to, size, ok := parseContentRange(s)
		if ok && !(0 <= from && from < to && to <= size) {
			t.Errorf("%q is %d to %d of %d", s, from, to, size)
		}
	})
}
