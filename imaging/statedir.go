package imaging

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"doppel/imaging/store"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// makeDirs makes a directory and all above it that are not there, for their
// owner alone, and durably.
func makeDirs(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		return &fs.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if err := makeDirs(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(parent)
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// replaceFile replaces a file durably: whoever reads it sees the old bytes or
// the new ones, also after power loss.
func replaceFile(path string, b []byte) error {
	if err := renameio.WriteFile(path, b, 0o600, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// lockDir holds a directory against others who change what is in it.
func lockDir(ctx context.Context, path string) (release func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock on %s: %w", path, context.Cause(ctx))
		}
	}
}

// exists tells whether there is anything at path.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ErrNoState says that a state directory holds no images because it was never
// written to.
var ErrNoState = errors.New("there are no images yet: make one with doppel capture")

// Store is the store that the catalog's blobs are in.
func (c *Catalog) Store() (*store.Dir, error) {
	ok, err := exists(filepath.Join(c.dir, "store"))
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", c.dir, ErrNoState)
	}
	return store.OpenDir(filepath.Join(c.dir, "store"))
}

func (c *Catalog) keyPath(name string) string { return filepath.Join(c.dir, "keys", name+".key") }

// Keys reads the audience keys of the state directory. The key of the audience
// head may be missing, on a machine that may not have it.
func (c *Catalog) Keys() (store.Keys, error) {
	var keys store.Keys
	cluster, err := store.ReadKey(c.keyPath("cluster"))
	if errors.Is(err, fs.ErrNotExist) {
		return keys, fmt.Errorf("%w (it seals the images in %s: restore it from a backup)", err, c.dir)
	}
	if err != nil {
		return keys, err
	}
	keys.Cluster = &cluster
	head, err := store.ReadKey(c.keyPath("head"))
	if errors.Is(err, fs.ErrNotExist) {
		return keys, nil
	}
	if err != nil {
		return keys, err
	}
	keys.Head = &head
	return keys, nil
}

// Create makes the state directory's store and keys unless they are there. A
// key is never made where packs are already: those were sealed with one that
// must be found again.
func (c *Catalog) Create(ctx context.Context) error {
	for _, dir := range []string{c.dir, filepath.Join(c.dir, "keys")} {
		if err := makeDirs(dir); err != nil {
			return fmt.Errorf("make the state directory: %w", err)
		}
	}
	sealed, err := c.sealed(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"cluster", "head"} {
		if err := c.createKey(name, sealed); err != nil {
			return err
		}
	}
	if err := makeDirs(filepath.Join(c.dir, "store", "names")); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	_, err = store.OpenDir(filepath.Join(c.dir, "store"))
	return err
}

// sealed tells whether anything in the store is sealed already.
func (c *Catalog) sealed(ctx context.Context) (bool, error) {
	ok, err := exists(filepath.Join(c.dir, "store", "packs"))
	if err != nil || !ok {
		return false, err
	}
	st, err := store.OpenDir(filepath.Join(c.dir, "store"))
	if err != nil {
		return false, err
	}
	sealed := false
	for _, k := range []store.Kind{store.KindPack, store.KindManifest} {
		err = errors.Join(err, st.List(ctx, k, func(store.ID, int64) error { sealed = true; return nil }))
	}
	return sealed, err
}

func (c *Catalog) createKey(name string, sealed bool) error {
	path := c.keyPath(name)
	if ok, err := exists(path); err != nil || ok {
		return err
	}
	if sealed {
		return fmt.Errorf("%s is not there, and the store holds what is sealed with it: restore the key from a backup, or use another state directory", path)
	}
	key, err := store.GenerateKey()
	if err != nil {
		return err
	}
	// Another process may have been first; then its key is the key.
	if err := store.WriteKey(path, key); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
