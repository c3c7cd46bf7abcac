package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"doppel/imaging"
	"doppel/imaging/store"
)

// fakeSource is a source that does what the test says.
type fakeSource struct {
	describe func(ctx context.Context, root string) (imaging.Facts, *imaging.Layout, error)
	scan     func(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error
}

func (f *fakeSource) Describe(ctx context.Context, root string) (imaging.Facts, *imaging.Layout, error) {
	return f.describe(ctx, root)
}
func (f *fakeSource) Scan(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
	return f.scan(ctx, req, sink)
}
func (f *fakeSource) Close() error { return nil }

// memorySink keeps what it is given.
type memorySink struct {
	mu      sync.Mutex
	known   map[string]*imaging.Content
	have    map[store.Ref]bool
	order   []string // what came, in order
	entries []imaging.Entry
	stamps  []imaging.Stamp
	blocks  []store.Block
	notes   []imaging.Note
	same    []string
	last    imaging.ScanProgress
	fail    error // of Block
	hold    chan struct{}
}

func (m *memorySink) Cached(_ context.Context, class []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*imaging.Content, len(files))
	for i, f := range files {
		out[i] = m.known[f.Path]
	}
	return out, nil
}

func (m *memorySink) Missing(_ context.Context, refs []store.Ref) ([]bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]bool, len(refs))
	for i, r := range refs {
		out[i] = !m.have[r]
	}
	return out, nil
}

func (m *memorySink) Block(ctx context.Context, b store.Block) error {
	if m.hold != nil {
		select {
		case <-m.hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = append(m.order, "block")
	m.blocks = append(m.blocks, b)
	return m.fail
}

func (m *memorySink) Entries(_ context.Context, entries []imaging.Entry, stamps []imaging.Stamp) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = append(m.order, "entries")
	m.entries = append(m.entries, entries...)
	m.stamps = append(m.stamps, stamps...)
	return nil
}

func (m *memorySink) Same(_ context.Context, path string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = append(m.order, "same "+path)
	m.same = append(m.same, path)
	return nil
}

func (m *memorySink) Note(_ context.Context, n imaging.Note) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = append(m.order, "note")
	m.notes = append(m.notes, n)
	return nil
}

func (m *memorySink) Progress(p imaging.ScanProgress) { m.last = p }

// link is a client connected to an agent that serves source.
type link struct {
	client *Client
	served chan error
	cut    func() // both ways
}

func connect(t *testing.T, source imaging.Source) *link {
	t.Helper()
	toAgent, fromClient := io.Pipe()
	toClient, fromAgent := io.Pipe()
	l := &link{served: make(chan error, 1)}
	l.cut = func() {
		fromClient.Close()
		fromAgent.Close()
		toClient.Close()
	}
	go func() {
		err := Serve(t.Context(), toAgent, fromAgent, source, Hello{Build: "test", Digest: store.Sum([]byte("agent"))})
		fromAgent.Close()
		l.served <- err
	}()
	client, err := NewClient(t.Context(), toClient, fromClient, "test", l.cut)
	if err != nil {
		t.Fatal(err)
	}
	l.client = client
	t.Cleanup(func() {
		client.Close()
		l.cut()
	})
	return l
}

func file(path string, size int64, chunks ...store.Chunk) imaging.Entry {
	return imaging.Entry{Path: path, Kind: imaging.Regular, Mode: 0o644, UID: 1, GID: 2, MTime: imaging.Time{Sec: -1, Nsec: 999_999_999}, Size: size, Chunks: chunks}
}

func chunk(s string) store.Chunk { return store.Chunk{ID: store.Sum([]byte(s)), Size: uint32(len(s))} }

