package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A blob that nothing needs any more is retired before it is deleted: moved to
// retired/ of its store, where List does not show it, so that no vault opened
// from then on relies on it, and where Open and Stat still find it, so that
// whoever opened a vault before reads on as if nothing had happened. Damaged
// packs are set aside in damaged/, where nothing finds them.
const (
	retiredFolder = "retired"
	damagedFolder = "damaged"
)

func (d *Dir) retiredFile(k Kind, id ID) string {
	f, _ := k.folder()
	return filepath.Join(d.path, retiredFolder, f, id.Hex())
}

// Retire takes blobs out of the list, durably. They can be read until
// FreeRetired deletes them. Whoever retires holds LockExclusive and has made
// sure that no version needs them. One that is not there is left out. step,
// which may be nil, is called before each.
func (d *Dir) Retire(ctx context.Context, k Kind, ids []ID, step func()) error {
	return d.move(ctx, retiredFolder, k, ids, step)
}

// SetAside moves damaged blobs to where nothing reads them, durably.
func (d *Dir) SetAside(ctx context.Context, k Kind, ids []ID) error {
	return d.move(ctx, damagedFolder, k, ids, nil)
}

func (d *Dir) move(ctx context.Context, folder string, k Kind, ids []ID, step func()) error {
	if len(ids) == 0 {
		return nil
	}
	f, err := k.folder()
	if err != nil {
		return err
	}
	from, to := filepath.Join(d.path, f), filepath.Join(d.path, folder, f)
	if err := makeDir(to); err != nil {
		return fmt.Errorf("moving a %s to %s: %w", k, folder, err)
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if step != nil {
			step()
		}
		err := os.Rename(filepath.Join(from, id.Hex()), filepath.Join(to, id.Hex()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving a %s to %s: %w", k, folder, err)
		}
	}
	// The new names before the old are gone: a blob is never in neither place.
	if err := syncDir(to); err != nil {
		return fmt.Errorf("moving a %s to %s: %w", k, folder, err)
	}
	return syncDir(from)
}

// Retired lists the blobs that are retired.
func (d *Dir) Retired(ctx context.Context, fn func(k Kind, id ID, size int64) error) error {
	return d.moved(ctx, retiredFolder, fn)
}

// Aside lists the blobs that were set aside as damaged.
func (d *Dir) Aside(ctx context.Context, fn func(k Kind, id ID, size int64) error) error {
	return d.moved(ctx, damagedFolder, fn)
}

func (d *Dir) moved(ctx context.Context, folder string, fn func(k Kind, id ID, size int64) error) error {
	other := Dir{path: filepath.Join(d.path, folder)}
	for _, k := range []Kind{KindPack, KindManifest} {
		err := other.List(ctx, k, func(id ID, size int64) error { return fn(k, id, size) })
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// FreeRetired deletes what is retired, unless someone reads the store under
// LockReading: then it deletes nothing and says so. Whoever calls it holds
// LockPruning, and has made sure that nobody reads in another way. step, which
// may be nil, is called before each.
func (d *Dir) FreeRetired(ctx context.Context, step func()) (blobs int, bytes int64, read bool, err error) {
	release, err := d.tryReading()
	if errors.Is(err, errLocked) {
		return 0, 0, true, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	defer release()
	blobs, bytes, err = d.free(ctx, retiredFolder, step)
	return blobs, bytes, false, err
}

// FreeAside deletes what was set aside as damaged.
func (d *Dir) FreeAside(ctx context.Context) (blobs int, bytes int64, err error) {
	return d.free(ctx, damagedFolder, nil)
}

func (d *Dir) free(ctx context.Context, folder string, step func()) (blobs int, bytes int64, err error) {
	other := Dir{path: filepath.Join(d.path, folder)}
	err = d.moved(ctx, folder, func(k Kind, id ID, size int64) error {
		if step != nil {
			step()
		}
		path, err := other.file(k, id)
		if err != nil {
			return err
		}
		// Not synced: one that comes back after power loss is still retired.
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("removing %s %s: %w", k, id, err)
		}
		blobs++
		bytes += size
		return nil
	})
	return blobs, bytes, err
}

// Listed tells whether a blob is in the list: there and not retired.
func (d *Dir) Listed(k Kind, id ID) bool {
	path, err := d.file(k, id)
	if err != nil {
		return false
	}
	_, err = os.Lstat(path)
	return err == nil
}
