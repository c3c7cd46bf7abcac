package clone

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// swapper moves directories of a tree away, and puts links to the same names in
// another place where they were, and back, as fast as it can.
type swapper struct {
	root, out, away string
	dirs            []string
	swaps           int
}

func (s *swapper) swap(random *rand.Rand) error {
	dir := s.dirs[random.IntN(len(s.dirs))]
	at, away := filepath.Join(s.root, dir), filepath.Join(s.away, filepath.Base(dir))
	switch err := os.Rename(at, away); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return nil // an update has not made it yet
	case err != nil:
		return err
	}
	if err := os.Symlink(filepath.Join(s.out, dir), at); err == nil {
		s.swaps++
		// What it points to is there as long as a look and an open take.
		for began := time.Now(); time.Since(began) < time.Duration(random.IntN(300))*time.Microsecond; {
		}
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return os.RemoveAll(away) // an update has put a directory there
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(away, at); err != nil {
		return os.RemoveAll(away) // likewise
	}
	return nil
}

// stampsOf is all there is to see of a tree, the times of its inodes included.
func stampsOf(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		out = append(out, fmt.Sprint(path, st.Ino, st.Mode, st.Uid, st.Size, st.Nlink, st.Mtim, st.Ctim))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// While updates run, directories of the node are replaced by links to the
// outside, where all that the updates write or remove has its like: nothing
// there is touched, and when there is peace an update comes to what it should.
func TestUpdateBesideSwaps(t *testing.T) {
	old, image := newImage(debianHead(), debianFiles()), upgraded()
	root, plan := node(t, old, roleCompute)
	top := t.TempDir()
	out, away := filepath.Join(top, "out"), filepath.Join(top, "away")
	if err := os.Mkdir(away, 0o755); err != nil {
		t.Fatal(err)
	}
	update := func(to *memoryImage) error {
		_, err := Update(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &to.Manifest, to, UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda"})
		return err
	}
	if err := update(image); err != nil {
		t.Fatal(err)
	}
	// The like of everything, and something that no image has in each place.
	for _, to := range []*memoryImage{old, image} {
		for _, e := range to.List.All() {
			at := filepath.Join(out, e.Path)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			_, lerr := os.Lstat(at)
			switch {
			case lerr == nil:
			case e.Kind.String() == "directory":
				if err := errors.Join(os.MkdirAll(at, 0o755), os.WriteFile(filepath.Join(at, "precious"), []byte("precious"), 0o600)); err != nil {
					t.Fatal(err)
				}
			default:
				if err := os.WriteFile(at, []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	before := stampsOf(t, out)

	s := &swapper{root: root, out: out, away: away, dirs: []string{"etc", "home/user", "home", "usr/lib/modules", "usr/lib", "usr", "var/log", "etc/systemd", "etc/nginx", "srv"}}
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		random := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.swap(random); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	failed := 0
	const updates = 150
	for i := range updates {
		if update([]*memoryImage{old, image}[i%2]) != nil {
			failed++
		}
	}
	close(stop)
	swapping.Wait()
	t.Logf("%d of %d updates failed beside %d swaps", failed, updates, s.swaps)
	if failed == 0 || s.swaps < updates {
		t.Error("nothing came between")
	}
	if after := stampsOf(t, out); !slices.Equal(before, after) {
		for i := range min(len(before), len(after)) {
			if before[i] != after[i] {
				t.Errorf("outside was\n%s\nand is\n%s", before[i], after[i])
				break
			}
		}
		t.Errorf("outside there were %d names, and are %d", len(before), len(after))
	}
	// What is the node's own may have gone with a directory that was swapped.
	if err := update(image); err != nil {
		t.Fatal(err)
	}
	differences, err := imaging.CompareTree(t.Context(), &image.Manifest, root, imaging.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range differences {
		table := Identity(plan.Role)
		if _, own := table.Match(d.Path); !own && !table.Holds(d.Path) {
			t.Errorf("after all: %v", d)
		}
	}
}
