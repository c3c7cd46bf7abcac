package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const tempPrefix = ".tmp-"

// isTemp tells the temporary files of fileSpool.
func isTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

// fileSpool writes a blob into a temporary file beside its place. The file is
// locked (flock) for as long as its process works on it; the kernel drops the
// lock with the process, so a temporary file that can be locked is nobody's.
type fileSpool struct {
	dir  *Dir
	kind Kind
	f    *os.File
	buf  *bufio.Writer
	sum  *digester
	done bool
}

// Spool takes a blob piece by piece, in a temporary file.
func (d *Dir) Spool(ctx context.Context, k Kind) (Spool, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if _, err := k.folder(); err != nil {
		return nil, err
	}
	f, err := lockedTemp(d.folder(k))
	if err != nil {
		return nil, fmt.Errorf("storing a %s: %w", k, err)
	}
	s := &fileSpool{dir: d, kind: k, f: f}
	s.buf = bufio.NewWriterSize(f, 1<<20)
	s.sum = newDigester(s.buf)
	return s, nil
}

// lockedTemp makes a temporary file and locks it. Between the two a sweep may
// take it for a stale one and remove it; then another is made.
func lockedTemp(dir string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, tempPrefix) // 0600
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err = flock(f, unix.LOCK_EX); err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		if err != nil {
			os.Remove(f.Name())
			f.Close()
			return nil, err
		}
		if st.Nlink > 0 {
			return f, nil
		}
		f.Close()
	}
}

func (s *fileSpool) Write(b []byte) (int, error) {
	if s.done {
		return 0, errSpoolDone
	}
	return s.sum.Write(b)
}

// Commit is the one place where a blob gets its name: data durable first, the
// name after it.
func (s *fileSpool) Commit() (ID, error) {
	if s.done {
		return ID{}, errSpoolDone
	}
	id := s.sum.ID()
	if err := s.commit(id); err != nil {
		s.Discard()
		return id, fmt.Errorf("storing %s %s: %w", s.kind, id, err)
	}
	return id, nil
}

func (s *fileSpool) commit(id ID) error {
	if err := s.buf.Flush(); err != nil {
		return err
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	path, err := s.dir.file(s.kind, id)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		if err := sameSize(s.kind, id, info.Size(), s.sum.n); err != nil {
			return err
		}
		s.Discard()
		return syncDir(filepath.Dir(path))
	}
	// Renaming before closing keeps the lock until the file has its name, so
	// that no sweep takes it in between. The data is durable already: closing
	// can tell nothing new, but a file system that says otherwise is heard.
	if err := os.Rename(s.f.Name(), path); err != nil {
		return err
	}
	s.done = true
	if err := s.f.Close(); err != nil {
		os.Remove(path)
		return err
	}
	return syncDir(filepath.Dir(path))
}

func (s *fileSpool) Discard() error {
	if s.done {
		return nil
	}
	s.done = true
	err := os.Remove(s.f.Name())
	if cerr := s.f.Close(); err == nil {
		err = cerr
	}
	return err
}

// sweep removes the temporary files of processes that are gone. What it cannot
// remove only takes up room, and a store that may not be written is still to
// be read, so there is no error to tell.
func (d *Dir) sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !isTemp(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.OpenFile(path, os.O_RDWR, 0) // as NFS wants it for an exclusive lock
		if err != nil {
			continue
		}
		if flock(f, unix.LOCK_EX|unix.LOCK_NB) == nil && samePath(f, path) {
			os.Remove(path)
		}
		f.Close()
	}
}

// samePath tells whether path still names the open file: between opening and
// locking, its process may have renamed it to its place and gone on.
func samePath(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return fmt.Errorf("syncing the directory %s: %w", path, err)
	}
	return f.Close()
}