// allKinds is an entry of every kind, with everything that an entry may have.
func allKinds() ([]imaging.Entry, []imaging.Stamp) {
	var many []store.Chunk
	for i := range maxRun + 3 {
		many = append(many, chunk(fmt.Sprint("chunk", i)))
	}
	var holes []imaging.Extent
	for i := range int64(maxRun + 5) {
		holes = append(holes, imaging.Extent{Offset: i * 8192, Length: 4096})
	}
	entries := []imaging.Entry{
		{Path: ".", Kind: imaging.Directory, Mode: 0o755},
		{Path: "a\xff\n b", Kind: imaging.Directory, Mode: 0o7777, UID: math.MaxUint32, GID: math.MaxUint32},
		file("a\xff\n b/empty", 0),
		file("a\xff\n b/one", 3, chunk("one")),
		{Path: "caps", Kind: imaging.Regular, Size: 3, Mode: 0o4755, Chunks: []store.Chunk{chunk("two")}, Class: imaging.ClassHead, Xattrs: []imaging.Xattr{
			{Name: "security.capability", Value: []byte{1, 0, 255}}, {Name: "user.empty", Value: nil}}},
		{Path: "hole", Kind: imaging.Regular, Size: math.MaxInt64, Extents: []imaging.Extent{}},
		{Path: "sparse", Kind: imaging.Regular, Size: 1 << 40, Extents: []imaging.Extent{{Offset: 0, Length: 4}, {Offset: 1 << 39, Length: 2}}, Chunks: []store.Chunk{chunk("sparse")}},
		{Path: "vast", Kind: imaging.Regular, Size: 1 << 41, Extents: holes, Chunks: many},
		{Path: "vaster", Kind: imaging.Regular, Size: 1 << 41, Chunks: many},
		{Path: "vasterhole", Kind: imaging.Regular, Size: 1 << 41, Chunks: many[:2], Extents: holes},
		{Path: "link", Kind: imaging.Symlink, Target: "../..//x\xfe"},
		{Path: "hard", Kind: imaging.HardLink, Target: "caps"},
		{Path: "tty", Kind: imaging.CharDevice, Major: 5, Minor: 1 << 19},
		{Path: "sda", Kind: imaging.BlockDevice, Major: 8, Minor: 0},
		{Path: "fifo", Kind: imaging.FIFO},
		{Path: "sock", Kind: imaging.Socket},
		{Path: "proc", Kind: imaging.Directory, Mode: 0o555, Opaque: true},
	}
	stamps := make([]imaging.Stamp, len(entries))
	stamps[3] = imaging.Stamp{Path: entries[3].Path, Dev: math.MaxUint64, Ino: 7, Size: 3, MTime: entries[3].MTime, CTime: imaging.Time{Sec: math.MinInt64, Nsec: 1}}
	stamps[4] = imaging.Stamp{Path: "elsewhere", Dev: 1, Ino: 8, Size: 9}
	return entries, stamps
}

