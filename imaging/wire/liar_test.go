package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"strings"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// frame is a frame as a liar would write it.
func frame(k kind, payload ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{byte(k)}, uint32(len(payload))), payload...)
}

// claim is a frame's head alone.
func claim(k kind, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{byte(k)}, n) }

func entriesFrame(t testing.TB, entries ...imaging.Entry) []byte {
	b, prev := putUint(nil, uint64(len(entries))), ""
	for i := range entries {
		var err error
		if b, err = putEntry(b, prev, &entries[i], imaging.Stamp{}, false); err != nil {
			t.Fatal(err)
		}
		prev = entries[i].Path
	}
	return frame(kindEntries, b...)
}

func raw(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = putUint(b, uint64(p))
		case byte:
			b = append(b, p)
		case string:
			b = putString(b, p)
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

func TestGreeting(t *testing.T) {
	greet := func(version int) []byte {
		var b bytes.Buffer
		w := newFrameWriter(&b)
		w.w.WriteString(magic)
		w.write(kindHello, Hello{Version: version, Build: "x"}.encode())
		w.flush()
		return b.Bytes()
	}
	for _, c := range []struct {
		name, in, want string
	}{
		{"quiet", string(greet(Version)), ""},
		{"chatter", "Welcome to head!\n\x00doppel\nfortune: " + string(greet(Version)), ""},
		{"other version", string(greet(Version + 1)), fmt.Sprintf("version %d", Version+1)},
		{"no agent", "sh: 1: not found\n", "sh: 1: not found"},
		{"flood", strings.Repeat("y\n", maxChatter), "no greeting"},
		{"nothing", "", "ended early"},
		{"half", magic + "\x20\x00\x00\x00\x10", "ended early"},
		{"no hello", magic + "\x19\x00\x00\x00\x00", "in place of a greeting"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, err := NewClient(t.Context(), strings.NewReader(c.in), nopCloser{io.Discard}, "test", func() {})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want …%s…", err, c.want)
			}
			if client != nil {
				client.Close()
			}
		})
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func lyingAgents(t testing.TB) map[string][]byte {
	huge := make([]byte, 0)
	huge = binary.AppendUvarint(huge, 1<<40)
	bad := func(path string) []byte {
		return frame(kindEntries, raw(1, byte(imaging.Directory), byte(0), byte(0), 0, path, 0, 0, 0, 0, 0)...)
	}
	cached := file("f", 1)
	cached.Chunks = cachedContent().Chunks
	lies := map[string][]byte{
		"length beyond the limit":   claim(kindEntries, 1<<31),
		"block beyond the limit":    claim(kindBlock, maxBlock+1),
		"unknown kind":              frame(99),
		"client's kind":             frame(kindScan, encodeScan(imaging.ScanRequest{})...),
		"second greeting":           frame(kindHello, Hello{Version: Version}.encode()...),
		"cut in a frame":            append(claim(kindBlock, 1<<20), "short"...),
		"count beyond the bytes":    frame(kindEntries, huge...),
		"refs beyond the bytes":     frame(kindMissing, raw(1, 30000)...),
		"files beyond the bytes":    frame(kindCached, raw(1, 16000)...),
		"chunks beyond the bytes":   frame(kindBlock, raw(byte(1), byte(0), 1<<17)...),
		"block without chunks":      frame(kindBlock, raw(byte(1), byte(0), 0)...),
		"block of no audience":      frame(kindBlock, raw(byte(9), byte(0), 0)...),
		"block of no codec":         frame(kindBlock, raw(byte(1), byte(7), putChunks(nil, []store.Chunk{chunk("x")}), []byte("x"))...),
		"raw block too short":       frame(kindBlock, raw(byte(1), byte(0), putChunks(nil, []store.Chunk{chunk("xyz")}), []byte("x"))...),
		"block that unpacks large":  frame(kindBlock, raw(byte(1), byte(1), putChunks(nil, []store.Chunk{{Size: store.MaxBlock}, {Size: 1}}), []byte("x"))...),
		"chunk of no bytes":         frame(kindBlock, raw(byte(1), byte(0), putChunks(nil, []store.Chunk{{}}))...),
		"path upwards":              bad("../../etc/shadow"),
		"path from the root":        bad("/etc/shadow"),
		"path with NUL":             bad("a\x00b"),
		"path with two slashes":     bad("a//b"),
		"no path":                   bad(""),
		"shared path of nothing":    frame(kindEntries, raw(1, byte(imaging.Directory), byte(0), byte(0), 5, "x", 0, 0, 0, 0, 0)...),
		"unknown flags":             frame(kindEntries, raw(1, byte(imaging.Directory), byte(0x80), byte(0), 0, "x", 0, 0, 0, 0, 0)...),
		"directory with content":    frame(kindEntries, raw(1, byte(imaging.Directory), byte(runsBefore), byte(0), 0, "x", 0, 0, 0, 0, 0)...),
		"unknown kind of entry":     frame(kindEntries, raw(1, byte(77), byte(0), byte(0), 0, "x", 0, 0, 0, 0, 0)...),
		"mode too large":            frame(kindEntries, raw(1, byte(imaging.Directory), byte(0), byte(0), 0, "x", 0o10000, 0, 0, 0, 0)...),
		"cached, but was not":       entriesFrame(t, cached),
		"data beyond the end":       entriesFrame(t, imaging.Entry{Path: "f", Kind: imaging.Regular, Size: 3, Extents: []imaging.Extent{{Offset: 2, Length: 2}}}),
		"extents overflow":          frame(kindExtents, raw(2, binary.AppendUvarint(nil, 1<<62), binary.AppendUvarint(nil, 1<<62), binary.AppendUvarint(nil, 1<<62), 1)...),
		"note with a bad path":      frame(kindNote, raw("../x", "lost", "")...),
		"same with a bad path":      frame(kindSame, raw("../x")...),
		"same of nothing":           frame(kindSame),
		"quieted in a scan":         frame(kindQuieted, 1),
		"left over":                 frame(kindProgress, 1, 2, 3, 4),
		"answer that is a question": frame(kindCachedAnswer, raw(1, 0)...),
		"done with a payload":       frame(kindDone, 1),
		"stamp as asked, unasked":   frame(kindEntries, raw(1, byte(imaging.Regular), byte(stampElse), byte(0), 0, "x", 0, 0, 0, 0, 0, 0, 0)...),
		"end in the middle":         nil,
	}
	maps.Copy(lies, packingLiars(t))
	return lies
}

// A lying agent gives an error that says so, at little cost.
func TestLyingAgent(t *testing.T) {
	for name, lie := range lyingAgents(t) {
		t.Run(name, func(t *testing.T) {
			var stream bytes.Buffer
			w := newFrameWriter(&stream)
			w.w.WriteString(magic)
			w.write(kindHello, Hello{Version: Version}.encode())
			w.flush()
			stream.Write(lie)
			client, err := NewClient(t.Context(), &stream, nopCloser{io.Discard}, "test", func() {})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			before := allocated()
			err = client.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, &memorySink{})
			var lied *ProtocolError
			var cut *CutError
			if !errors.As(err, &lied) && !(errors.As(err, &cut) && strings.Contains(name, "cut") || strings.Contains(name, "end in")) {
				t.Errorf("Scan gave %v", err)
			}
			if spent := allocated() - before; spent > 16<<20 {
				t.Errorf("it cost %d bytes of memory", spent)
			}
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// An agent that asks about files without end, and never uses an answer, is
// stopped.
func TestHoardingAgent(t *testing.T) {
	s := &scan{client: &Client{w: newFrameWriter(io.Discard)}, sink: everything{&memorySink{}}, known: map[string]known{}}
	var err error
	for id := uint64(1); err == nil; id++ {
		q := question{id: id, class: make([]imaging.Class, maxFiles), files: make([]imaging.Stamp, maxFiles)}
		for i := range q.files {
			q.files[i].Path = fmt.Sprintf("%d/%d", id, i)
		}
		err = s.answerCached(t.Context(), q.encode())
		if id > 2*maxCached/maxFiles {
			t.Fatal("nobody stopped it")
		}
	}
	var lied *ProtocolError
	if !errors.As(err, &lied) {
		t.Error(err)
	}
}

type everything struct{ *memorySink }

func (everything) Cached(_ context.Context, _ []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	out := make([]*imaging.Content, len(files))
	for i := range out {
		out[i] = &imaging.Content{}
	}
	return out, nil
}

// A lying client cannot make the agent do anything but end.
func TestLyingClient(t *testing.T) {
	hello := frame(kindHello, Hello{Version: Version}.encode()...)
	for name, lie := range map[string][]byte{
		"no greeting":        []byte("GET / HTTP/1.1\r\n\r\n"),
		"chatter":            append([]byte("x"+magic), hello...),
		"scan first":         append([]byte(magic), frame(kindScan, encodeScan(imaging.ScanRequest{})...)...),
		"other version":      append([]byte(magic), frame(kindHello, Hello{Version: 9}.encode()...)...),
		"two greetings":      append(append([]byte(magic), hello...), hello...),
		"answer to none":     append(append([]byte(magic), hello...), frame(kindCachedAnswer, answer{id: 3, bits: []bool{true}}.encode()...)...),
		"agent's kind":       append(append([]byte(magic), hello...), frame(kindDone)...),
		"long ping":          append(append([]byte(magic), hello...), claim(kindPing, 9)...),
		"exclusions":         append(append([]byte(magic), hello...), frame(kindScan, raw("/", 4000)...)...),
		"two at once":        append(append([]byte(magic), hello...), append(frame(kindScan, encodeScan(imaging.ScanRequest{})...), frame(kindScan, encodeScan(imaging.ScanRequest{})...)...)...),
		"neither yes nor no": append(append([]byte(magic), hello...), frame(kindScan, raw("/", 0, byte(2))...)...),
		"half a mark":        append(append([]byte(magic), hello...), frame(kindQuiet, 0x80)...),
		"CPUs of a planet":   append(append([]byte(magic), hello...), frame(kindScan, raw("/", 0, byte(1), 0, maxCPU+1)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			source := &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, _ imaging.Sink) error {
				<-ctx.Done()
				return ctx.Err()
			}}
			err := Serve(t.Context(), bytes.NewReader(lie), io.Discard, source, Hello{})
			var lied *ProtocolError
			if !errors.As(err, &lied) {
				t.Errorf("Serve gave %v", err)
			}
		})
	}
}

func TestWrongNumberOfAnswers(t *testing.T) {
	r, w := io.Pipe()
	out, in := io.Pipe()
	go func() {
		fr := newFrameReader(out)
		fr.skipTo(magic)
		fr.next()
		w.Write([]byte(magic))
		w.Write(frame(kindHello, Hello{Version: Version}.encode()...))
		w.Write(frame(kindScan, encodeScan(imaging.ScanRequest{})...))
		for {
			k, p, err := fr.next()
			if err != nil {
				return
			}
			if k == kindMissing {
				m, _ := decodeMissing(p)
				w.Write(frame(kindMissingAnswer, answer{id: m.id, bits: make([]bool, 3)}.encode()...))
			}
		}
	}()
	err := Serve(t.Context(), r, in, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		_, err := s.Missing(ctx, []store.Ref{{Audience: store.Head}})
		return err
	}}, Hello{})
	var lied *ProtocolError
	if !errors.As(err, &lied) {
		t.Errorf("Serve gave %v", err)
	}
}

