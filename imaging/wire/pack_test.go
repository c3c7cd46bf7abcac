package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/klauspost/compress/zstd"

	"doppel/imaging"
	"doppel/imaging/store"
)

// zstdOf is data as any zstd would compress it.
func zstdOf(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	return z.EncodeAll(data, nil)
}

// packedFrame is a packed frame as a liar would write it.
func packedFrame(k kind, says int, data []byte) []byte {
	return frame(k|packedBit, append(binary.AppendUvarint(nil, uint64(says)), data...)...)
}

// names are n bytes that pack well, but not beyond belief.
func names(n int) []byte {
	var b bytes.Buffer
	r := rand.New(rand.NewPCG(1, 2))
	for b.Len() < n {
		fmt.Fprintf(&b, "usr/lib/x86_64-linux-gnu/module-%d/file%08x.so\n", r.IntN(50), r.Uint32())
	}
	return b.Bytes()[:n]
}

// packingLiars are packed frames that are refused.
func packingLiars(t testing.TB) map[string][]byte {
	plain := names(20_000)
	data := zstdOf(t, plain)
	noise := make([]byte, 3000)
	rand.NewChaCha8([32]byte{}).Read(noise)
	var split bytes.Buffer // a stream does not say how long it is
	z, err := zstd.NewWriter(&split, zstd.WithWindowSize(maxPacked/2))
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		z.Write(make([]byte, 1<<20))
		z.Flush()
	}
	z.Close()
	return map[string][]byte{
		"packed block":               packedFrame(kindBlock, len(plain), data),
		"packed answer":              packedFrame(kindCachedAnswer, len(plain), data),
		"packed question":            packedFrame(kindCached, len(plain), data),
		"packed done":                packedFrame(kindDone, 0, nil),
		"packed, of no kind":         packedFrame(99, len(plain), data),
		"packed without a length":    frame(kindEntries | packedBit),
		"packed, endless length":     frame(kindEntries|packedBit, bytes.Repeat([]byte{0xff}, 20)...),
		"packed noise":               packedFrame(kindEntries, 20_000, noise),
		"packed nothing":             packedFrame(kindEntries, 600, nil),
		"packed and broken off":      packedFrame(kindEntries, len(plain), data[:len(data)/2]),
		"packed, a byte flipped":     packedFrame(kindEntries, len(plain), append(append(bytes.Clone(data[:40]), data[40]^0xff), data[41:]...)),
		"packed more than it says":   packedFrame(kindEntries, len(plain)-1, data),
		"packed less than it says":   packedFrame(kindEntries, len(plain)+1, data),
		"packed twice over":          packedFrame(kindEntries, len(plain), append(bytes.Clone(data), data...)),
		"packed beyond the limit":    packedFrame(kindEntries, maxPacked+1, zstdOf(t, names(maxPacked+1))),
		"packed from nothing":        packedFrame(kindEntries, maxPacked, zstdOf(t, make([]byte, maxPacked))),
		"packed, unsaid, as a bomb":  packedFrame(kindEntries, maxPacking*split.Len(), split.Bytes()),
		"packed with a vast window":  packedFrame(kindEntries, 1000, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 1, 0, 0}),
		"packed with a dictionary":   packedFrame(kindEntries, 1000, []byte{0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 100, 1, 0, 0}),
		"packed entries that lie":    packedFrame(kindEntries, len(plain), data),
		"packed and count too large": packedFrame(kindEntries, 1000, zstdOf(t, append(binary.AppendUvarint(nil, 1<<17), names(997)...))),
	}
}

// What unpacks to too much is refused before there is any memory for it.
func TestUnpackingIsBounded(t *testing.T) {
	for name, lie := range packingLiars(t) {
		r := newFrameReader(bytes.NewReader(lie))
		before := allocated()
		_, payload, err := r.next()
		if spent := allocated() - before; spent > uint64(maxPacking*len(lie))+(400<<10) {
			t.Errorf("%s: %d bytes cost %d bytes of memory", name, len(lie), spent)
		}
		var lied *ProtocolError
		honest := name == "packed entries that lie" || name == "packed and count too large"
		if honest != (err == nil) || !honest && !errors.As(err, &lied) {
			t.Errorf("%s gave %d bytes and %v", name, len(payload), err)
		}
	}
}

