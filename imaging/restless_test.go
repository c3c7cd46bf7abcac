package imaging

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// restless is a head at work: programs replace, lengthen, cut off, rename and
// remove files and directories as fast as they can.
type restless struct {
	root string
	stop chan struct{}
	once sync.Once
	done sync.WaitGroup
}

// page is what a file of generation n holds: the same line again and again, so
// that a mixture of two generations shows.
func page(n, size int) []byte {
	return bytes.Repeat(fmt.Appendf(nil, "%07d\n", n), size/8)
}

func startRestless(root string) *restless {
	r := &restless{root: root, stop: make(chan struct{})}
	for worker := range 2 {
		r.done.Add(1)
		go func() {
			defer r.done.Done()
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for n := 0; ; n++ {
				select {
				case <-r.stop:
					return
				default:
					r.change(random, worker, n)
				}
			}
		}()
	}
	return r
}

// change does one thing. That a name is not there just now is no error.
func (r *restless) change(random *rand.Rand, worker, n int) {
	dir := fmt.Sprintf("%s/busy/d%d", r.root, random.IntN(8))
	file := fmt.Sprintf("%s/f%d", dir, random.IntN(8))
	size := 8 * (1 + random.IntN(100<<10/8))
	switch random.IntN(12) {
	case 0: // a directory goes and comes
		os.RemoveAll(dir)
		os.Mkdir(dir, 0o755)
	case 1: // or takes another's place
		other := fmt.Sprintf("%s/busy/d%d", r.root, random.IntN(8))
		os.RemoveAll(other)
		os.Rename(dir, other)
		os.Mkdir(dir, 0o755)
	case 2:
		os.Remove(file)
	case 3:
		os.Truncate(file, int64(random.IntN(100<<10)))
	case 4:
		os.Rename(file, fmt.Sprintf("%s/f%d", dir, random.IntN(8)))
	case 5:
		os.Link(file, fmt.Sprintf("%s/f%d", dir, random.IntN(8)))
	case 6: // a directory where a file was, a link where a directory was
		os.Remove(file)
		if n%2 == 0 {
			os.Mkdir(file, 0o755)
		} else {
			os.Symlink("/etc", file)
		}
	case 7: // a log
		if f, err := os.OpenFile(r.root+"/log", os.O_APPEND|os.O_WRONLY, 0); err == nil {
			f.Write(page(n, 8000))
			f.Close()
		}
	case 8: // written in place
		os.WriteFile(file, page(n, size), 0o644)
	default: // as a package is upgraded
		next := fmt.Sprintf("%s/next%d", dir, worker)
		if os.WriteFile(next, page(n, size), 0o644) == nil {
			os.Rename(next, fmt.Sprintf("%s/whole%d", dir, random.IntN(8)))
		}
	}
}

func (r *restless) end() {
	r.once.Do(func() { close(r.stop) })
	r.done.Wait()
}

