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
	return golden(t, "v1.pack", func() []byte {
		m := NewMemory()
		v := testVault(t, m, Keys{Cluster: &goldenKey})
		return m.blobs[KindPack][addPack(t, v, Cluster, goldenChunks[:2], goldenChunks[2:])]
	})
}

// Packs of version 1 stay readable.
func TestGoldenPack(t *testing.T) {
	m := NewMemory()
	id := putBytes(t, m, KindPack, goldenPack(t))
	checkVault(t, testVault(t, m, Keys{Cluster: &goldenKey}), id, goldenChunks)
}

// doc.go describes a pack well enough to read it with nothing of this package.
func TestFormatAsDocumented(t *testing.T) {
	be := binary.BigEndian
	b := goldenPack(t)
	header, footer := b[:56], b[len(b)-24:]
	mac := hmac.New(sha256.New, goldenKey[:])
	mac.Write([]byte("doppel key fingerprint v1"))
	want := slices.Concat([]byte("DOPPELPK"), []byte{1, 1, 0, 0, 0, 0, 0, 0}, mac.Sum(nil)[:8])
	if !bytes.Equal(header[:24], want) {
		t.Fatalf("header: %x", header)
	}
	open := opener(t, header[24:], "doppel pack v1")
	at, length := be.Uint64(footer), be.Uint64(footer[8:])
	if string(footer[16:]) != "KPLEPPOD" || at+length+24 != uint64(len(b)) {
		t.Fatalf("footer: %x", footer)
	}
	ad := []byte("DOPPELPK\x01\x01")
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
		end = off + uint64(sealed)
		data := open(b[off:end], be.AppendUint64(make([]byte, 4), i), be.AppendUint64(append(bytes.Clone(ad), "block"...), i))
		if codec == 1 {
			data = expand(t, data)
		}
		if len(data) != int(plain) {
			t.Errorf("block %d has %d bytes", i, len(data))
		}
		for range count {
			size := be.Uint32(table[32:])
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
	b := golden(t, "v1.manifest", func() []byte {
		sealed, err := SealBlob(Keys{Head: &goldenKey}, Head, "manifest", goldenPlain)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	})
	plain, err := OpenBlob(Keys{Head: &goldenKey}, Head, "manifest", b)
	if err != nil || !bytes.Equal(plain, goldenPlain) {
		t.Errorf("%q, %v", plain, err)
	}
	open := opener(t, b[24:56], "doppel blob v1")
	plain = expand(t, open(b[56:], make([]byte, 12), []byte("DOPPELMF\x01\x02manifest")))
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
