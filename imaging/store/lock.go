package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// LockReading waits for the lock that those hold together who read what the
// store has, from before they list its packs until they have read. It keeps
// retired blobs from being deleted, and hinders nobody who writes or retires.
// A store that cannot be written needs no lock: nothing leaves it.
func (d *Dir) LockReading(ctx context.Context) (release func(), err error) {
	release, err = d.lock(ctx, "reading", unix.LOCK_SH)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	return release, err
}

// LockPruning waits for the lock of whoever removes from the store. It is
// taken before any other, and held all the while, so that no two tidy the same
// packs; captures go on beside it.
func (d *Dir) LockPruning(ctx context.Context) (release func(), err error) {
	return d.lock(ctx, "pruning", unix.LOCK_EX)
}

// errLocked says that someone else holds a lock that is not waited for.
var errLocked = errors.New("another doppel holds the lock")

// tryReading takes the readers' lock alone, or gives errLocked.
func (d *Dir) tryReading() (release func(), err error) {
	f, err := d.openLock("reading")
	if err != nil {
		return nil, err
	}
	release, err = tryLock(f, unix.LOCK_EX)
	if err != nil {
		f.Close()
	}
	return release, err
}

// openLock opens a lock's file. NFS locks exclusively only what is open for
// writing; a file system that is read-only, or another's store, lets nothing be.
func (d *Dir) openLock(name string) (*os.File, error) {
	path := filepath.Join(d.path, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission) {
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("locking the store: %w", err)
	}
	return f, nil
}

// tryLock gives errLocked when someone else holds the lock. The file is closed
// with the lock.
func tryLock(f *os.File, how int) (release func(), err error) {
	err = flock(f, how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errLocked
	}
	if err != nil {
		return nil, fmt.Errorf("locking the store: %s: %w", f.Name(), err)
	}
	var once sync.Once
	return func() { once.Do(func() { f.Close() }) }, nil
}

func (d *Dir) lock(ctx context.Context, name string, how int) (func(), error) {
	f, err := d.openLock(name)
	if err != nil {
		return nil, err
	}
	// A blocked flock cannot be called off, so ask again and again.
	pause := time.NewTimer(0)
	defer pause.Stop()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		release, err := tryLock(f, how)
		if err == nil {
			return release, nil
		}
		if !errors.Is(err, errLocked) {
			f.Close()
			return nil, err
		}
		pause.Reset(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for the store's lock %s, which another doppel holds: %w", f.Name(), context.Cause(ctx))
		}
	}
}
