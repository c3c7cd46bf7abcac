package imaging

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What is kept stays as it is where it is there, and of what is not there only
// directories are made; in what is kept there may be something that is not.
func TestApplyKeep(t *testing.T) {
	x := newTree()
	x.dir("log")
	x.file("log/syslog", "the image's")
	x.dir("log/new")
	x.dir("log/new/deep").Mode = 0o711
	x.file("log/new/deep/file", "the image's")
	x.dir("log/state")
	x.file("log/state/equal", "the image's")
	x.file("log/state/own", "the image's")
	x.file("log/odd", "the image's")
	x.dir("other")
	x.file("other/file", "the image's")
	sortEntries(x.list)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("log/state"), 0o700), os.MkdirAll(at("log/odd/is"), 0o700), os.MkdirAll(at("log/mine/below"), 0o700), os.MkdirAll(at("other/more"), 0o700))
	for _, name := range []string{"log/syslog", "log/state/equal", "log/state/own", "log/state/extra", "log/mine/below/file", "log/odd/is/here", "other/file", "other/more/own.log"} {
		write(t, at(name), "the node's")
	}
	keep := func(path string) bool {
		if path == "log/state/equal" || path == "log/state/extra" {
			return false
		}
		return path == "log" || strings.HasPrefix(path, "log/") || strings.HasSuffix(path, ".log")
	}
	before := stamps(t, dir)
	r := x.apply(t, dir, ApplyOptions{Delete: true, Keep: keep})
	for name, want := range map[string]string{
		"log/syslog": "the node's", "log/state/equal": "the image's", "log/state/own": "the node's", "log/mine/below/file": "the node's",
		"log/odd/is/here": "the node's", "other/file": "the image's", "other/more/own.log": "the node's",
	} {
		if have := read(t, at(name)); have != want {
			t.Errorf("%s is %s", name, have)
		}
	}
	for _, name := range []string{"log/new/deep/file", "log/state/extra"} {
		if _, err := os.Lstat(at(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if fi, err := os.Stat(at("log/new/deep")); err != nil || fi.Mode().Perm() != 0o711 {
		t.Errorf("a directory that was lacking: %v, %v", fi, err)
	}
	after := stamps(t, dir)
	for _, name := range []string{"log/syslog", "log/state/own", "log/mine", "log/mine/below", "log/odd/is"} {
		if before[name] != after[name] {
			t.Errorf("%s was touched: %v, then %v", name, before[name], after[name])
		}
	}
	if fi, err := os.Stat(at("log/state")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("a directory that is kept got another mode: %v, %v", fi, err)
	}
	if again := x.apply(t, dir, ApplyOptions{Delete: true, Keep: keep}); again.Written+again.Fixed+again.Deleted != 0 {
		t.Errorf("a second apply did something: %+v", again)
	}
	if sum := r.Written + r.Fixed + r.Unchanged + r.Skipped; sum != r.Entries {
		t.Errorf("%d entries are accounted for, of %d: %+v", sum, r.Entries, r)
	}
}

// A file system that belongs to the tree is cleared of what the image lacks;
// one that does not is only written to.
func TestApplyMounts(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	x := newTree()
	x.dir("boot")
	x.file("boot/kernel", "new")
	x.dir("srv")
	x.file("srv/file", "new")
	sortEntries(x.list)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"boot", "srv"} {
		mountOn(t, "none", at(name), "tmpfs", 0, "")
		t.Cleanup(func() { must(t, unix.Unmount(at(name), 0)) })
		must(t, os.MkdirAll(at(name+"/old"), 0o755))
		write(t, at(name+"/old/file"), "old")
	}
	x.apply(t, dir, ApplyOptions{Delete: true, Mounts: []string{"/boot"}})
	if _, err := os.Lstat(at("boot/old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the image lacks in /boot: %v", err)
	}
	if read(t, at("srv/old/file")) != "old" || read(t, at("srv/file")) != "new" || read(t, at("boot/kernel")) != "new" {
		t.Error("/srv is not as it should be")
	}
}

// The caller hears when all is written and nothing removed yet, and may end it
// there.
func TestApplyWritten(t *testing.T) {
	x := newTree()
	x.dir("boot")
	x.file("boot/new", "kernel")
	sortEntries(x.list)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("boot"), 0o755))
	write(t, at("boot/old"), "kernel")
	refuse := errors.New("no menu could be made")
	var seen []string
	look := func() error {
		for _, name := range []string{"boot/new", "boot/old"} {
			if _, err := os.Lstat(at(name)); err == nil {
				seen = append(seen, name)
			}
		}
		return refuse
	}
	_, err := Apply(t.Context(), x.m(), x.chunks, dir, ApplyOptions{Delete: true, Written: look})
	if !errors.Is(err, refuse) || !slices.Equal(seen, []string{"boot/new", "boot/old"}) {
		t.Errorf("seen %q, %v", seen, err)
	}
	read(t, at("boot/old"))
	refuse = nil
	x.apply(t, dir, ApplyOptions{Delete: true, Written: look})
	if _, err := os.Lstat(at("boot/old")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