func TestScanCarriesEverything(t *testing.T) {
	entries, stamps := allKinds()
	block := store.Block{Audience: store.Head, Codec: store.Raw, Chunks: []store.Chunk{chunk("one"), chunk("two")}, Data: []byte("onetwo")}
	note := imaging.Note{Path: "log", Kind: imaging.NoteUnstable, Detail: "changed\nthree times"}
	want := imaging.ScanRequest{Root: "/srv/x", Exclude: []string{"*.o", "a/b"}, OneFileSystem: true, Limits: imaging.Limits{CPU: 250},
		Consistency: imaging.Consistency{Snapshot: imaging.SnapshotRequire, Freeze: []string{"/srv/db", "/srv"}, FreezeFor: 30 * time.Second}}
	var got imaging.ScanRequest
	l := connect(t, &fakeSource{scan: func(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
		got = req
		if err := sink.Block(ctx, block); err != nil {
			return err
		}
		if err := sink.Note(ctx, note); err != nil {
			return err
		}
		if err := sink.Entries(ctx, entries, stamps); err != nil {
			return err
		}
		sink.Progress(imaging.ScanProgress{Entries: 17, Bytes: 1 << 50, BytesRead: 3})
		return sink.Block(ctx, block)
	}})
	sink := &memorySink{}
	if err := l.client.Scan(t.Context(), want, sink); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the agent was asked for %+v, want %+v", got, want)
	}
	for i := range entries {
		if i < len(sink.entries) && !reflect.DeepEqual(sink.entries[i], entries[i]) {
			t.Errorf("entry %q arrived as\n%.300s, want\n%.300s", entries[i].Path, fmt.Sprintf("%+v", sink.entries[i]), fmt.Sprintf("%+v", entries[i]))
		}
	}
	if len(sink.entries) != len(entries) || !reflect.DeepEqual(sink.stamps, stamps) {
		t.Errorf("%d entries, want %d; stamps %+v", len(sink.entries), len(entries), sink.stamps)
	}
	if !reflect.DeepEqual(sink.blocks, []store.Block{block, block}) {
		t.Errorf("blocks arrived as %+v", sink.blocks)
	}
	if !reflect.DeepEqual(sink.notes, []imaging.Note{note}) || sink.last.Bytes != 1<<50 {
		t.Errorf("notes %+v, progress %+v", sink.notes, sink.last)
	}
	if o := sink.order; o[0] != "block" || o[1] != "note" || o[len(o)-1] != "block" {
		t.Errorf("out of order: %q", o)
	}
}

func TestQuestions(t *testing.T) {
	const files = maxFiles + 77
	known := &imaging.Content{Extents: []imaging.Extent{}, Chunks: []store.Chunk{chunk("a"), chunk("b")}}
	sink := &memorySink{known: map[string]*imaging.Content{}, have: map[store.Ref]bool{}}
	var stamps []imaging.Stamp
	var refs []store.Ref
	for i := range files {
		stamps = append(stamps, imaging.Stamp{Path: fmt.Sprintf("dir/f%06d", i), Ino: uint64(i) + 1})
		refs = append(refs, store.Ref{Audience: store.Cluster, ID: store.Sum(fmt.Append(nil, i))})
		if i%3 == 0 {
			sink.known[stamps[i].Path] = known
			sink.have[refs[i]] = true
		}
	}
	l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		contents, err := s.Cached(ctx, make([]imaging.Class, files), stamps)
		if err != nil {
			return err
		}
		lacks, err := s.Missing(ctx, append(append(refs, refs...), refs...))
		if err != nil {
			return err
		}
		var entries []imaging.Entry
		for i, c := range contents {
			if (c != nil) != (i%3 == 0) || lacks[i] != (i%3 != 0) || lacks[2*files+i] != lacks[i] {
				return fmt.Errorf("question %d: cached %v, missing %v", i, c != nil, lacks[i])
			}
			e := file(stamps[i].Path, 2, chunk("new"))
			if c != nil {
				// As ScanTree does, and as a copy, which must not matter.
				e.Extents, e.Chunks = c.Extents, append([]store.Chunk(nil), c.Chunks...)
			}
			entries = append(entries, e)
		}
		return s.Entries(ctx, entries, stamps)
	}})
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, sink); err != nil {
		t.Fatal(err)
	}
	for i, e := range sink.entries {
		want := []store.Chunk{chunk("new")}
		if i%3 == 0 {
			want = known.Chunks
		}
		if !reflect.DeepEqual(e.Chunks, want) {
			t.Fatalf("entry %d has chunks %v", i, e.Chunks)
		}
	}
	if len(sink.entries) != files {
		t.Fatalf("%d entries", len(sink.entries))
	}
}

