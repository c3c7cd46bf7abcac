package imaging

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/imaging/store"

	"golang.org/x/sys/unix"
)

// collected is a Sink that keeps everything.
type collected struct {
	mu      sync.Mutex
	entries []Entry
	stamps  []Stamp
	notes   []Note
	chunks  map[store.Ref][]byte
	blocks  int
	total   ScanProgress
	cached  func(Stamp) *Content
	same    []string
}

func (c *collected) Cached(ctx context.Context, class []Class, files []Stamp) ([]*Content, error) {
	answers := make([]*Content, len(files))
	for i := range files {
		if c.cached != nil {
			answers[i] = c.cached(files[i])
		}
	}
	return answers, nil
}

func (c *collected) Missing(ctx context.Context, refs []store.Ref) ([]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	missing := make([]bool, len(refs))
	for i, ref := range refs {
		_, ok := c.chunks[ref]
		missing[i] = !ok
	}
	return missing, nil
}

func (c *collected) Block(ctx context.Context, b store.Block) error {
	plain, err := store.DecodeBlock(b)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocks++
	for _, chunk := range b.Chunks {
		data := plain[:chunk.Size]
		plain = plain[chunk.Size:]
		if store.Sum(data) != chunk.ID {
			return fmt.Errorf("chunk %s is another", chunk.ID)
		}
		ref := store.Ref{Audience: b.Audience, ID: chunk.ID}
		if _, twice := c.chunks[ref]; twice {
			return fmt.Errorf("chunk %s came twice", chunk.ID)
		}
		c.chunks[ref] = bytes.Clone(data)
	}
	return nil
}

func (c *collected) Entries(ctx context.Context, entries []Entry, stamps []Stamp) error {
	c.entries = append(c.entries, entries...)
	c.stamps = append(c.stamps, stamps...)
	return nil
}

func (c *collected) Note(ctx context.Context, n Note) error {
	c.notes = append(c.notes, n)
	return nil
}

func (c *collected) Same(_ context.Context, path string) error {
	c.same = append(c.same, path)
	return nil
}

func (c *collected) Progress(p ScanProgress) { c.total = p }

func (c *collected) entry(t *testing.T, path string) *Entry {
	t.Helper()
	i := slices.IndexFunc(c.entries, func(e Entry) bool { return e.Path == path })
	if i < 0 {
		t.Fatalf("there is no %q", path)
	}
	return &c.entries[i]
}

// content puts a file together again.
func (c *collected) content(t *testing.T, e *Entry) []byte {
	t.Helper()
	data := []byte{}
	for _, chunk := range e.Chunks {
		b, ok := c.chunks[store.Ref{Audience: e.Class.Audience(), ID: chunk.ID}]
		if !ok || len(b) != int(chunk.Size) {
			t.Fatalf("%q needs a chunk that did not come", e.Path)
		}
		data = append(data, b...)
	}
	file := make([]byte, e.Size)
	for _, x := range e.Data() {
		data = data[copy(file[x.Offset:x.Offset+x.Length], data):]
	}
	return file
}

// scanDir scans a directory and checks what all scans have in common.
func scanDir(t *testing.T, tree Tree, req ScanRequest) *collected {
	t.Helper()
	c := &collected{chunks: make(map[store.Ref][]byte)}
	rescan(t, tree, req, c)
	return c
}

func rescan(t *testing.T, tree Tree, req ScanRequest, c *collected) {
	t.Helper()
	if err := scanTree(t.Context(), tree, req, c, later, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := NewEntries(c.entries...); err != nil {
		t.Errorf("what a scan gives is no manifest: %v", err)
	}
	if len(c.stamps) != len(c.entries) || c.total.Entries != int64(len(c.entries)) {
		t.Errorf("%d entries, %d stamps, progress says %d", len(c.entries), len(c.stamps), c.total.Entries)
	}
}

// later is a clock for which nothing in a test's tree changed lately.
func later() time.Time { return time.Now().Add(time.Hour) }

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func fill(t *testing.T, path string, data []byte) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, data, 0o644))
}

func TestScanNastyTree(t *testing.T) {
	needRoot(t)
	root := nastyTree(t)
	c := scanDir(t, NewLocalTree(root), ScanRequest{})
	compareToFind(t, root, c.entries)
	compareToGetfattr(t, root, c.entries)
	compareToFiles(t, root, c)
	if e := c.entry(t, "chr"); e.Major != 10 || e.Minor != 300 {
		t.Errorf("chr: %d, %d", e.Major, e.Minor)
	}
	if e := c.entry(t, "blk"); e.Major != 259 || e.Minor != 70000 {
		t.Errorf("blk: %d, %d", e.Major, e.Minor)
	}
	if e := c.entry(t, "sparse"); len(e.Extents) != 2 {
		t.Errorf("sparse has extents %v", e.Extents)
	}
	if e := c.entry(t, "hole"); e.Extents == nil || len(e.Extents) > 0 {
		t.Errorf("hole has extents %v", e.Extents)
	}
	if len(c.notes) > 0 {
		t.Errorf("notes: %v", c.notes)
	}
}