// A head that never rests is captured all the same: what it says it has, it has;
// a file that is replaced as a whole is one of its generations, unless the report
// names it; and what rests is as it is.
func TestCaptureOfRestlessHead(t *testing.T) {
	t.Setenv("TMPDIR", memory(t))
	root := t.TempDir()
	for i := range 200 {
		fill(t, fmt.Sprintf("%s/still/%03d", root, i), noise(10_000, byte(i)))
	}
	fill(t, root+"/log", nil)
	for i := range 8 {
		must(t, os.MkdirAll(fmt.Sprintf("%s/busy/d%d", root, i), 0o755))
	}
	c := openTestCatalog(t)
	work := startRestless(root)
	defer work.end()
	var reports []*CaptureReport
	for range 20 {
		r, err := Capture(t.Context(), c, NewLocal(root), CaptureOptions{Name: "x", Root: root})
		must(t, err)
		reports = append(reports, r)
	}
	work.end()
	verifyAll(t, c)
	whole, vanished, unstable := 0, 0, 0
	for _, r := range reports {
		vanished, unstable = vanished+len(r.Vanished), unstable+len(r.Unstable)
		if len(r.Lost) > 0 {
			t.Errorf("lost: %v", r.Lost)
		}
		dir := t.TempDir()
		m, vault := theManifest(t, c, fmt.Sprintf("x@%d", r.Version))
		_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
		must(t, err)
		for i := range 200 {
			if b, err := os.ReadFile(fmt.Sprintf("%s/still/%03d", dir, i)); err != nil || !bytes.Equal(b, noise(10_000, byte(i))) {
				t.Fatalf("version %d: a file that rested is another: %v", r.Version, err)
			}
		}
		must(t, filepath.WalkDir(dir+"/busy", func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasPrefix(d.Name(), "whole") {
				return err
			}
			b, err := os.ReadFile(path)
			must(t, err)
			rel, err := filepath.Rel(dir, path)
			must(t, err)
			if !bytes.Equal(b, bytes.Repeat(b[:min(8, len(b))], len(b)/8)) && !slices.Contains(r.Unstable, rel) {
				t.Errorf("version %d: %s is none of its generations", r.Version, rel)
			}
			whole++
			return nil
		}))
	}
	t.Logf("%d whole files, %d vanished, %d unstable", whole, vanished, unstable)
	if whole < 20 || vanished == 0 {
		t.Error("the head was not restless enough for a test")
	}
	// At rest, what was seen in motion is read again.
	takeImage(t, c, root, "x")
	m, _ := theManifest(t, c, "x")
	differences, err := CompareTree(t.Context(), m, root, CompareOptions{})
	must(t, err)
	if len(differences) > 0 {
		t.Errorf("at rest: %v", differences)
	}
}

// Whatever a head takes the time for, what changed on it is captured, and what
// did not is the same version: files are known by times that the same clock gave.
func TestCaptureUnderWrongClocks(t *testing.T) {
	t.Setenv("TMPDIR", memory(t)) // which keeps any time
	root := t.TempDir()
	c := openTestCatalog(t)
	must(t, os.Mkdir(root+"/dir", 0o755))
	year := func(y int) time.Time { return time.Date(y, 1, 1, 0, 0, 0, 0, time.UTC) }
	for i, y := range []int{1902, 1969, 1970, 2038, 2106, 2200} {
		path := fmt.Sprintf("%s/dir/%d", root, y)
		fill(t, path, noise(1000, byte(i)))
		must(t, os.Chtimes(path, year(y), year(y)))
	}
	path := root + "/changing"
	when := year(1970)
	version := 0
	for i, now := range []time.Time{time.Now(), year(1970), year(2100), year(1990), year(2100), time.Now().Add(-time.Hour), year(1970), time.Now()} {
		// The size and the time of the last change stay the same.
		fill(t, path, noise(1000, byte(100+i)))
		must(t, os.Chtimes(path, when, when))
		clock := WithClock(func() time.Time { return now })
		for again := range 2 {
			r, err := Capture(t.Context(), c, NewLocal(root, clock), CaptureOptions{Name: "x", Root: root})
			must(t, err)
			if again == 0 {
				version++
			}
			if r.Version != version || r.Unchanged != (again == 1) {
				t.Errorf("in %v, time %d: version %d (unchanged %v), want %d", now, again, r.Version, r.Unchanged, version)
			}
		}
		if got := readVersion(t, c, "x"); got["changing"] != string(noise(1000, byte(100+i))) {
			t.Errorf("in %v: what changed is not captured", now)
		}
	}
	dir := t.TempDir()
	m, vault := theManifest(t, c, "x")
	_, err := Apply(t.Context(), m, vault, dir, ApplyOptions{})
	must(t, err)
	for _, y := range []int{1902, 1969, 1970, 2038, 2106, 2200} {
		if info, err := os.Stat(fmt.Sprintf("%s/dir/%d", dir, y)); err != nil || !info.ModTime().Equal(year(y)) {
			t.Errorf("the file of %d is of %v, %v", y, info.ModTime(), err)
		}
	}
}
