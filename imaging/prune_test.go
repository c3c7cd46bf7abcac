package imaging

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// takeAged captures a tree that changes, several times: a large part stays,
// each version has something of its own, and heads have secrets.
func takeAged(t *testing.T, c *Catalog, root string, versions int) {
	t.Helper()
	fill(t, root+"/shared", noise(1400<<10, 1))
	fill(t, root+"/text", []byte(strings.Repeat("a line that compresses\n", 1<<12)))
	for i := range versions {
		fill(t, fmt.Sprintf("%s/own%d", root, i%3), noise(600<<10, byte(100+i)))
		fill(t, root+"/opt/key.pem", []byte("-----BEGIN PRIVATE KEY-----\n"+strconv.Itoa(i)+base64Lines))
		takeImage(t, c, root, "x")
	}
}

// oldVersions are all but the last few.
func oldVersions(t *testing.T, c *Catalog, keep int) []Version {
	t.Helper()
	list, err := c.List(t.Context())
	must(t, err)
	return list[:len(list)-keep]
}

// readAllVersions reads every file of every version there is.
func readAllVersions(t *testing.T, c *Catalog) map[string]map[string]string {
	t.Helper()
	list, err := c.List(t.Context())
	must(t, err)
	all := map[string]map[string]string{}
	for _, v := range list {
		all[v.Ref()] = readVersion(t, c, v.Ref())
	}
	return all
}

// sameVersions holds what there is against what there was.
func sameVersions(t *testing.T, c *Catalog, want map[string]map[string]string, refs ...string) {
	t.Helper()
	verifyAll(t, c)
	got := readAllVersions(t, c)
	for ref, files := range got {
		if !maps.Equal(files, want[ref]) {
			t.Errorf("%s is another", ref)
		}
	}
	for _, ref := range refs {
		if got[ref] == nil {
			t.Errorf("%s is gone", ref)
		}
	}
}

// storeBytes is how much room all files of the store take.
func storeBytes(t *testing.T, c *Catalog) (total int64) {
	t.Helper()
	must(t, filepath.Walk(filepath.Join(c.Dir(), "store"), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
		return err
	}))
	return total
}