func TestScanDeepTree(t *testing.T) {
	root := t.TempDir()
	deepTree(t, root, 60) // 6.5 KiB of path
	chain := filepath.Join(root, "chain")
	must(t, os.Mkdir(chain, 0o755))
	for range 400 {
		chain += "/c"
		must(t, os.Mkdir(chain, 0o755))
		fill(t, chain+"/d", []byte("behind"))
	}
	c := scanDir(t, NewLocalTree(root), ScanRequest{})
	compareToFind(t, root, c.entries)
	longest := slices.MaxFunc(c.entries, func(a, b Entry) int { return len(a.Path) - len(b.Path) })
	if len(longest.Path) < unix.PathMax {
		t.Errorf("the longest path has %d bytes", len(longest.Path))
	}
	for i := range c.entries {
		if e := &c.entries[i]; e.Kind == Regular {
			c.content(t, e)
		}
	}
}

func TestScanKnownFiles(t *testing.T) {
	root := t.TempDir()
	for i := range 600 {
		fill(t, fmt.Sprintf("%s/%03d", root, i), noise(100, byte(i)))
	}
	tree := NewLocalTree(root)
	first := scanDir(t, tree, ScanRequest{})
	known := make(map[string]Stamp)
	content := make(map[string]*Content)
	for i, s := range first.stamps {
		if s.Path != "" {
			known[s.Path] = s
			content[s.Path] = &Content{Extents: first.entries[i].Extents, Chunks: first.entries[i].Chunks}
		}
	}
	if len(known) != 600 {
		t.Errorf("%d stamps", len(known))
	}
	second := &collected{chunks: first.chunks, cached: func(s Stamp) *Content {
		if known[s.Path] != s {
			return nil
		}
		return content[s.Path]
	}}
	fill(t, root+"/300", noise(200, 7))
	rescan(t, tree, ScanRequest{}, second)
	if second.total.BytesRead != 200 || second.blocks != 1 {
		t.Errorf("read %d bytes, sent %d blocks", second.total.BytesRead, second.blocks)
	}
	compareToFiles(t, root, second)
	compareToFind(t, root, second.entries)
}

// TestScanLateChanges: what changed just now may change again within the same
// tick of the clock, so it has no stamp.
func TestScanLateChanges(t *testing.T) {
	root := t.TempDir()
	fill(t, root+"/new", []byte("new"))
	fill(t, root+"/touched", []byte("old by its mtime, new by its ctime"))
	old := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(root+"/touched", old, old))
	c := &collected{chunks: make(map[store.Ref][]byte)}
	must(t, scanTree(t.Context(), NewLocalTree(root), ScanRequest{}, c, time.Now, nil))
	for i, s := range c.stamps {
		if s != (Stamp{}) {
			t.Errorf("%q has the stamp %+v", c.entries[i].Path, s)
		}
	}
	// vfat tells even seconds only.
	s := &scan{start: time.Unix(1000, 500)}
	for _, x := range []struct {
		t    Time
		want bool
	}{{Time{1000, 0}, true}, {Time{999, 0}, true}, {Time{998, 0}, false}, {Time{999, 990_000_000}, true}, {Time{999, 900_000_000}, false}, {Time{2000, 1}, true}} {
		if s.late(x.t) != x.want {
			t.Errorf("late(%v) is %v", x.t, !x.want)
		}
	}
}