func FuzzClient(f *testing.F) {
	for _, lie := range lyingAgents(f) {
		f.Add(lie)
	}
	entries, _ := allKinds()
	f.Add(append(entriesFrame(f, entries[:5]...), frame(kindDone)...))
	f.Add(append(frame(kindSame, encodeSame("etc")...), frame(kindDone)...))
	f.Add(append(frame(kindCached, question{id: 1, class: []imaging.Class{1}, files: []imaging.Stamp{{Path: "f"}}}.encode()...), frame(kindDone)...))
	f.Add(append(frame(kindMissing, missing{id: 1, refs: []store.Ref{{Audience: 1}}}.encode()...), frame(kindError, encodeError(io.EOF)...)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		hello := append([]byte(magic), frame(kindHello, Hello{Version: Version}.encode()...)...)
		client, err := NewClient(t.Context(), bytes.NewReader(append(hello, stream...)), nopCloser{io.Discard}, "fuzz", func() {})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		sink := &memorySink{known: map[string]*imaging.Content{"f": {}}}
		if client.Scan(t.Context(), imaging.ScanRequest{}, sink) == nil && len(stream) == 0 {
			t.Error("done without a word")
		}
		for _, e := range sink.entries {
			if !validPath(e.Path) {
				t.Errorf("path %q got through", e.Path)
			}
		}
	})
}

