package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
)

var update = flag.Bool("update", false, "write the golden files anew; stores in the field stay as they are, so think twice")

// What the golden files hold.
var (
	goldenKey    = Key{0: 0xd0, 1: 0x99, 31: 0xe1}
	goldenChunks = [][]byte{[]byte("one chunk"), bytes.Repeat([]byte("a chunk that compresses "), 20), []byte("of another block")}
	goldenPlain  = []byte("a manifest, of which this package knows nothing")
)

func golden(t *testing.T, name string, content func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, content(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func goldenPack(t *testing.T) []byte {
	return golden(t, "v2.pack", func() []byte {
		m := NewMemory()
		v := testVault(t, m, Keys{Cluster: &goldenKey})
		return m.blobs[KindPack][addPack(t, v, Cluster, goldenChunks[:2], goldenChunks[2:])]
	})
}

// Packs of version 2 stay readable.
func TestGoldenPack(t *testing.T) {
	m := NewMemory()
	id := putBytes(t, m, KindPack, goldenPack(t))
	checkVault(t, testVault(t, m, Keys{Cluster: &goldenKey}), id, goldenChunks)
}

// FORMAT.md describes a pack well enough to read it with nothing of this package.
func TestFormatAsDocumented(t *testing.T) {
	be := binary.BigEndian
	b := goldenPack(t)
	header, footer := b[:56], b[len(b)-24:]
	mac := hmac.New(sha256.New, goldenKey[:])
	mac.Write([]byte("doppel key fingerprint v1"))
	want := slices.Concat([]byte("DOPPELPK"), []byte{2, 1, 0, 0, 0, 0, 0, 0}, mac.Sum(nil)[:8])
	if !bytes.Equal(header[:24], want) {
		t.Fatalf("header: %x", header)
	}
	open := opener(t, header[24:], "doppel pack v2")
	at, length := be.Uint64(footer), be.Uint64(footer[8:])
	if string(footer[16:]) != "KPLEPPOD" || at+length+24 != uint64(len(b)) {
		t.Fatalf("footer: %x", footer)
	}
	ad := []byte("DOPPELPK\x02\x01")
	nonce := append(make([]byte, 4), bytes.Repeat([]byte{0xff}, 8)...)
	table := open(b[at:at+length], nonce, append(bytes.Clone(ad), "trailer"...))
	blocks := be.Uint32(table)
	table = table[4:]
	end := uint64(56)
	var chunks [][]byte
	for i := range uint64(blocks) {
		off, sealed, plain := be.Uint64(table), be.Uint32(table[8:]), be.Uint32(table[12:])
		codec, count := table[16], be.Uint32(table[17:])
		table = table[21:]
		if off != end {
			t.Errorf("block %d at %d", i, off)
		}
		end = off + 4 + uint64(sealed)
		if got := be.Uint32(b[off:]); got != sealed {
			t.Errorf("block %d has the length %d in front", i, got)
		}
		data := open(b[off+4:end], be.AppendUint64(make([]byte, 4), i), be.AppendUint64(append(bytes.Clone(ad), "block"...), i))
		foot := data[len(data)-5-4*int(count):]
		data = data[:len(data)-len(foot)]
		if be.Uint32(foot[4*count:]) != count || foot[4*count+4] != codec {
			t.Errorf("block %d ends with %x", i, foot)
		}
		if codec == 1 {
			data = expand(t, data)
		}
		if len(data) != int(plain) {
			t.Errorf("block %d has %d bytes", i, len(data))
		}
		for range count {
			size := be.Uint32(table[32:])
			if be.Uint32(foot) != size {
				t.Errorf("block %d says that a chunk has %d bytes", i, be.Uint32(foot))
			}
			foot = foot[4:]
			if sum := sha256.Sum256(data[:size]); !bytes.Equal(sum[:], table[:32]) {
				t.Errorf("a chunk of block %d has another digest", i)
			}
			chunks = append(chunks, data[:size])
			data, table = data[size:], table[36:]
		}
	}
	if end != at || len(table) != 0 || !slices.EqualFunc(chunks, goldenChunks, bytes.Equal) {
		t.Errorf("%d chunks, blocks end at %d, %d bytes follow the table", len(chunks), end, len(table))
	}
}

func TestGoldenBlob(t *testing.T) {
	b := golden(t, "v2.manifest", func() []byte {
		sealed, err := sealBlob(Keys{Head: &goldenKey}, Head, "manifest", goldenPlain)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	})
	plain, err := openBlob(Keys{Head: &goldenKey}, Head, "manifest", b)
	if err != nil || !bytes.Equal(plain, goldenPlain) {
		t.Errorf("%q, %v", plain, err)
	}
	open := opener(t, b[24:56], "doppel blob v2")
	if length := binary.BigEndian.Uint32(b[56:]); length != 1<<31|uint32(len(b)-60) {
		t.Errorf("the only segment says %#x, of %d bytes", length, len(b)-60)
	}
	plain = expand(t, open(b[60:], make([]byte, 12), []byte("DOPPELMF\x02\x02\x00\x00\x00\x00\x00\x00\x00\x00\x01manifest")))
	if !bytes.Equal(plain, goldenPlain) {
		t.Errorf("by hand: %q", plain)
	}
}

func opener(t *testing.T, salt []byte, info string) func(sealed, nonce, ad []byte) []byte {
	t.Helper()
	key, err := hkdf.Key(sha256.New, goldenKey[:], salt, info, 32)
	if err != nil {
		t.Fatal(err)
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(c)
	if err != nil {
		t.Fatal(err)
	}
	return func(sealed, nonce, ad []byte) []byte {
		t.Helper()
		plain, err := gcm.Open(nil, nonce, sealed, ad)
		if err != nil {
			t.Fatal(err)
		}
		return plain
	}
}

func expand(t *testing.T, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}
