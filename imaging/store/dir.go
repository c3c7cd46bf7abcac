package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is a Store in a directory: packs/HEX and manifests/HEX below it. Any
// number of processes may use it at once.
type Dir struct {
	path string
}

var _ Store = (*Dir)(nil)
var _ Spooler = (*Dir)(nil)

// OpenDir opens the store in path, making the directory for its owner alone
// when it is not there. Temporary files that a killed process left are removed.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	d := &Dir{path: path}
	for _, p := range []string{d.path, d.folder(KindPack), d.folder(KindManifest)} {
		if err := makeDir(p); err != nil {
			return nil, fmt.Errorf("opening the store: %w", err)
		}
	}
	for _, k := range []Kind{KindPack, KindManifest} {
		d.sweep(d.folder(k))
	}
	return d, nil
}

// Path is the directory.
func (d *Dir) Path() string { return d.path }

func (d *Dir) folder(k Kind) string {
	f, _ := k.folder()
	return filepath.Join(d.path, f)
}

func (d *Dir) file(k Kind, id ID) (string, error) {
	f, err := k.folder()
	return filepath.Join(d.path, f, id.Hex()), err
}

// Put writes a blob durably. A blob that is there with another size than the
// one given is damaged: Put says so and leaves it.
func (d *Dir) Put(ctx context.Context, k Kind, id ID, r io.Reader) error {
	path, err := d.file(k, id)
	if err != nil {
		return err
	}
	if size, err := d.stat(ctx, path, k, id); err == nil {
		sum := newDigester(io.Discard)
		if _, err := io.Copy(sum, contextReader{ctx, r}); err != nil {
			return fmt.Errorf("storing %s %s: %w", k, id, err)
		}
		if got := sum.ID(); got != id {
			return putError(k, id, got)
		}
		if err := sameSize(k, id, size, sum.n); err != nil {
			return err
		}
		// Whoever put it may not have come this far yet.
		return syncDir(filepath.Dir(path))
	} else if missing := (*MissingError)(nil); !errors.As(err, &missing) {
		return err
	}
	s, err := d.Spool(ctx, k)
	if err != nil {
		return err
	}
	defer s.Discard()
	if _, err := io.Copy(s, contextReader{ctx, r}); err != nil {
		return fmt.Errorf("storing %s %s: %w", k, id, err)
	}
	if got := s.(*fileSpool).sum.ID(); got != id {
		return putError(k, id, got)
	}
	_, err = s.Commit()
	return err
}

func (d *Dir) Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error) {
	f, size, err := d.open(ctx, k, id)
	if err != nil {
		return nil, err
	}
	if n, err = rangeOf(k, id, size, off, n); err != nil {
		f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{contextReader{ctx, io.NewSectionReader(f, off, n)}, f}, nil
}

// open opens a blob's file, which must be a regular one.
func (d *Dir) open(ctx context.Context, k Kind, id ID) (*os.File, int64, error) {
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	path, err := d.file(k, id)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(d.retiredFile(k, id))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, &MissingError{What: string(k), ID: id}
	}
	if err != nil {
		return nil, 0, fmt.Errorf("opening %s %s: %w", k, id, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("opening %s %s: %w", k, id, err)
	}
	return f, info.Size(), nil
}

func (d *Dir) Stat(ctx context.Context, k Kind, id ID) (int64, error) {
	path, err := d.file(k, id)
	if err != nil {
		return 0, err
	}
	size, err := d.stat(ctx, path, k, id)
	if missing := (*MissingError)(nil); errors.As(err, &missing) {
		return d.stat(ctx, d.retiredFile(k, id), k, id)
	}
	return size, err
}

// stat looks a blob up in one of the places where it may be.
func (d *Dir) stat(ctx context.Context, path string, k Kind, id ID) (int64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &MissingError{What: string(k), ID: id}
	}
	if err != nil {
		return 0, fmt.Errorf("looking up %s %s: %w", k, id, err)
	}
	return info.Size(), nil
}

// List gives the blobs in the order of their digests.
func (d *Dir) List(ctx context.Context, k Kind, fn func(id ID, size int64) error) error {
	f, err := k.folder()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(d.path, f))
	if err != nil {
		return fmt.Errorf("listing %s: %w", f, err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		id, ok := fileID(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return fmt.Errorf("listing %s: %w", f, err)
		}
		if err := fn(id, info.Size()); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) Delete(ctx context.Context, k Kind, id ID) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	path, err := d.file(k, id)
	if err != nil {
		return err
	}
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &MissingError{What: string(k), ID: id}
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("removing %s %s: %w", k, id, err)
	}
	return nil
}

// LockShared waits for the lock that those who add to the store, and those who
// rely on what is in it to stay, hold together. It returns what releases it.
func (d *Dir) LockShared(ctx context.Context) (release func(), err error) {
	return d.lock(ctx, "lock", unix.LOCK_SH)
}

// LockExclusive waits for the lock that whoever removes from the store holds
// alone.
func (d *Dir) LockExclusive(ctx context.Context) (release func(), err error) {
	return d.lock(ctx, "lock", unix.LOCK_EX)
}

// fileID reads a blob's file name: 64 hexadecimal digits as Hex writes them,
// and nothing else.
func fileID(name string) (ID, bool) {
	id, err := ParseID(name)
	return id, err == nil && id.Hex() == name
}

// sameSize compares a blob that is there with one that is to be stored.
func sameSize(k Kind, id ID, there, given int64) error {
	if there == given {
		return nil
	}
	return &CorruptError{What: string(k), ID: id, Detail: fmt.Sprintf("it is in the store with %d bytes instead of %d; remove it and store it again", there, given)}
}

// makeDir makes a directory and its parents durably, each for its owner alone.
func makeDir(path string) error {
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}