// Every payload comes through, packed or not; which are is seen by their first
// byte.
func TestPacking(t *testing.T) {
	noise := make([]byte, 100_000)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for name, c := range map[string]struct {
		kind    kind
		payload []byte
		packed  bool
	}{
		"entries":            {kindEntries, names(20_000), true},
		"questions":          {kindCached, names(20_000), false},
		"all that may be":    {kindEntries, names(maxPacked), true},
		"more than may be":   {kindEntries, names(maxPacked + 1), false},
		"hardly any":         {kindEntries, names(minPacked - 1), false},
		"nothing":            {kindEntries, nil, false},
		"noise":              {kindEntries, noise, false},
		"too good":           {kindEntries, make([]byte, 200_000), false},
		"of another kind":    {kindMissing, names(20_000), false},
		"compressed already": {kindBlock, names(20_000), false},
	} {
		var b bytes.Buffer
		w := newFrameWriter(&b)
		// In parts, and twice: nothing of the first is in the second.
		half := len(c.payload) / 2
		for range 2 {
			if err := w.write(c.kind, c.payload[:half], c.payload[half:]); err != nil {
				t.Fatal(name, err)
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(name, err)
		}
		if packed := b.Bytes()[0]&packedBit != 0; packed != c.packed || packed != (b.Len() < 2*len(c.payload)) {
			t.Errorf("%s: packed: %v, twice %d bytes in %d", name, packed, len(c.payload), b.Len())
		}
		r := newFrameReader(&b)
		for range 2 {
			k, payload, err := r.next()
			if err != nil || k != c.kind || !bytes.Equal(payload, c.payload) {
				t.Errorf("%s came back as a %v of %d bytes, %v", name, k, len(payload), err)
			}
		}
		if _, _, err := r.next(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v at the end", name, err)
		}
	}
}

// unchangedTree is a scan of n files that are as they were, the last of them
// by one stamp when it was asked about and by another in its entry.
func unchangedTree(n int) (*fakeSource, *memorySink, []imaging.Stamp) {
	r := rand.New(rand.NewPCG(3, 4))
	sink := &memorySink{known: map[string]*imaging.Content{}}
	var stamps []imaging.Stamp
	for i := range n {
		at := imaging.Time{Sec: 1_700_000_000 + r.Int64N(1<<24), Nsec: r.Uint32N(1e9)}
		s := imaging.Stamp{Path: fmt.Sprintf("usr/share/doc/package%03d/file%05d", i/40, i), Dev: 65024, Ino: uint64(400_000 + i), Size: r.Int64N(1 << 16), MTime: at, CTime: at}
		stamps = append(stamps, s)
		sink.known[s.Path] = &imaging.Content{Chunks: []store.Chunk{chunk(s.Path)}}
	}
	given := append([]imaging.Stamp(nil), stamps...)
	given[n-1].Ino++
	return &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		for i := 0; i < n; i += 256 {
			end := min(i+256, n)
			contents, err := s.Cached(ctx, make([]imaging.Class, end-i), stamps[i:end])
			if err != nil {
				return err
			}
			var entries []imaging.Entry
			for j, c := range contents {
				e := file(stamps[i+j].Path, stamps[i+j].Size, c.Chunks...)
				e.MTime = stamps[i+j].MTime
				entries = append(entries, e)
			}
			if err := s.Entries(ctx, entries, given[i:end]); err != nil {
				return err
			}
		}
		return nil
	}}, sink, given
}

// What a file is known by crosses the wire once, packed; and a stamp that is
// not the one asked about crosses it as it is.
func TestUnchangedTreeIsBrief(t *testing.T) {
	const n = 5000
	source, sink, stamps := unchangedTree(n)
	l := connect(t, source)
	before := l.client.Received()
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, sink); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(sink.stamps, stamps) {
		t.Errorf("the %d stamps did not come as they were given", len(sink.stamps))
	}
	for _, e := range sink.entries {
		if !reflect.DeepEqual(e.Chunks, []store.Chunk{chunk(e.Path)}) {
			t.Fatalf("%s came with %v", e.Path, e.Chunks)
		}
	}
	// Some 10 bytes of each are random, and come in the question and the entry.
	if each := (l.client.Received() - before) / n; each > 44 {
		t.Errorf("%d bytes came for each file", each)
	}
}

// FuzzUnpack: whatever is packed in it, no more comes out than was said, and
// than the bytes are worth.
func FuzzUnpack(f *testing.F) {
	for _, lie := range packingLiars(f) {
		f.Add(lie[5:])
	}
	f.Add(binary.AppendUvarint(nil, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		var c unpacker
		payload, err := c.unpack(kindEntries, data)
		var lied *ProtocolError
		if err != nil && !errors.As(err, &lied) {
			t.Error(err)
		}
		if err == nil && (len(payload) > maxPacked || len(payload) > maxPacking*len(data)) {
			t.Errorf("%d bytes came out of %d", len(payload), len(data))
		}
		if err != nil && payload != nil {
			t.Error("an error, and a payload")
		}
	})
}

// A question holds its stamps as they are, however far apart they lie.
func TestQuestionStamps(t *testing.T) {
	far := imaging.Time{Sec: math.MaxInt64, Nsec: 999_999_999}
	near := imaging.Time{Sec: math.MinInt64}
	q := question{id: 1, class: make([]imaging.Class, 4), files: []imaging.Stamp{
		{Path: "a", Dev: math.MaxUint64, Ino: 1, Size: math.MaxInt64, MTime: far, CTime: near},
		{Path: "ab", Dev: 0, Ino: math.MaxUint64, MTime: near, CTime: far},
		{Path: "b", Dev: 1 << 63, Ino: 1 << 63, Size: 7},
		{Path: "c", MTime: far, CTime: far},
	}}
	got, err := decodeQuestion(q.encode())
	if err != nil || !reflect.DeepEqual(got, q) {
		t.Errorf("%+v came back as %+v, %v", q, got, err)
	}
}