func FuzzServe(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame(kindPing))
	f.Add(frame(kindDescribe, encodeDescribe("/")...))
	f.Add(frame(kindQuiet, encodeQuiet(1<<63)...))
	f.Add(append(frame(kindScan, encodeScan(imaging.ScanRequest{Root: "/", Exclude: []string{"a"}, Limits: imaging.Limits{Rate: 1 << 40, CPU: 50}, Mark: 1 << 60, Since: 7})...), frame(kindMissingAnswer, answer{id: 1, bits: []bool{true}}.encode()...)...))
	f.Add(append(frame(kindScan, encodeScan(imaging.ScanRequest{Root: "/", Exclude: []string{"a"}, Limits: imaging.Limits{Rate: 1 << 40, CPU: 50}, Consistency: imaging.Consistency{Snapshot: imaging.SnapshotAuto, Freeze: []string{"/srv"}}})...), frame(kindMissingAnswer, answer{id: 1, bits: []bool{true}}.encode()...)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		hello := append([]byte(magic), frame(kindHello, Hello{Version: Version}.encode()...)...)
		Serve(t.Context(), bytes.NewReader(append(hello, stream...)), io.Discard, &fakeSource{
			describe: func(context.Context, string) (imaging.Facts, *imaging.Layout, error) {
				return imaging.Facts{}, nil, nil
			},
			scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
				_, err := s.Missing(ctx, []store.Ref{{Audience: store.Head}})
				return err
			},
		}, Hello{})
	})
}

// What was decoded encodes to something that decodes to the same.
func FuzzEntries(f *testing.F) {
	entries, _ := allKinds()
	f.Add(entriesFrame(f, entries...)[5:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		x := &entryDecoder{}
		entries, stamps, err := x.decode(payload)
		if err != nil {
			return
		}
		b, prev := putUint(nil, uint64(len(entries))), ""
		for i := range entries {
			if b, err = putEntry(b, prev, &entries[i], stamps[i], false); err != nil {
				t.Fatal(err)
			}
			prev = entries[i].Path
		}
		again, _, err := x.decode(b)
		if err != nil || len(again) != len(entries) {
			t.Fatalf("%d entries came back as %d: %v", len(entries), len(again), err)
		}
	})
}
