package imaging

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cachedPages tells which pages of a file are in the page cache, as mincore
// does.
func cachedPages(t *testing.T, name string) []bool {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	info, err := f.Stat()
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_NONE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	in := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&in[0]))); errno != 0 {
		t.Fatal(errno)
	}
	pages := make([]bool, len(in))
	for i := range in {
		pages[i] = in[i]&1 != 0
	}
	return pages
}

func count(pages []bool) (n int) {
	for _, p := range pages {
		if p {
			n++
		}
	}
	return n
}

// dropCached throws a file out of the page cache.
func dropCached(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	must(t, f.Sync())
	must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// A scan leaves the page cache as it was: what it had to fetch is gone again,
// what was there is there.
func TestPageCacheIsLeftAlone(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			root, _ := image(t, kind, "400M")
			cold := map[string]int{"cold small": 3000, "cold middling": 300_000, "cold large": 40<<20 + 77}
			warm := map[string]int{"warm small": 3000, "warm middling": 300_000, "warm large": 20<<20 + 77}
			for _, files := range []map[string]int{cold, warm, {"half": 8 << 20}} {
				for name, size := range files {
					must(t, os.WriteFile(filepath.Join(root, name), bytes.Repeat([]byte(name), size/len(name)+1), 0o644))
				}
			}
			for name := range cold {
				dropCached(t, filepath.Join(root, name))
				if n := count(cachedPages(t, filepath.Join(root, name))); n > 0 {
					t.Fatalf("%s: %d pages are in the cache before", name, n)
				}
			}
			for name := range warm {
				_, err := os.ReadFile(filepath.Join(root, name))
				must(t, err)
			}
			half := filepath.Join(root, "half")
			dropCached(t, half)
			f, err := os.Open(half)
			must(t, err)
			must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)) // no reading ahead
			_, err = f.ReadAt(make([]byte, 1<<20), 3<<20)
			must(t, err)
			must(t, f.Close())
			before := cachedPages(t, half)
			warmBefore := map[string]int{}
			for name := range warm {
				// Not always all: with blocks smaller than pages, the last page
				// counts only when all of it was read.
				warmBefore[name] = count(cachedPages(t, filepath.Join(root, name)))
			}

			scanDir(t, NewLocalTree(root), ScanRequest{})
			for name := range cold {
				if pages := cachedPages(t, filepath.Join(root, name)); count(pages) > 0 {
					t.Errorf("%s: %d of %d pages were left in the cache", name, count(pages), len(pages))
				}
			}
			for name := range warm {
				if pages := cachedPages(t, filepath.Join(root, name)); count(pages) < warmBefore[name] || count(pages) < len(pages)-1 {
					t.Errorf("%s: of %d pages in the cache %d are left", name, warmBefore[name], count(pages))
				}
			}
			after := cachedPages(t, half)
			if count(before) == 0 || count(before) == len(before) {
				t.Fatalf("%d of %d pages were cached before", count(before), len(before))
			}
			for i := range before {
				if before[i] != after[i] {
					t.Errorf("half: page %d was cached: %v, is: %v", i, before[i], after[i])
					break
				}
			}
		})
	}
}

// mincore alone, as on a kernel without cachestat, comes to the same.
func TestAbsent(t *testing.T) {
	root, _ := image(t, "ext4", "200M")
	name := filepath.Join(root, "f")
	must(t, os.WriteFile(name, make([]byte, mincoreStep+8192), 0o644))
	f, err := os.Open(name)
	must(t, err)
	defer f.Close()
	if runs := absent(int(f.Fd()), mincoreStep+8192); len(runs) != 0 {
		t.Errorf("all is cached, and %v is not", runs)
	}
	dropCached(t, name)
	if runs := absent(int(f.Fd()), mincoreStep+8192); len(runs) != 1 || runs[0] != (Extent{0, mincoreStep + 8192}) {
		t.Errorf("nothing is cached, but not %v", runs)
	}
}