func TestScanExcludes(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{"proc/1/stat", "tmp/x", "var/tmp/y", "run/z", "dev/null", "sys/a", "var/lib/doppel/keys/head.key", "etc/doppel/node/node.key",
		"var/log/a.log", "var/log/b.txt", "home/u/.cache/x", "home/v/.cache/y", "opt/proc/kept", "var/cache/*/x", "var/cache/other/x",
		"srv/state/keys/cluster.key", "srv/state/store/packs/x", "srv/app/keys/cluster.key", "srv/app/store/x"} {
		fill(t, filepath.Join(root, p), []byte(p))
	}
	c := scanDir(t, NewLocalTree(root), ScanRequest{Exclude: []string{"home/*/.cache", "**/*.log", `/var/cache/\*`}})
	var got []string
	for _, e := range c.entries {
		if e.Kind == Regular {
			got = append(got, e.Path)
		}
		if e.Opaque && e.MTime != (Time{}) {
			t.Errorf("%q tells when what is not in the image changed", e.Path)
		}
	}
	if want := []string{"opt/proc/kept", "srv/app/keys/cluster.key", "srv/app/store/x", "var/cache/other/x", "var/log/b.txt"}; !slices.Equal(got, want) {
		t.Errorf("files: %q, want %q", got, want)
	}
	for _, p := range []string{"proc", "tmp", "var/tmp", "run", "dev", "sys", "var/lib/doppel", "etc/doppel", "home/u/.cache", "home/v/.cache", "var/cache/*", "srv/state"} {
		if e := c.entry(t, p); !e.Opaque {
			t.Errorf("%q does not say that its contents are left out", p)
		}
	}
	for _, bad := range []string{"", "a/../b", "["} {
		sink := &collected{}
		if err := ScanTree(t.Context(), NewLocalTree(root), ScanRequest{Exclude: []string{bad}}, sink); err == nil {
			t.Errorf("%q is taken for a pattern", bad)
		}
	}
}

func TestScanSecrets(t *testing.T) {
	root := t.TempDir()
	key := "-----BEGIN OPENSSH PRIVATE KEY-----\n" + base64Lines
	fill(t, root+"/etc/ssh/ssh_host_rsa_key", []byte("host key"))
	fill(t, root+"/etc/munge/munge.key", []byte("munge"))
	fill(t, root+"/opt/app/server.pem", []byte(key))
	fill(t, root+"/opt/app/big.pem", append([]byte(key), noise(2<<20, 20)...))
	fill(t, root+"/opt/app/public.pem", []byte("-----BEGIN PUBLIC KEY-----\n"+base64Lines))
	must(t, os.Link(root+"/opt/app/server.pem", root+"/opt/link.pem"))
	c := scanDir(t, NewLocalTree(root), ScanRequest{})
	for path, want := range map[string]Class{
		"etc/ssh/ssh_host_rsa_key": ClassNode, "etc/munge/munge.key": ClassCluster, "opt/app/server.pem": ClassHead,
		"opt/app/big.pem": ClassHead, "opt/app/public.pem": ClassNone, "opt/link.pem": ClassHead,
	} {
		if e := c.entry(t, path); e.Class != want {
			t.Errorf("%q is of class %v, want %v", path, e.Class, want)
		}
	}
	for ref, b := range c.chunks {
		if ref.Audience == store.Cluster && (bytes.Contains(b, []byte("PRIVATE")) || string(b) == "host key") {
			t.Errorf("sealed for everyone: %.40q", b)
		}
	}
	var noted []string
	for _, n := range c.notes {
		if n.Kind == NoteSecret {
			noted = append(noted, n.Path)
		}
	}
	if want := []string{"opt/app/big.pem", "opt/app/server.pem"}; !slices.Equal(noted, want) {
		t.Errorf("noted: %q, want %q", noted, want)
	}
}

func TestScanCancelled(t *testing.T) {
	root := t.TempDir()
	for i := range 50 {
		fill(t, fmt.Sprintf("%s/%d/file", root, i), noise(1<<20, byte(i)))
	}
	why := fmt.Errorf("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	c := &cancelling{collected{chunks: make(map[store.Ref][]byte)}, func() { cancel(why) }}
	if err := ScanTree(ctx, NewLocalTree(root), ScanRequest{}, c); err != why {
		t.Errorf("a scan called off: %v", err)
	}
	if n := openFDs(t, root); n > 0 {
		t.Errorf("%d files of the tree are still open", n)
	}
}

// cancelling calls off the scan with its first block.
type cancelling struct {
	collected
	cancel func()
}

func (c *cancelling) Block(ctx context.Context, b store.Block) error {
	c.cancel()
	return context.Cause(ctx)
}

// openFDs tells how many of our descriptors lead below a directory.
func openFDs(t *testing.T, below string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, below) {
			n++
		}
	}
	return n
}

// TestScanLetsGo: no descriptor outlives a scan.
func TestScanLetsGo(t *testing.T) {
	root := t.TempDir()
	for i := range 300 {
		fill(t, fmt.Sprintf("%s/%d/%d/file", root, i%10, i), []byte("x"))
	}
	scanDir(t, NewLocalTree(root), ScanRequest{})
	if n := openFDs(t, root); n > 0 {
		t.Errorf("%d files of the tree are still open", n)
	}
}
