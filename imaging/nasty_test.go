package imaging

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// nastyTree is a tree with everything that a file system can hold.
func nastyTree(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "tree")
	at := func(name string) string { return filepath.Join(root, name) }
	fill(t, at("plain"), []byte("plain\n"))
	fill(t, at("empty"), nil)
	fill(t, at("large"), noise(3<<20, 10))
	fill(t, at("twice/one"), noise(300<<10, 11))
	fill(t, at("twice/two"), noise(300<<10, 11))
	fill(t, at("names/\xff\xfe not utf8"), []byte("1"))
	fill(t, at("names/line\nbreak\ttab\\"), []byte("2"))
	fill(t, at("names/ "), []byte("3"))
	fill(t, at("names/*?[]'\"$"), []byte("4"))
	fill(t, at("names/"+strings.Repeat("n", 255)), []byte("5"))
	fill(t, at("a/b/c"), []byte("c"))
	fill(t, at("a-b"), []byte("sorts between a and a/b for the careless"))
	must(t, os.Mkdir(at("void"), 0o700))

	f, err := os.Create(at("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("in the middle"), 1<<20)
	must(t, err)
	_, err = f.WriteAt([]byte("at the end"), 64<<20-10)
	must(t, err)
	must(t, f.Close())
	must(t, os.WriteFile(at("hole"), nil, 0o600))
	must(t, os.Truncate(at("hole"), 1<<28))

	must(t, os.Symlink("../\xff/nowhere", at("symlink")))
	must(t, os.Symlink(strings.Repeat("x/", 2000)+"y", at("long symlink")))
	must(t, unix.Mkfifo(at("fifo"), 0o622))
	must(t, unix.Mknod(at("chr"), unix.S_IFCHR|0o640, int(unix.Mkdev(10, 300))))
	must(t, unix.Mknod(at("blk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o755, 0))

	must(t, os.Link(at("plain"), at("z hard link")))
	must(t, os.Link(at("plain"), at("a/hard link")))
	must(t, unix.Linkat(unix.AT_FDCWD, at("symlink"), unix.AT_FDCWD, at("symlink link"), 0))
	must(t, os.Link(at("chr"), at("chr link")))
	must(t, os.Link(at("fifo"), at("fifo link")))

	must(t, os.Chown(at("plain"), 1234, 4_000_000_000))
	must(t, os.Lchown(at("symlink"), 7, 8))
	must(t, unix.Chmod(at("a-b"), 0o6755))
	must(t, unix.Chmod(at("void"), 0o1777))
	must(t, unix.Chmod(at("empty"), 0))
	output(t, "setcap", "cap_net_raw+ep", at("large"))
	output(t, "setfacl", "-m", "u:99:rw,g:98:x", at("plain"))
	output(t, "setfacl", "-d", "-m", "u:97:r", at("void"))
	output(t, "setfattr", "-n", "user.binary", "-v", "0x00ff00", at("plain"))
	output(t, "setfattr", "-n", "user.empty", at("plain"))
	output(t, "setfattr", "-n", "user.big", "-v", strings.Repeat("b", 2000), at("a-b"))
	output(t, "setfattr", "-h", "-n", "trusted.symlink", "-v", "s", at("symlink"))
	output(t, "setfattr", "-h", "-n", "security.fifo", "-v", "f", at("fifo"))
	output(t, "setfattr", "-n", "trusted.dir", "-v", "d", at("a"))

	times := func(name string, sec int64, nsec int64) {
		ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	times("plain", -1, 250_000_000)
	times("symlink", -315_619_200, 1)
	times("fifo", 4_000_000_000, 999_999_999)
	times("void", 0, 0)
	return root
}

// deepTree makes a directory deeper than any path may be long, one step at a
// time.
func deepTree(t *testing.T, root string, levels int) {
	t.Helper()
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range levels {
		name := fmt.Sprintf("level-%d-%s", i, strings.Repeat("d", 100))
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		file, err := unix.Openat(fd, "z", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		must(t, err)
		_, err = unix.Write(file, []byte(name))
		must(t, err)
		must(t, unix.Close(file))
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
}

// found is what find(1) says of one name.
type found struct {
	kind                 string
	mode, uid, gid, size string
	time                 string
	target               string
	inode                string
}

// findAll asks find(1) about everything in a tree.
func findAll(t *testing.T, root string) map[string]found {
	t.Helper()
	out := output(t, "find", root, "-printf", `%P\0%y\0%m\0%U\0%G\0%s\0%T@\0%l\0%i\0`)
	fields := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	all := make(map[string]found)
	for f := range slices.Chunk(fields, 9) {
		path := f[0]
		if path == "" {
			path = "."
		}
		all[path] = found{f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]}
	}
	return all
}

// compareToFind holds the entries against what find(1) says.
func compareToFind(t *testing.T, root string, entries []Entry) {
	t.Helper()
	want := findAll(t, root)
	byInode := make(map[string]string)
	letters := map[Kind]string{Regular: "f", Directory: "d", Symlink: "l", CharDevice: "c", BlockDevice: "b", FIFO: "p", Socket: "s"}
	for _, e := range entries {
		w, ok := want[e.Path]
		if !ok {
			t.Errorf("find does not know %q", e.Path)
			continue
		}
		delete(want, e.Path)
		if e.Kind == HardLink {
			if byInode[w.inode] != e.Target {
				t.Errorf("%q is said to be a hard link to %q, find says to %q", e.Path, e.Target, byInode[w.inode])
			}
			continue
		}
		if first, again := byInode[w.inode]; again {
			t.Errorf("%q is a hard link to %q, and said to be a %v", e.Path, first, e.Kind)
		}
		byInode[w.inode] = e.Path
		got := found{
			kind: letters[e.Kind], mode: strconv.FormatUint(uint64(e.Mode), 8), uid: fmt.Sprint(e.UID), gid: fmt.Sprint(e.GID),
			size: w.size, time: fmt.Sprintf("%d.%09d0", e.MTime.Sec, e.MTime.Nsec), target: e.Target, inode: w.inode,
		}
		if e.Kind == Regular {
			got.size = fmt.Sprint(e.Size)
		}
		if got != w {
			t.Errorf("%q:\n got %+v\nwant %+v", e.Path, got, w)
		}
	}
	for path := range want {
		t.Errorf("%q is in the tree and not in the entries", path)
	}
}

// compareToGetfattr holds extended attributes against what getfattr(1) says.
func compareToGetfattr(t *testing.T, root string, entries []Entry) {
	t.Helper()
	for _, e := range entries {
		path := filepath.Join(root, e.Path)
		if len(path) > 4000 || e.Kind == HardLink {
			continue
		}
		out := output(t, "getfattr", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", path)
		want := make(map[string]string)
		for line := range strings.Lines(out) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
				want[name] = value
			} else if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				want[line] = "0x"
			}
		}
		got := make(map[string]string)
		for _, x := range e.Xattrs {
			got[x.Name] = fmt.Sprintf("0x%x", x.Value)
		}
		if !maps.Equal(got, want) {
			t.Errorf("extended attributes of %q: %v, want %v", e.Path, got, want)
		}
	}
}

// compareToFiles holds contents against the files, and holes against the
// blocks that the file system gave them.
func compareToFiles(t *testing.T, root string, c *collected) {
	t.Helper()
	for i := range c.entries {
		e := &c.entries[i]
		path := filepath.Join(root, e.Path)
		if e.Kind != Regular || len(path) > 4000 {
			continue
		}
		var data int64
		for _, x := range e.Data() {
			data += x.Length
		}
		blocks, err := strconv.ParseInt(strings.TrimSpace(output(t, "stat", "-c", "%b", path)), 10, 64)
		must(t, err)
		if data > blocks*512 {
			t.Errorf("%q has %d bytes of data, and %d on disk", e.Path, data, blocks*512)
		}
		if e.Size >= 1<<28 {
			if data != 0 {
				t.Errorf("%q has %d bytes of data", e.Path, data)
			}
			continue
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(c.content(t, e), want) {
			t.Errorf("%q has other content", e.Path)
		}
	}
}
