package snapshot

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// view is the tree that a keeper has put together, with the mount table of the
// live one.
type view struct {
	imaging.Tree
	mounts *imaging.Mounts
	stubs  []uint64 // devices of btrfs snapshots, in which inode 2 stands for a subvolume that is not there
	freeze map[uint64]*frozenPart
}

func (v *view) Mounts(context.Context) (*imaging.Mounts, error) { return v.mounts, nil }

func (v *view) Root(ctx context.Context) (imaging.Dir, error) {
	d, err := v.Tree.Root(ctx)
	if err != nil {
		return nil, err
	}
	return v.enter(ctx, d)
}

// enter takes a directory that was opened.
func (v *view) enter(ctx context.Context, d imaging.Dir) (imaging.Dir, error) {
	w := &viewDir{opened: d, view: v}
	if len(v.freeze) == 0 {
		return w, nil
	}
	self, err := d.Self(ctx)
	if err == nil {
		if w.frozen = v.freeze[self.Dev]; w.frozen != nil {
			err = w.frozen.hold(ctx)
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return w, nil
}

// opened is a name for imaging.Dir that its method Dir leaves free.
type opened = imaging.Dir

// viewDir is a directory of the view.
type viewDir struct {
	opened
	view   *view
	frozen *frozenPart
	closed sync.Once
}

// Names leaves out the directories of keepers, which are at the top level of
// btrfs file systems.
func (d *viewDir) Names(ctx context.Context) ([]string, error) {
	names, err := d.opened.Names(ctx)
	if slices.ContainsFunc(names, isOwn) {
		self, e := d.Self(ctx)
		if e != nil {
			return nil, e
		}
		if self.Ino == subvolumeInode {
			names = slices.DeleteFunc(names, isOwn)
		}
	}
	return names, err
}

// Stat does not find what is only the place of a subvolume that came after its
// parent's snapshot was taken.
func (d *viewDir) Stat(ctx context.Context, name string) (imaging.Node, error) {
	n, err := d.opened.Stat(ctx, name)
	if err != nil || n.Ino != stubInode || n.Kind != imaging.Directory || unix.Major(n.Dev) != 0 || len(d.view.stubs) == 0 {
		return n, err // a disk's own root may have that number, too
	}
	self, err := d.Self(ctx)
	if err == nil && slices.Contains(d.view.stubs, self.Dev) {
		err = fmt.Errorf("%w: the subvolume was made while the snapshots were taken", fs.ErrNotExist)
	}
	return n, err
}

func (d *viewDir) Dir(ctx context.Context, name string) (imaging.Dir, error) {
	below, err := d.opened.Dir(ctx, name)
	if err != nil {
		return nil, err
	}
	return d.view.enter(ctx, below)
}

func (d *viewDir) Open(ctx context.Context, name string) (imaging.File, error) {
	f, err := d.opened.Open(ctx, name)
	if err != nil || d.frozen == nil {
		return f, err
	}
	if err := d.frozen.hold(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return &viewFile{File: f, frozen: d.frozen}, nil
}

func (d *viewDir) Close() error {
	if d.frozen != nil {
		d.closed.Do(d.frozen.letGo)
	}
	return d.opened.Close()
}

type viewFile struct {
	imaging.File
	frozen *frozenPart
	closed sync.Once
}

func (f *viewFile) Close() error {
	f.closed.Do(f.frozen.letGo)
	return f.File.Close()
}

// frozenPart is a file system that is frozen from when the scan comes into it
// until nothing of it is open any more.
type frozenPart struct {
	freeze
	session *session

	mu    sync.Mutex
	open  int
	began bool
	done  bool // asked to thaw it
	late  bool // something of it was read after it was thawed
	err   error
}

// hold counts something that is open, and freezes before the first.
func (p *frozenPart) hold(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.began {
		p.began = true
		p.err = p.session.freeze(ctx, p.Path)
	}
	if p.err != nil {
		return p.err
	}
	if p.done {
		p.late = true // a directory far up was opened again
	}
	p.open++
	return nil
}

func (p *frozenPart) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	if p.open == 0 && !p.done {
		p.done = true
		p.session.thaw(p.Path)
	}
}

// note says how it went. The session is over.
func (p *frozenPart) note(took time.Duration, bound bool) imaging.Note {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.began:
		return imaging.Note{Path: p.Path, Kind: imaging.NoteLive, Detail: "the scan did not come to it"}
	case bound:
		return imaging.Note{Path: p.Path, Kind: imaging.NoteThawed, Detail: fmt.Sprintf("thawed after %v, before all of it was read; the rest was read live", p.For)}
	case p.late:
		return imaging.Note{Path: p.Path, Kind: imaging.NoteThawed, Detail: "thawed when it seemed to be read; some directories were read live"}
	}
	return imaging.Note{Path: p.Path, Kind: imaging.NoteFrozen, Detail: fmt.Sprintf("frozen for %v while it was read", took.Round(time.Millisecond))}
}
