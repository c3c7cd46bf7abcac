package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
	"doppel/imaging/store"
)

// What this test binary is, when it is not to run tests.
const (
	roleVar    = "DOPPEL_SNAPSHOT_TEST"
	keeperRole = "keeper"
	workerRole = "worker"
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleVar) {
	case keeperRole:
		err = Keep()
	case workerRole:
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		err = work(ctx)
		stop()
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// testKeeper starts this binary as the keeper.
func testKeeper() *Keeper {
	return &Keeper{Command: []string{"/proc/self/exe"}, Env: []string{roleVar + "=" + keeperRole}}
}

// sink takes what a scan gives, and stops at will.
type sink struct {
	mu      sync.Mutex
	entries []imaging.Entry
	blocks  map[store.ID][]byte
	notes   []imaging.Note
	onNote  func(context.Context, imaging.Note)
	onBlock func(context.Context)
}

func (s *sink) Cached(_ context.Context, _ []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	return make([]*imaging.Content, len(files)), nil
}

func (s *sink) Missing(_ context.Context, refs []store.Ref) ([]bool, error) {
	out := make([]bool, len(refs))
	for i := range out {
		out[i] = true
	}
	return out, nil
}

func (s *sink) Block(ctx context.Context, b store.Block) error {
	plain, err := store.DecodeBlock(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocks == nil {
		s.blocks = map[store.ID][]byte{}
	}
	for _, c := range b.Chunks {
		s.blocks[c.ID] = slices.Clone(plain[:c.Size])
		plain = plain[c.Size:]
	}
	if s.onBlock != nil {
		s.onBlock(ctx)
	}
	return nil
}

func (s *sink) Entries(_ context.Context, e []imaging.Entry, _ []imaging.Stamp) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e...)
	return nil
}

func (s *sink) Same(context.Context, string) error { return errors.New("the same as what?") }

func (s *sink) Note(ctx context.Context, n imaging.Note) error {
	s.mu.Lock()
	s.notes = append(s.notes, n)
	on := s.onNote
	s.mu.Unlock()
	if on != nil {
		on(ctx, n)
	}
	return nil
}

func (s *sink) Progress(imaging.ScanProgress) {}

func (s *sink) entry(path string) *imaging.Entry {
	for i := range s.entries {
		if s.entries[i].Path == path {
			return &s.entries[i]
		}
	}
	return nil
}

// content is a file's, without holes.
func (s *sink) content(t testing.TB, path string) string {
	t.Helper()
	e := s.entry(path)
	if e == nil {
		t.Fatalf("%s is not in the image", path)
	}
	var b strings.Builder
	for _, c := range e.Chunks {
		b.Write(s.blocks[c.ID])
	}
	return b.String()
}

func (s *sink) paths() string {
	var out []string
	for _, e := range s.entries {
		out = append(out, e.Path)
	}
	return strings.Join(out, " ")
}

// noted lists the notes of some kinds as "kind path".
func (s *sink) noted() string {
	var out []string
	for _, n := range s.notes {
		if n.Kind != imaging.NoteSecret {
			out = append(out, string(n.Kind)+" "+n.Path)
		}
	}
	return strings.Join(out, ", ")
}

func scan(ctx context.Context, root string, c imaging.Consistency, s *sink) error {
	src := imaging.NewLocal(root, imaging.WithAround(testKeeper().Around))
	return src.Scan(ctx, imaging.ScanRequest{Root: root, Consistency: c}, s)
}

var (
	auto    = imaging.Consistency{Snapshot: imaging.SnapshotAuto}
	require = imaging.Consistency{Snapshot: imaging.SnapshotRequire}
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func write(t testing.TB, name, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644))
}

// disk makes a file system in a file and attaches it to a loop device.
func disk(t testing.TB, kind, size string) (device string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts: run it as root")
	}
	file := filepath.Join(t.TempDir(), "disk")
	run(t, "truncate", "-s", size, file)
	run(t, "mkfs."+kind, "-q", file)
	device = strings.TrimSpace(run(t, "losetup", "-f", "--show", file))
	t.Cleanup(func() { run(t, "losetup", "-d", device) })
	return device
}

// mount mounts for as long as the test runs. Whatever is still frozen then is
// thawed: unmounting it would wait for good.
func mount(t testing.TB, dir string, args ...string) string {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	run(t, "mount", append(args, dir)...)
	t.Cleanup(func() {
		_ = exec.Command("fsfreeze", "--unfreeze", dir).Run() // it hardly ever is
		run(t, "umount", dir)
	})
	return dir
}

// btrfs makes a file system with the usual subvolumes and mounts @ at a new
// directory; top is where all of it is mounted.
func btrfs(t testing.TB) (root, top string) {
	t.Helper()
	device := disk(t, "btrfs", "256M")
	dir := t.TempDir()
	top = mount(t, filepath.Join(dir, "top"), device)
	for _, name := range []string{"@", "@home"} {
		run(t, "btrfs", "-q", "subvolume", "create", filepath.Join(top, name))
	}
	root = mount(t, filepath.Join(dir, "root"), "-o", "subvol=@", device)
	mount(t, filepath.Join(root, "home"), "-o", "subvol=@home", device)
	return root, top
}

// clean fails the test when anything is left: snapshots on a btrfs file system,
// keepers' directories and processes, mounts.
func clean(t testing.TB, top string) {
	t.Helper()
	if top != "" {
		if list := run(t, "btrfs", "subvolume", "list", top); strings.Contains(list, prefix) {
			t.Errorf("snapshots are left:\n%s", list)
		}
		if left, _ := filepath.Glob(filepath.Join(top, prefix+"*")); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(runDir, prefix+"*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if k := keepers(); len(k) > 0 {
		t.Errorf("keepers still run: %v", k)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), prefix) {
		t.Errorf("mounts are left:\n%s", b)
	}
}

// keepers are the processes of keepers of this test binary.
func keepers() (pids []int) {
	list, _ := filepath.Glob("/proc/[0-9]*/environ")
	mine, _ := os.Readlink("/proc/self/exe")
	for _, name := range list {
		exe, err := os.Readlink(filepath.Dir(name) + "/exe")
		b, _ := os.ReadFile(name)
		if err == nil && exe == mine && strings.Contains(string(b), roleVar+"="+keeperRole) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// await waits for what gives no event.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func catalog(t testing.TB) *imaging.Catalog {
	t.Helper()
	c, err := imaging.OpenCatalog(filepath.Join(t.TempDir(), "state"), imaging.CatalogOptions{})
	must(t, err)
	return c
}

// capture captures root into a catalog.
func capture(t testing.TB, c *imaging.Catalog, root string, how imaging.Consistency) *imaging.CaptureReport {
	t.Helper()
	src := imaging.NewLocal(root, imaging.WithAround(testKeeper().Around))
	r, err := imaging.Capture(t.Context(), c, src, imaging.CaptureOptions{Name: "test", Root: root, Consistency: how})
	must(t, err)
	return r
}
