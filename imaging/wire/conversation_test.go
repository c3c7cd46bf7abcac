package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime/metrics"
	"sync"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// recorder keeps what is read through it.
type recorder struct {
	io.ReadCloser
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b.Write(b[:n])
	return n, err
}

func (r *recorder) bytes() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.b.Bytes())
}

// talker is a source that uses all that the protocol has, and is brief.
func talker() *fakeSource {
	var entries []imaging.Entry
	var stamps []imaging.Stamp
	all, allStamps := allKinds()
	for i, e := range all {
		if len(e.Chunks)+len(e.Extents) < 100 {
			entries, stamps = append(entries, e), append(stamps, allStamps[i])
		}
	}
	return &fakeSource{
		describe: func(context.Context, string) (imaging.Facts, *imaging.Layout, error) {
			return imaging.Facts{Hostname: "head"}, &imaging.Layout{Table: "gpt"}, nil
		},
		scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
			_, err := s.Cached(ctx, []imaging.Class{0, 0}, []imaging.Stamp{{Path: "f"}, {Path: "g"}})
			_, e := s.Missing(ctx, []store.Ref{{Audience: store.Cluster, ID: chunk("one").ID}})
			block := store.Block{Audience: store.Cluster, Codec: store.Raw, Chunks: []store.Chunk{chunk("one")}, Data: []byte("one")}
			err = errors.Join(err, e, s.Block(ctx, block), s.Note(ctx, imaging.Note{Path: "f", Kind: imaging.NoteSecret}), s.Entries(ctx, entries, stamps))
			s.Progress(imaging.ScanProgress{Entries: 3})
			return err
		},
	}
}

// conversation is one whole conversation of source's: what either end said.
func conversation(t testing.TB, source imaging.Source) (fromAgent, fromClient []byte) {
	t.Helper()
	toAgent, client := io.Pipe()
	toClient, agent := io.Pipe()
	heard, said := &recorder{ReadCloser: toClient}, &recorder{ReadCloser: toAgent}
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), said, agent, source, Hello{Build: "agent"}) }()
	c, err := NewClient(t.Context(), heard, client, "client", func() { client.Close(); toClient.Close() })
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Describe(t.Context(), "/"); err != nil {
		t.Fatal(err)
	}
	if err := c.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, &memorySink{}); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return heard.bytes(), said.bytes()
}

// Whole conversations, from the greeting on, that one end makes up: the other
// comes to an end, without more memory than the bytes are worth.
func FuzzConversation(f *testing.F) {
	source := talker()
	fromAgent, fromClient := conversation(f, source)
	f.Add(fromAgent, fromClient)
	f.Add(append([]byte("Welcome to head\n"), fromAgent...), fromClient[:len(fromClient)/2])
	f.Add(fromAgent[:len(fromAgent)-6], append(fromClient, fromClient...))
	f.Add(append(bytes.Clone(fromAgent[:len(fromAgent)-5]), cheapest(f)...), fromClient)
	for _, lie := range lyingAgents(f) {
		f.Add(append(bytes.Clone(fromAgent[:len(fromAgent)-5]), lie...), fromClient)
	}
	f.Fuzz(func(t *testing.T, fromAgent, fromClient []byte) {
		before := allocations()
		if c, err := NewClient(t.Context(), bytes.NewReader(fromAgent), nopCloser{io.Discard}, "fuzz", func() {}); err == nil {
			sink := &memorySink{known: map[string]*imaging.Content{"f": {}}}
			if _, _, err := c.Describe(t.Context(), "/"); err == nil {
				c.Scan(t.Context(), imaging.ScanRequest{}, sink)
			}
			c.Close()
			for _, e := range sink.entries {
				if !validPath(e.Path) {
					t.Errorf("path %q got through", e.Path)
				}
			}
		}
		Serve(t.Context(), bytes.NewReader(fromClient), io.Discard, source, Hello{})
		// An entry takes up to 140 times its bytes, which may be packed.
		if spent := allocations() - before; spent > 8<<20+200*maxPacking*uint64(len(fromAgent)+len(fromClient)) {
			t.Errorf("%d and %d bytes cost %d bytes of memory", len(fromAgent), len(fromClient), spent)
		}
	})
}

// cheapest is a packed frame of entries that takes as much memory as one can,
// for its length.
func cheapest(t testing.TB) []byte {
	one := raw(byte(imaging.FIFO), byte(0), byte(0), 1, "", 0, 0, 0, 0, 0)
	n := maxPacked/len(one) - 1
	plain := raw(n, byte(imaging.FIFO), byte(0), byte(0), 0, "x", 0, 0, 0, 0, 0, bytes.Repeat(one, n-1))
	data := zstdOf(t, plain)
	// What may follow a zstd frame is skipped.
	skipped := len(plain)/maxPacking - len(data)
	data = append(data, 0x50, 0x2a, 0x4d, 0x18)
	data = append(binary.LittleEndian.AppendUint32(data, uint32(skipped)), make([]byte, skipped)...)
	return packedFrame(kindEntries, len(plain), data)
}

// allocations is allocated without stopping the world.
func allocations() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