func TestPrune(t *testing.T) {
	c := openTestCatalog(t)
	takeAged(t, c, t.TempDir(), 12)
	want := readAllVersions(t, c)
	o := PruneOptions{Remove: oldVersions(t, c, 2), Repack: true, DryRun: true}
	before := storeBytes(t, c)
	guess, err := c.Prune(t.Context(), o)
	must(t, err)
	if after := storeBytes(t, c); after != before {
		t.Fatalf("a dry run: %d bytes, and then %d", before, after)
	}
	o.DryRun = false
	r, err := c.Prune(t.Context(), o)
	must(t, err)
	after := storeBytes(t, c)
	if diff := before - after - r.Freed; diff < -20<<10 || diff > 20<<10 || r.Waiting != 0 {
		t.Errorf("%d bytes, and then %d; it says %+v", before, after, r)
	}
	if diff := guess.Freed - r.Freed; diff < -100<<10 || diff > 100<<10 || guess.Rewritten != r.Rewritten || len(guess.Removed) != 10 {
		t.Errorf("foretold %+v, done %+v", guess, r)
	}
	// What lives: 1400 KiB shared, four of its own files of two versions.
	if after > 1400<<10+4*600<<10+100<<10 {
		t.Errorf("%d bytes are left", after)
	}
	sameVersions(t, c, want, "x@11", "x@12")
	r, err = c.Prune(t.Context(), PruneOptions{Repack: true})
	if err != nil || r.Blobs != 0 || r.Rewritten != 0 || r.Copied != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// Many small packs become few, and stay.
func TestPruneMerges(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	for i := range 10 {
		fill(t, fmt.Sprintf("%s/%d", root, i), noise(50<<10, byte(i)))
		takeImage(t, c, root, "x")
	}
	want := readAllVersions(t, c)
	r, err := c.Prune(t.Context(), PruneOptions{Repack: true})
	must(t, err)
	if packs, manifests := storeSize(t, c); packs != 1 || manifests != 10 || r.Rewritten != 10 {
		t.Errorf("%d packs, %d manifests; %+v", packs, manifests, r)
	}
	sameVersions(t, c, want, "x@1", "x@10")
	if r, err = c.Prune(t.Context(), PruneOptions{Repack: true}); err != nil || r.Rewritten != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// A version that became the latest, or got a tag, between choosing and
// removing stays.
func TestPruneKeepsLatest(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	for i := range 3 {
		fill(t, root+"/file", noise(50<<10, byte(i)))
		takeImage(t, c, root, "x")
	}
	list, err := c.List(t.Context())
	must(t, err)
	_, err = c.Tag(t.Context(), "x@1", "golden")
	must(t, err)
	r, err := c.Prune(t.Context(), PruneOptions{Remove: list})
	must(t, err)
	if len(r.Removed) != 1 || r.Removed[0].Number != 2 {
		t.Errorf("removed %v", r.Removed)
	}
	verifyAll(t, c)
}

// A capture that ends between the copying and the removing needs again what
// was dead when the packs were looked at.
func TestPruneBesideCapture(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	takeAged(t, c, root, 12)
	back := noise(600<<10, 100) // x@1 has it alone
	r, err := c.Prune(t.Context(), PruneOptions{Remove: oldVersions(t, c, 2), Repack: true, Step: func(name string) {
		if name != "lock" {
			return
		}
		fill(t, root+"/back", back)
		if r := takeImage(t, c, root, "x"); r.Version != 13 || r.BytesSent > 100<<10 {
			t.Errorf("the capture did not rely on what is dead: %+v", r)
		}
	}})
	must(t, err)
	verifyAll(t, c)
	if files := readVersion(t, c, "x@13"); files["back"] != string(back) {
		t.Error("what came back is another")
	}
	t.Logf("%+v", r)
	// What had to stay is no more than it was, and is tidied up the next time.
	_, err = c.Prune(t.Context(), PruneOptions{Repack: true})
	must(t, err)
	verifyAll(t, c)
	if after := storeBytes(t, c); after > 1400<<10+5*600<<10+150<<10 {
		t.Errorf("%d bytes are left", after)
	}
}

// Two captures, of one image each, and prunes, all at once and again and again:
// no version is missing anything, and the last ones are what they should be.
func TestPruneBesideTwoCaptures(t *testing.T) {
	t.Setenv("TMPDIR", memory(t))
	c := openTestCatalog(t)
	takeAged(t, c, t.TempDir(), 3)
	roots := map[string]string{"x": t.TempDir(), "y": t.TempDir()}
	const rounds = 15
	var capturing, pruning sync.WaitGroup
	done := make(chan struct{})
	for name, root := range roots {
		capturing.Go(func() {
			mine, err := OpenCatalog(c.Dir(), CatalogOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			for i := range rounds {
				// Much comes back that a prune may just have taken for dead.
				fill(t, root+"/shared", noise(1400<<10, byte(i%3)))
				fill(t, root+"/own", noise(300<<10, byte(i%4)+name[0]))
				_, err := Capture(t.Context(), mine, NewLocal(root, WithClock(later)), CaptureOptions{Name: name, Root: root})
				if err != nil {
					t.Errorf("capture %s: %v", name, err)
					return
				}
			}
		})
	}
	prunes := 0
	pruning.Go(func() {
		mine, err := OpenCatalog(c.Dir(), CatalogOptions{})
		for err == nil {
			select {
			case <-done:
				return
			default:
			}
			var list, old []Version
			if list, err = mine.List(t.Context()); err != nil {
				break
			}
			for i, v := range list {
				if i+1 < len(list) && list[i+1].Image == v.Image {
					old = append(old, v)
				}
			}
			_, err = mine.Prune(t.Context(), PruneOptions{Remove: old, Repack: true})
			prunes++
		}
		t.Errorf("prune: %v", err)
	})
	capturing.Wait()
	close(done)
	pruning.Wait()
	t.Logf("%d captures and %d prunes", 2*rounds, prunes)
	if prunes == 0 {
		t.Error("no prune came in between")
	}
	verifyAll(t, c)
	for name, root := range roots {
		m, vault := theManifest(t, c, name)
		dir := t.TempDir()
		_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
		must(t, err)
		for _, file := range []string{"shared", "own"} {
			if read(t, filepath.Join(dir, file)) != read(t, filepath.Join(root, file)) {
				t.Errorf("the last version of %s: %s is another", name, file)
			}
		}
	}
}

// slowly serves a store one request at a time, each after a word of the test.
func slowly(st store.Store, next <-chan struct{}) http.Handler {
	h := store.Handler(st)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-next
		h.ServeHTTP(w, r)
	})
}

// An installer has its list of packs and no lock. It reads on over HTTP while
// all of its packs are replaced, twice; they are deleted once it is done.
func TestPruneBesideInstaller(t *testing.T) {
	var busy sync.Map
	state := filepath.Join(t.TempDir(), "state")
	c, err := OpenCatalog(state, CatalogOptions{Readers: func(context.Context) (string, error) {
		if _, ok := busy.Load("node"); ok {
			return "node001", nil
		}
		return "", nil
	}})
	must(t, err)
	takeAged(t, c, t.TempDir(), 12)
	want := readVersion(t, c, "x@12")
	v, err := c.Resolve(t.Context(), "x@12")
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	var refs []store.Ref
	for ref := range m.Refs() {
		refs = append(refs, ref.Ref)
	}
	packs, err := vault.PacksOf(refs)
	must(t, err)
	st, err := c.Store()
	must(t, err)
	keys, err := c.Keys()
	must(t, err)
	next := make(chan struct{})
	srv := httptest.NewServer(slowly(st, next))
	t.Cleanup(srv.Close)
	busy.Store("node", true)
	type result struct {
		files map[string]string
		err   error
	}
	done := make(chan result, 1)
	go func() {
		remote, err := store.OpenVault(t.Context(), store.NewHTTP(srv.URL, nil), keys, packs)
		files := map[string]string{}
		for ref := range m.Refs() {
			if err != nil {
				break
			}
			var b []byte
			b, err = remote.Chunk(t.Context(), ref.Ref)
			files[ref.Entry.Path] += string(b)
		}
		done <- result{files, err}
	}()
	for range 3 { // it has begun
		next <- struct{}{}
	}
	r, err := c.Prune(t.Context(), PruneOptions{Remove: oldVersions(t, c, 2), Repack: true})
	must(t, err)
	if r.Rewritten == 0 || r.Waiting == 0 || r.WaitingFor != "node001" {
		t.Errorf("beside an install: %+v", r)
	}
	_, err = c.Prune(t.Context(), PruneOptions{Repack: true})
	must(t, err)
	close(next)
	if got := <-done; got.err != nil || !maps.Equal(got.files, want) {
		t.Errorf("the install: %v", got.err)
	}
	busy.Delete("node")
	r, err = c.Prune(t.Context(), PruneOptions{Repack: true})
	if err != nil || r.Waiting != 0 || r.Deleted == 0 {
		t.Errorf("after the install: %+v, %v", r, err)
	}
	if remote, err := store.OpenVault(t.Context(), store.NewHTTP(srv.URL, nil), keys, packs); err == nil {
		t.Errorf("all packs it had are there still: %v", remote.Damaged())
	}
	verifyAll(t, c)
}

// A restore holds up no capture and no prune; only the deleting waits for it.
func TestPruneBesideReader(t *testing.T) {
	c := openTestCatalog(t)
	root := t.TempDir()
	takeAged(t, c, root, 12)
	want := readVersion(t, c, "x@1")
	release, err := c.Reading(t.Context())
	must(t, err)
	v, err := c.Resolve(t.Context(), "x@1")
	must(t, err)
	m, err := c.Manifest(t.Context(), v)
	must(t, err)
	vault, err := c.Vault(t.Context())
	must(t, err)
	r, err := c.Prune(t.Context(), PruneOptions{Remove: oldVersions(t, c, 2), Repack: true})
	must(t, err)
	if len(r.Removed) != 10 || r.Waiting == 0 {
		t.Errorf("beside a reader: %+v", r)
	}
	fill(t, root+"/new", noise(1000, 1))
	takeImage(t, c, root, "x")
	into := t.TempDir()
	_, err = Apply(t.Context(), m, vault, into, ApplyOptions{})
	must(t, err)
	for path, text := range want {
		if b, err := os.ReadFile(filepath.Join(into, path)); err != nil || string(b) != text {
			t.Errorf("%s: %v", path, err)
		}
	}
	release()
	r, err = c.Prune(t.Context(), PruneOptions{Repack: true})
	if err != nil || r.Waiting != 0 || r.Deleted == 0 {
		t.Errorf("after the reader: %+v, %v", r, err)
	}
	if err := vault.Stream(t.Context(), refsOf(m), 1, func(store.Ref, []byte) error { return nil }); !isMissing(err) {
		t.Errorf("what was deleted can be read: %v", err)
	}
}

func refsOf(m *Manifest) (refs []store.Ref) {
	for ref := range m.Refs() {
		refs = append(refs, ref.Ref)
	}
	return refs
}

func isMissing(err error) bool {
	var missing *store.MissingError
	return errors.As(err, &missing)
}

// copyState makes a copy of a state directory.
func copyState(t *testing.T, from string) *Catalog {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c, err := OpenCatalog(to, CatalogOptions{})
	must(t, err)
	return c
}

// TestPruneKilled kills a prune at each of its steps and at random instants.
// Every version is whole afterwards, and the next prune comes to the same end.
func TestPruneKilled(t *testing.T) {
	prune := func(t *testing.T, c *Catalog, step func(string)) {
		_, err := c.Prune(t.Context(), PruneOptions{Remove: oldVersions(t, c, 2), Repack: true, Step: step})
		must(t, err)
	}
	if untilKilled(t, prune) {
		return
	}
	t.Setenv("TMPDIR", memory(t))
	c := openTestCatalog(t)
	takeAged(t, c, t.TempDir(), 5)
	want := readAllVersions(t, c)
	whole := copyState(t, c.Dir())
	prune(t, whole, nil)
	size := storeBytes(t, whole)
	steps := eachKill(t, c, 60, func(c *Catalog) {
		sameVersions(t, c, want, "x@4", "x@5")
		prune(t, c, nil)
		sameVersions(t, c, want, "x@4", "x@5")
		if end := storeBytes(t, c); end > size+size/20 {
			t.Errorf("%d bytes in the end, not %d", end, size)
		}
	})
	for _, name := range []string{"remove", "mark", "survey", "copy", "lock", "recheck", "retire pack", "retire manifest", "free", "free blob"} {
		if steps[name] == 0 {
			t.Errorf("no prune was killed at the step %q: %v", name, steps)
		}
	}
}

// TestPruneDiskFull: a disk that fills up while packs are written anew costs no
// version, and gets the room of what was begun back.
func TestPruneDiskFull(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	disk := t.TempDir()
	mountOn(t, "none", disk, "tmpfs", 0, "size=64m")
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	c, err := OpenCatalog(disk+"/state", CatalogOptions{})
	must(t, err)
	takeAged(t, c, t.TempDir(), 12)
	want := readAllVersions(t, c)
	var st unix.Statfs_t
	must(t, unix.Statfs(disk, &st))
	// Room for the names, not for the 1400 KiB that are to be written anew.
	fill(t, disk+"/filler", make([]byte, int64(st.Bavail)*st.Bsize-800<<10))
	before := storeBytes(t, c)
	_, err = c.Prune(t.Context(), PruneOptions{Remove: oldVersions(t, c, 2), Repack: true})
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("on a full disk: %v", err)
	}
	if after := storeBytes(t, c); after > before {
		t.Errorf("%d bytes, and %d after a prune that failed", before, after)
	}
	sameVersions(t, c, want, "x@11", "x@12")
	must(t, os.Remove(disk+"/filler"))
	r, err := c.Prune(t.Context(), PruneOptions{Repack: true})
	if err != nil || r.Rewritten == 0 {
		t.Errorf("with room again: %+v, %v", r, err)
	}
	sameVersions(t, c, want, "x@11", "x@12")
	if after := storeBytes(t, c); after > 1400<<10+4*600<<10+100<<10 {
		t.Errorf("%d bytes are left", after)
	}
}
