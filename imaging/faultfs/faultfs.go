package faultfs

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FS passes all on to a directory, and counts what would change it. Its methods
// may be called at any time.
type FS struct {
	fuse.RawFileSystem

	mu      sync.Mutex
	at      int // the change that fails; 0: none
	forever bool
	errno   syscall.Errno
	paused  bool
	seen    int
	failed  []string
}

// Mount mounts the directory dir on the directory at, until the test ends.
func Mount(tb testing.TB, dir, at string) *FS {
	tb.Helper()
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		tb.Fatalf("serve %s: %v", dir, err)
	}
	f := &FS{RawFileSystem: fs.NewNodeFS(root, &fs.Options{})}
	server, err := fuse.NewServer(f, at, &fuse.MountOptions{DirectMountStrict: true, FsName: dir, Name: "faultfs"})
	if err != nil {
		tb.Fatalf("mount %s on %s: %v", dir, at, err)
	}
	go server.Serve()
	tb.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			tb.Errorf("unmount %s: %v", at, err)
		}
	})
	if err := server.WaitMount(); err != nil {
		tb.Fatalf("mount %s on %s: %v", dir, at, err)
	}
	return f
}

// EachFault has something done again and again: with the first change to the
// disk failing, then with the second, until there is none left to fail; by an
// I/O error once and one that stays, and by a disk that is full for a moment
// and one that stays so. What try gives is the error of what it did; it must check
// itself that nothing is worse for it. Between Pause and Resume nothing fails.
func (f *FS) EachFault(t *testing.T, try func(errno syscall.Errno) error) {
	t.Helper()
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC} {
		for _, forever := range []bool{false, true} {
			times := 0
			// The two that disks are known for are tried at each change, the
			// others at some.
			often := 1
			if forever == (errno == syscall.EIO) {
				often = 4
			}
			for n := 1; ; n += often {
				f.fail(n, errno, forever)
				err := try(errno)
				failed := f.heal()
				if len(failed) == 0 {
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				times++
				if t.Failed() {
					t.Fatalf("that was: %v, forever %v, at change %d: %q, and then: %v", errno, forever, n, failed, err)
				}
			}
			t.Logf("%v, forever %v: %d changes failed", errno, forever, times)
			if times < 2 {
				t.Error("hardly anything failed: that is no test")
			}
		}
	}
}

// fail lets the nth change from now on fail with errno; forever, also all that
// follow it. With ENOSPC only what needs room can fail, and is counted.
func (f *FS) fail(n int, errno syscall.Errno, forever bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.errno, f.forever, f.paused, f.seen, f.failed = n, errno, forever, false, 0, nil
}

// Pause lets nothing fail, and counts nothing, until Resume.
func (f *FS) Pause() { f.pause(true) }

// Resume ends what Pause began.
func (f *FS) Resume() { f.pause(false) }

func (f *FS) pause(p bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = p
}

// heal lets nothing fail any more, and gives the operations that did.
func (f *FS) heal() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = 0
	return f.failed
}

// Lost tells whether what failed so far would have made something: the failure
// of an unlink, a rmdir or a close changes nothing.
func (f *FS) Lost() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.failed, func(op string) bool {
		verb, _, _ := strings.Cut(op, " ")
		return verb != "unlink" && verb != "rmdir" && verb != "close"
	})
}

// needsRoom are the operations that a full disk can refuse. A file system that
// allocates late, or over a network, refuses fsync too.
var needsRoom = map[string]bool{
	"create": true, "tmpfile": true, "mknod": true, "mkdir": true, "symlink": true, "link": true, "rename": true,
	"write": true, "fallocate": true, "copy_file_range": true, "setxattr": true, "fsync": true, "fsyncdir": true,
}

// change counts a change, and tells whether and how it fails.
func (f *FS) change(op, name string) fuse.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at == 0 || f.paused || f.errno == syscall.ENOSPC && !needsRoom[op] {
		return fuse.OK
	}
	f.seen++
	if f.seen < f.at || f.seen > f.at && !f.forever {
		return fuse.OK
	}
	f.failed = append(f.failed, op+" "+name)
	return fuse.Status(f.errno)
}

func (f *FS) String() string { return "faultfs" }

// The methods of fuse.RawFileSystem that change something.

func (f *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if s := f.change("setattr", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.SetAttr(cancel, in, out)
}

func (f *FS) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change("mknod", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Mknod(cancel, in, name, out)
}

func (f *FS) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change("mkdir", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (f *FS) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := f.change("unlink", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Unlink(cancel, in, name)
}

func (f *FS) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if s := f.change("rmdir", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Rmdir(cancel, in, name)
}

func (f *FS) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if s := f.change("rename", from+" "+to); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Rename(cancel, in, from, to)
}

func (f *FS) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change("link", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Link(cancel, in, name, out)
}

func (f *FS) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if s := f.change("symlink", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Symlink(cancel, in, target, name, out)
}

func (f *FS) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, attr string, data []byte) fuse.Status {
	if s := f.change("setxattr", attr); !s.Ok() {
		return s
	}
	return f.RawFileSystem.SetXAttr(cancel, in, attr, data)
}

func (f *FS) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader, attr string) fuse.Status {
	if s := f.change("removexattr", attr); !s.Ok() {
		return s
	}
	return f.RawFileSystem.RemoveXAttr(cancel, in, attr)
}

func (f *FS) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if s := f.change("create", name); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Create(cancel, in, name, out)
}

func (f *FS) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if s := f.change("tmpfile", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Tmpfile(cancel, in, out)
}

// Write of what has no room at all first writes half, as a disk does that fills
// up in the middle of it.
func (f *FS) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if s := f.change("write", ""); !s.Ok() {
		if half := len(data) / 2; half > 0 && s == fuse.Status(syscall.ENOSPC) {
			part := *in
			part.Size = uint32(half)
			return f.RawFileSystem.Write(cancel, &part, data[:half])
		}
		return 0, s
	}
	return f.RawFileSystem.Write(cancel, in, data)
}

// Writev is how writes come that the kernel cut.
func (f *FS) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	return f.Write(cancel, in, bytes.Join(data, nil))
}

func (f *FS) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if s := f.change("copy_file_range", ""); !s.Ok() {
		return 0, s
	}
	return f.RawFileSystem.CopyFileRange(cancel, in)
}

func (f *FS) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if s := f.change("close", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Flush(cancel, in)
}

func (f *FS) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := f.change("fsync", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Fsync(cancel, in)
}

func (f *FS) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if s := f.change("fsyncdir", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.FsyncDir(cancel, in)
}

func (f *FS) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if s := f.change("fallocate", ""); !s.Ok() {
		return s
	}
	return f.RawFileSystem.Fallocate(cancel, in)
}
