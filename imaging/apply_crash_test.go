package imaging

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"doppel/imaging/store"
)

// crashTree is a tree that takes some time to write; two versions of it differ
// in all files.
func crashTree(version byte, dirs int) *tree {
	x := newTree()
	random := rand.NewChaCha8([32]byte{version})
	for i := range dirs {
		dir := fmt.Sprintf("d%02d", i)
		x.dir(dir)
		for j := range 25 {
			content := make([]byte, 1+random.Uint64()%200_000)
			_, _ = random.Read(content)
			x.file(fmt.Sprintf("%s/f%02d", dir, j), string(content)).MTime = Time{Sec: testSec + int64(version)}
		}
		x.link(dir+"/hard", dir+"/f00")
		x.add(Entry{Path: dir + "/soft", Kind: Symlink, Mode: 0o777, Target: fmt.Sprintf("f%02d", version)})
	}
	return x
}

const crashDirs = 3 // of the tree that TestApplyKilled has written again and again

// TestApplyCrashChild does nothing unless TestApplyKilled runs it. It writes a
// byte for each step it comes to.
func TestApplyCrashChild(t *testing.T) {
	dir := os.Getenv("DOPPEL_TEST_CRASH")
	if dir == "" {
		return
	}
	x := crashTree(2, crashDirs)
	step := func() error { _, err := os.Stderr.Write([]byte{'.'}); return err }
	x.chunks.before = func(store.Ref) error { return step() }
	x.apply(t, dir, ApplyOptions{Delete: true, Change: func(ApplyChange) {
		if err := step(); err != nil {
			t.Error(err)
		}
	}})
}

// Killed at any instant, an Apply leaves every file either as it was or whole,
// and the next one finishes the tree.
func TestApplyKilled(t *testing.T) {
	before, after := crashTree(1, crashDirs), crashTree(2, crashDirs)
	for round := range 75 {
		dir := memory(t)
		before.apply(t, dir, ApplyOptions{})
		write(t, filepath.Join(dir, "extra"), "extra")
		steps := rand.IntN(300)
		kill(t, dir, steps)
		for path := range stamps(t, dir) {
			if strings.HasPrefix(filepath.Base(path), "f") {
				whole(t, dir, path, before, after)
			}
		}
		after.apply(t, dir, ApplyOptions{Delete: true})
		after.equal(t, dir)
		if left := temps(t, dir); len(left) > 0 || t.Failed() {
			t.Fatalf("round %d, killed after %d steps: temporary files left: %q", round, steps, left)
		}
	}
}

// kill runs the child and kills it after so many steps, or lets it end.
func kill(t *testing.T, dir string, steps int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestApplyCrashChild$")
	cmd.Env = append(os.Environ(), "DOPPEL_TEST_CRASH="+dir)
	pipe, err := cmd.StderrPipe()
	must(t, err, cmd.Start())
	_, err = io.CopyN(io.Discard, bufio.NewReaderSize(pipe, 16), int64(steps))
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed, or had ended
}

// whole fails the test if the file at path is neither version.
func whole(t *testing.T, dir, path string, versions ...*tree) {
	t.Helper()
	content := read(t, filepath.Join(dir, path))
	for _, x := range versions {
		e, want := x.at(path), strings.Builder{}
		for _, c := range e.Chunks {
			want.Write(x.chunks.chunks[store.Ref{Audience: store.Cluster, ID: c.ID}])
		}
		if content == want.String() {
			return
		}
	}
	t.Errorf("%s is neither version (%d bytes)", path, len(content))
}

// The power goes while files are put in place, and the disk keeps what the
// journal has by then and no more: names, sizes and times, but of the data
// only what was written out. XFS in particular then shows zeros. Every name
// must lead to the whole file all the same, because the next Apply will trust
// size and time.
func TestApplyPowerCut(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir, disk := image(t, kind, "320M")
			root := filepath.Join(dir, "root")
			other, err := os.Create(filepath.Join(dir, "other"))
			must(t, err)
			defer other.Close()
			x := crashTree(1, 12)
			steps, cut := 0, filepath.Join(t.TempDir(), "cut")
			x.apply(t, root, ApplyOptions{Change: func(ApplyChange) {
				if steps++; steps != 200 {
					return
				}
				// Somebody else's fsync brings the journal to the disk,
				// with all renames so far.
				_, err := other.WriteString("x")
				must(t, err, other.Sync())
				run(t, "cp", "--sparse=always", disk, cut)
			}})
			after := filepath.Join(t.TempDir(), "after")
			must(t, os.Mkdir(after, 0o755))
			options := "loop"
			if kind == "xfs" {
				options += ",nouuid"
			}
			mountAt(t, after, "-o", options, cut)
			root = filepath.Join(after, "root")
			names := 0
			for path := range stamps(t, root) {
				if strings.HasPrefix(filepath.Base(path), "f") {
					names++
					whole(t, root, path, x)
				}
			}
			if names < 100 {
				t.Errorf("only %d files were in place when the power went", names)
			}
			x.apply(t, root, ApplyOptions{Delete: true})
			x.equal(t, root)
		})
	}
}

// Apply's batches are bounded, so that little is lost with the power.
func TestApplyBatches(t *testing.T) {
	x, dir := newTree(), memory(t)
	for i := range maxBatch + 100 {
		x.add(Entry{Path: fmt.Sprintf("p%06d", i), Kind: FIFO, Mode: 0o600})
	}
	x.apply(t, dir, ApplyOptions{})
	x.equal(t, dir)
}