// A capture of a tree that did not change costs its metadata: what its files
// held does not cross the wire.
func TestCachedContentStaysHome(t *testing.T) {
	content := &imaging.Content{}
	for i := range 100_000 {
		content.Chunks = append(content.Chunks, chunk(fmt.Sprint(i)))
	}
	sink := &memorySink{known: map[string]*imaging.Content{"big": content}}
	l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		stamp := imaging.Stamp{Path: "big", Ino: 1}
		c, err := s.Cached(ctx, []imaging.Class{0}, []imaging.Stamp{stamp})
		if err != nil {
			return err
		}
		e := file("big", 1<<30)
		e.Chunks, e.Extents = c[0].Chunks, c[0].Extents
		return s.Entries(ctx, []imaging.Entry{e}, []imaging.Stamp{stamp})
	}})
	before := l.client.Received()
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{Root: "/"}, sink); err != nil {
		t.Fatal(err)
	}
	if n := l.client.Received() - before; n > 200 {
		t.Errorf("%d bytes came for a file that was known", n)
	}
	if len(sink.entries) != 1 || len(sink.entries[0].Chunks) != len(content.Chunks) {
		t.Errorf("the entry came without its content")
	}
}

func TestDescribe(t *testing.T) {
	facts := imaging.Facts{Hostname: "head", Arch: "x86_64", OSRelease: map[string]string{"ID": "debian"}, Firmware: "uefi"}
	layout := &imaging.Layout{Table: "gpt", SectorSize: 512, DiskSize: 8 << 30, Partitions: []imaging.LayoutPartition{{Number: 1, FS: &imaging.FileSystem{Type: "ext4"}}}}
	l := connect(t, &fakeSource{describe: func(_ context.Context, root string) (imaging.Facts, *imaging.Layout, error) {
		if root == "/chroot" {
			return facts, nil, nil
		}
		return facts, layout, nil
	}})
	if l.client.Agent().Digest != store.Sum([]byte("agent")) || l.client.Agent().Build != "test" {
		t.Errorf("the agent greeted as %+v", l.client.Agent())
	}
	for root, want := range map[string]*imaging.Layout{"/": layout, "/chroot": nil} {
		f, got, err := l.client.Describe(t.Context(), root)
		if err != nil || !reflect.DeepEqual(f, facts) || !reflect.DeepEqual(got, want) {
			t.Errorf("Describe(%s) = %+v, %+v, %v", root, f, got, err)
		}
	}
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	for _, want := range []error{context.Canceled, context.DeadlineExceeded, fs.ErrNotExist, fs.ErrPermission, syscall.ENOSPC, syscall.ENOENT} {
		l := connect(t, &fakeSource{
			describe: func(context.Context, string) (imaging.Facts, *imaging.Layout, error) {
				return imaging.Facts{}, nil, fmt.Errorf("read /x: %w", want)
			},
			scan: func(context.Context, imaging.ScanRequest, imaging.Sink) error { return nil },
		})
		_, _, err := l.client.Describe(t.Context(), "/")
		if !errors.Is(err, want) || err.Error() != "read /x: "+want.Error() {
			t.Errorf("%v came back as %v", want, err)
		}
		if err := l.client.Scan(t.Context(), imaging.ScanRequest{}, &memorySink{}); err != nil {
			t.Errorf("after an error of the agent's the stream is still good, but: %v", err)
		}
	}
}

func TestSinkFailureEndsTheScan(t *testing.T) {
	agentSaw := make(chan error, 1)
	l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		b := store.Block{Audience: store.Cluster, Chunks: []store.Chunk{chunk("one")}, Data: []byte("one")}
		for {
			if err := s.Block(ctx, b); err != nil {
				agentSaw <- err
				return err
			}
		}
	}})
	full := fmt.Errorf("write the pack: %w", syscall.ENOSPC)
	err := l.client.Scan(t.Context(), imaging.ScanRequest{}, &memorySink{fail: full})
	if err != full {
		t.Errorf("Scan gave %v, want the sink's own error", err)
	}
	<-agentSaw
	<-l.served
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{}, &memorySink{}); err == nil {
		t.Error("a second scan on a stream that was cut")
	}
}

