package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDirModes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "store")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	id := putBytes(t, d, KindPack, []byte("x"))
	file, _ := d.file(KindPack, id)
	for p, want := range map[string]os.FileMode{path: 0o700, filepath.Join(path, "packs"): 0o700, filepath.Join(path, "manifests"): 0o700, file: 0o600} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has the mode %o", p, info.Mode().Perm())
		}
	}
	if _, err := OpenDir(file); err == nil {
		t.Error("a file is opened as a store")
	}
}

func TestDirNoticesWrongSize(t *testing.T) {
	d := testDir(t)
	body := bytes.Repeat([]byte("x"), 1000)
	id := putBytes(t, d, KindPack, body)
	file, _ := d.file(KindPack, id)
	if err := os.Truncate(file, 500); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if err := d.Put(context.Background(), KindPack, id, bytes.NewReader(body)); !errors.As(err, &corrupt) || corrupt.ID != id {
		t.Errorf("Put over a short blob: %v", err)
	}
	spool, err := d.Spool(context.Background(), KindPack)
	if err != nil {
		t.Fatal(err)
	}
	spool.Write(body)
	if _, err := spool.Commit(); !errors.As(err, &corrupt) {
		t.Errorf("a spool over a short blob: %v", err)
	}
	if names := dirNames(t, d); len(names) != 1 {
		t.Errorf("left over: %q", names)
	}
}

// A blob that is there keeps its file.
func TestDirDoesNotRewrite(t *testing.T) {
	d := testDir(t)
	id := putBytes(t, d, KindPack, []byte("x"))
	file, _ := d.file(KindPack, id)
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	putBytes(t, d, KindPack, []byte("x"))
	after, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || before.ModTime() != after.ModTime() {
		t.Error("the blob was written again")
	}
}

func TestDirListsOnlyBlobs(t *testing.T) {
	d := testDir(t)
	id := putBytes(t, d, KindPack, []byte("x"))
	for _, name := range []string{"README", ".tmp", strings.ToUpper(id.Hex()), id.Hex()[1:], "sha256:" + id.Hex()} {
		if err := os.WriteFile(filepath.Join(d.folder(KindPack), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(d.folder(KindPack), Sum([]byte("dir")).Hex()), 0o700); err != nil {
		t.Fatal(err)
	}
	if all := listIDs(t, d, KindPack); len(all) != 1 || all[id] != 1 {
		t.Errorf("listed: %v", all)
	}
}

// Stale temporary files go, those of a running writer stay.
func TestDirSweeps(t *testing.T) {
	d := testDir(t)
	spool, err := d.Spool(context.Background(), KindPack)
	if err != nil {
		t.Fatal(err)
	}
	spool.Write([]byte("going on"))
	stale := filepath.Join(d.folder(KindPack), tempPrefix+"stale")
	if err := os.WriteFile(stale, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(d.Path()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stale temporary file: %v", err)
	}
	if id, err := spool.Commit(); err != nil || id != Sum([]byte("going on")) {
		t.Errorf("the spool that was going on: %v", err)
	}
	if names := dirNames(t, d); len(names) != 1 {
		t.Errorf("left over: %q", names)
	}
}

// Opening a store again and again must not take a file from those who write.
func TestDirSweepsWhileWriting(t *testing.T) {
	d := testDir(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := OpenDir(d.Path()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for j := range 25 {
				if _, err := PutBlob(context.Background(), d, KindPack, []byte{byte(i), byte(j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	if all := listIDs(t, d, KindPack); len(all) != 100 {
		t.Errorf("%d of 100 blobs", len(all))
	}
}

func TestDirConcurrentPuts(t *testing.T) {
	d := testDir(t)
	body := testChunks(1, 1, 1<<20)[0]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := PutBlob(context.Background(), d, KindManifest, body); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if names := dirNames(t, d); len(names) != 1 || names[0] != Sum(body).Hex() {
		t.Errorf("in the store: %q", names)
	}
}

func TestDirLocks(t *testing.T) {
	d := testDir(t)
	other, err := OpenDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	// An ended context gets a lock that is free, and does not wait for another.
	brief, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	var locks []func()
	for _, d := range []*Dir{d, other} {
		release, err := d.LockShared(ctx)
		if err != nil {
			t.Fatal(err)
		}
		locks = append(locks, release)
	}
	if _, err := other.LockExclusive(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		release, err := other.LockExclusive(ctx)
		if err == nil {
			defer release()
			_, err = d.LockShared(brief)
			if errors.Is(err, context.DeadlineExceeded) {
				err = nil
			} else {
				err = errors.Join(errors.New("shared beside exclusive"), err)
			}
		}
		got <- err
	}()
	for _, release := range locks {
		release()
		release() // again does nothing
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	release, err := d.LockShared(ctx)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

// smallDisk mounts a tmpfs of a few bytes.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs and must run as root")
	}
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, options); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return path
}

func TestDirFull(t *testing.T) {
	d, err := OpenDir(smallDisk(t, "size=1m"))
	if err != nil {
		t.Fatal(err)
	}
	small := putBytes(t, d, KindPack, []byte("was there before"))
	big := testChunks(1, 1, 4<<20)[0]
	_, err = PutBlob(context.Background(), d, KindPack, big)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Put on a full disk: %v", err)
	}
	if names := dirNames(t, d); len(names) != 1 || names[0] != small.Hex() {
		t.Errorf("left over: %q", names)
	}
	// The room is given back: what fits goes in.
	putBytes(t, d, KindPack, big[:256<<10])
}

func TestWriterOnFullDisk(t *testing.T) {
	d, err := OpenDir(smallDisk(t, "size=4m"))
	if err != nil {
		t.Fatal(err)
	}
	keys := testKeys(t)
	v := testVault(t, d, keys)
	ctx := context.Background()
	early := testChunks(1, 4, 64<<10)
	addPack(t, v, Cluster, early)

	w := v.NewWriter()
	defer w.Close()
	for seed := uint64(2); err == nil && seed < 100; seed++ {
		err = w.Add(ctx, testBlock(t, Cluster, testChunks(seed, 8, 64<<10)))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Add on a full disk: %v", err)
	}
	if err := w.Add(ctx, testBlock(t, Cluster, testChunks(200, 1, 10))); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Add after that: %v", err)
	}
	if err := w.Commit(ctx); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Commit after that: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if names := dirNames(t, d); len(names) != 1 {
		t.Errorf("left over: %q", names)
	}
	again := testVault(t, d, keys)
	if got := collect(t, again, refsOf(Cluster, early), 2); len(got) != len(early) {
		t.Errorf("%d of %d earlier chunks", len(got), len(early))
	}
	// A new writer goes on when there is room.
	addPack(t, again, Cluster, testChunks(300, 2, 1000))
}

// A store on a disk that may not be written can be read and locked.
func TestDirReadOnlyDisk(t *testing.T) {
	path := smallDisk(t, "size=4m")
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	release, err := d.LockShared(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	release()
	id := putBytes(t, d, KindPack, []byte("x"))
	if err := unix.Mount("", path, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenDir(path); err != nil {
		t.Fatal(err)
	}
	if release, err = d.LockShared(context.Background()); err != nil {
		t.Fatal(err)
	}
	release()
	readAll(t, d, KindPack, id, 0, -1)
	if _, err := PutBlob(context.Background(), d, KindPack, []byte("y")); !errors.Is(err, syscall.EROFS) {
		t.Errorf("Put: %v", err)
	}
}