func TestCancel(t *testing.T) {
	l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		s.Progress(imaging.ScanProgress{})
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the user pressed ^C")
	sink := &cancelling{cancel: func() { cancel(why) }}
	if err := l.client.Scan(ctx, imaging.ScanRequest{}, sink); !errors.Is(err, why) {
		t.Errorf("Scan gave %v", err)
	}
	<-l.served
}

type cancelling struct {
	memorySink
	cancel func()
}

func (c *cancelling) Progress(imaging.ScanProgress) { c.cancel() }

func TestCutStream(t *testing.T) {
	var l *link
	l = connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		l.cut()
		_, err := s.Missing(ctx, []store.Ref{{Audience: store.Head}})
		return err
	}})
	err := l.client.Scan(t.Context(), imaging.ScanRequest{}, &memorySink{})
	var cut *CutError
	if !errors.As(err, &cut) {
		t.Errorf("Scan gave %v", err)
	}
	<-l.served
}

func TestAgentGivesUpOnSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		out, in := io.Pipe()
		go io.Copy(io.Discard, out)
		go func() {
			w.Write([]byte(magic))
			fw := newFrameWriter(w)
			fw.write(kindHello, Hello{Version: Version}.encode())
			fw.flush()
		}()
		if err := Serve(t.Context(), r, in, &fakeSource{}, Hello{}); !errors.Is(err, ErrSilent) {
			t.Errorf("Serve gave %v", err)
		}
	})
}

func TestClientPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
			for range 5 {
				wait, cancel := context.WithTimeout(ctx, Silence)
				<-wait.Done()
				cancel()
			}
			return context.Cause(ctx)
		}})
		if err := l.client.Scan(t.Context(), imaging.ScanRequest{}, &memorySink{}); err != nil {
			t.Errorf("a long scan: %v", err)
		}
		l.client.Close()
		<-l.served
	})
}

// While a block is being stored, questions are answered all the same.
func TestQuestionsPassBlocks(t *testing.T) {
	sink := &memorySink{hold: make(chan struct{})}
	l := connect(t, &fakeSource{scan: func(ctx context.Context, _ imaging.ScanRequest, s imaging.Sink) error {
		b := store.Block{Audience: store.Cluster, Chunks: []store.Chunk{chunk("one")}, Data: []byte("one")}
		if err := s.Block(ctx, b); err != nil {
			return err
		}
		if _, err := s.Missing(ctx, []store.Ref{{Audience: store.Head}}); err != nil {
			return err
		}
		close(sink.hold)
		return nil
	}})
	if err := l.client.Scan(t.Context(), imaging.ScanRequest{}, sink); err != nil {
		t.Fatal(err)
	}
}

// What the agent sends keeps to the rate that the client asked for, and the
// source never hears of it; when the scan is done the rate is no more.
func TestRateOfTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate = 1 << 20
		noise := make([]byte, 3<<20)
		block := store.Block{Audience: store.Cluster, Codec: store.Raw, Chunks: []store.Chunk{{ID: store.Sum(noise), Size: uint32(len(noise))}}, Data: noise}
		l := connect(t, &fakeSource{scan: func(ctx context.Context, req imaging.ScanRequest, s imaging.Sink) error {
			if req.Limits != (imaging.Limits{CPU: 70}) {
				t.Errorf("the source is asked for %+v", req.Limits)
			}
			return s.Block(ctx, block)
		}})
		for limit, want := range map[int64]time.Duration{rate: 2900 * time.Millisecond, 0: 0} {
			start := time.Now()
			if err := l.client.Scan(t.Context(), imaging.ScanRequest{Limits: imaging.Limits{Rate: limit, CPU: 70}}, &memorySink{}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < want || took > want+50*time.Millisecond {
				t.Errorf("at %d bytes a second it took %v, not %v", limit, took, want)
			}
		}
		l.client.Close()
		<-l.served
	})
}
