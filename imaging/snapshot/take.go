package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"doppel/imaging"

	"golang.org/x/sys/unix"
)

// mountDir is where, in a keeper's directory, it mounts.
const mountDir = "mnt"

func (h *holder) at(elem ...string) string {
	return path.Join(append([]string{h.dir, mountDir}, elem...)...)
}

// begin makes the keeper's directory, and in it a place to mount at that nobody
// else sees.
func (h *holder) begin() error {
	err := os.ErrNotExist
	for try := 0; errors.Is(err, os.ErrNotExist) && try < 10; try++ { // the last one to leave removes it
		if err := os.MkdirAll(runDir, 0o755); err != nil {
			return err
		}
		err = os.Mkdir(h.dir, 0o700)
	}
	if err != nil {
		return err
	}
	if err := os.Mkdir(h.at(), 0o700); err != nil {
		return err
	}
	if err := h.mount("tmpfs", h.at(), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a place for snapshots: %w", err)
	}
	return nil
}

// mount mounts, to be unmounted by release.
func (h *holder) mount(source, target, fs string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fs, flags, data); err != nil {
		return err
	}
	h.mounts = append(h.mounts, target)
	return nil
}

// filesystem is what the plan has of one file system, as far as it is read.
type filesystem struct {
	dev     string
	parts   []*part // those that are read, the nested ones too
	source  string
	why     string // it has no snapshot
	how     string // it has one
	btrfs   *volume
	origin  *logical
	mounted string // where a snapshot of LVM's is

	snapshotName string // of LVM's
}

// take takes the snapshots and puts the view together. What it has taken when
// it fails, release gives back.
func (h *holder) take(ctx context.Context) (word, error) {
	systems := h.filesystems()
	if h.plan.Mode != imaging.SnapshotOff {
		h.prepare(ctx, systems)
		if err := h.required(systems); err != nil {
			return word{}, err
		}
		for _, s := range systems { // one right after the other
			h.snapshot(ctx, s)
		}
		for _, s := range systems {
			if s.origin != nil && s.why == "" {
				s.why = text(h.mountVolume(ctx, s))
			}
		}
		if err := h.required(systems); err != nil {
			return word{}, err
		}
	}
	ready := word{Ready: true, View: h.at("view")}
	if err := h.look(systems); err != nil {
		return word{}, err
	}
	if err := h.openFrozen(systems, &ready); err != nil {
		return word{}, err
	}
	return ready, h.tell(systems, &ready)
}

// filesystems groups the parts that are read.
func (h *holder) filesystems() []*filesystem {
	var out []*filesystem
	by := map[string]*filesystem{}
	for i := range h.plan.Parts {
		p := &h.plan.Parts[i]
		if !p.Read {
			continue
		}
		s := by[p.Dev]
		if s == nil {
			s = &filesystem{dev: p.Dev, source: p.Source}
			by[p.Dev] = s
			out = append(out, s)
		}
		s.parts = append(s.parts, p)
	}
	return out
}

// prepare finds out which file systems can have snapshots, and does all that
// can be done before they are taken.
func (h *holder) prepare(ctx context.Context, systems []*filesystem) {
	var volumes []logical
	var noLVM error
	if h.anyLogical(systems) {
		volumes, noLVM = volumesOf(ctx)
	}
	var origins []*logical
	for i, s := range systems {
		first := s.parts[0]
		switch {
		case first.ReadOnly:
			s.why = "it is mounted read-only, and holds still as it is"
		case first.FS == "btrfs":
			s.why = text(h.prepareVolume(s, i))
		case !isLogical("/sys/dev/block/" + s.dev + "/dm/uuid"):
			s.why = fmt.Sprintf("%s on %s, which is neither btrfs nor a logical volume", first.FS, s.source)
		case noLVM != nil:
			s.why = noLVM.Error()
		default:
			for j := range volumes {
				if volumes[j].dev == s.dev {
					s.origin = &volumes[j]
				}
			}
			if s.origin == nil {
				s.why = fmt.Sprintf("lvs does not know %s", s.source)
				continue
			}
			if pool := find(volumes, s.origin.vg, s.origin.pool); s.origin.thin() && pool != nil && pool.full >= fullPool {
				s.why = fmt.Sprintf("the thin pool %s is full to %.0f %%", pool, pool.full)
			}
			origins = append(origins, s.origin)
		}
	}
	extents, why := shares(origins)
	for _, s := range systems {
		if s.origin != nil && s.why == "" {
			s.why = why[s.origin]
			s.origin.free = extents[s.origin] // from here on: its snapshot's
		}
	}
}

func (h *holder) anyLogical(systems []*filesystem) bool {
	for _, s := range systems {
		if isLogical("/sys/dev/block/" + s.dev + "/dm/uuid") {
			return true
		}
	}
	return false
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// prepareVolume mounts a btrfs file system's top level and makes the directory
// for its snapshots.
func (h *holder) prepareVolume(s *filesystem, n int) error {
	v := &volume{top: h.at(fmt.Sprint("top", n)), owner: h.me, taken: map[string]int{}}
	if err := mountTop(s.source, v.top); err != nil {
		return err
	}
	h.mounts = append(h.mounts, v.top)
	// That it is the file system of the plan shows before anything is made.
	if _, _, err := v.locate(s.parts[0].Root, path.Join(h.plan.Root, s.parts[0].Path)); err != nil {
		return err
	}
	h.volumes = append(h.volumes, v)
	s.btrfs = v
	return v.begin()
}

// required gives an error when snapshots are required and a file system that
// is read has none, nor is to be frozen.
func (h *holder) required(systems []*filesystem) error {
	if h.plan.Mode != imaging.SnapshotRequire {
		return nil
	}
	for _, s := range systems {
		if s.why == "" || s.parts[0].ReadOnly {
			continue
		}
		for _, p := range s.parts {
			if !p.Boot && !p.Freeze {
				return fmt.Errorf("no snapshot of %s: %s (leave it out with --exclude or --one-file-system, freeze it while it is read with --freeze, or take what there is with --snapshot auto)",
					path.Join(h.plan.Root, p.Path), s.why)
			}
		}
	}
	return nil
}

// snapshot takes the snapshots of a file system. When one cannot be taken, it
// has none.
func (h *holder) snapshot(ctx context.Context, s *filesystem) {
	switch {
	case s.why != "":
	case s.btrfs != nil:
		s.why = text(h.snapshotVolume(s))
		s.how = fmt.Sprintf("%d btrfs subvolumes", len(s.btrfs.taken))
		if len(s.btrfs.taken) == 1 {
			s.how = "a btrfs subvolume"
		}
	default:
		s.snapshotName = h.me.volume(len(h.taken))
		h.taken = append(h.taken, takenVolume{vg: s.origin.vg, name: s.snapshotName})
		if err := createVolume(ctx, s.origin, s.snapshotName, s.origin.free); err != nil {
			s.why = err.Error()
			return
		}
		s.how = fmt.Sprintf("the thin volume %s", s.origin)
		if !s.origin.thin() {
			s.how = fmt.Sprintf("the logical volume %s, with room for changes of %d MiB", s.origin, s.origin.free*s.origin.extent>>20)
		}
	}
}

func (h *holder) snapshotVolume(s *filesystem) error {
	for _, p := range s.parts {
		sub, rest, err := s.btrfs.locate(p.Root, path.Join(h.plan.Root, p.Path))
		if p.Nested && errors.Is(err, os.ErrNotExist) {
			p.gone = true
			continue
		}
		if err != nil {
			return err
		}
		p.sub, p.rest = sub, rest
		if fixed, err := isReadOnly(path.Join(s.btrfs.top, sub)); err != nil || fixed {
			if err != nil {
				return err
			}
			continue // it is read as it is
		}
		if err := s.btrfs.take(sub); err != nil {
			return err
		}
	}
	return nil
}

// mountVolume mounts a snapshot of LVM's, from a node of its own: udev's may
// come later.
func (h *holder) mountVolume(ctx context.Context, s *filesystem) error {
	list, err := volumesOf(ctx)
	if err != nil {
		return err
	}
	l := find(list, s.origin.vg, s.snapshotName)
	if l == nil || l.dev == "" {
		return fmt.Errorf("the snapshot %s/%s did not become active", s.origin.vg, s.snapshotName)
	}
	var major, minor uint32
	if _, err := fmt.Sscanf(l.dev, "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("%q is no device: %w", l.dev, err)
	}
	node, dir := h.at(s.snapshotName+".dev"), h.at(s.snapshotName)
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return &os.PathError{Op: "make the node", Path: node, Err: err}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	fs := s.parts[0].FS
	for _, options := range mountOptions(fs) {
		if err = h.mount(node, dir, fs, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV, options); err == nil {
			s.mounted = dir
			for i := range h.taken {
				h.taken[i].read = h.taken[i].read || h.taken[i].name == s.snapshotName
			}
			return nil
		}
	}
	return fmt.Errorf("mount the snapshot %s/%s (%s): %w", s.origin.vg, s.snapshotName, fs, err)
}

// mountOptions are what snapshots of a kind of file system are mounted with, one
// after the other. XFS mounts no two of one UUID unless it is told to. Device
// mapper freezes a file system while a snapshot of it is taken, so a journal that
// cannot be replayed, on what cannot be written to, holds nothing that is missed.
func mountOptions(fs string) []string {
	switch fs {
	case "xfs":
		return []string{"nouuid", "nouuid,norecovery"}
	case "ext3", "ext4":
		return []string{"", "noload"}
	}
	return []string{""}
}

// look puts the view together.
func (h *holder) look(systems []*filesystem) error {
	top := h.at("view")
	if err := os.Mkdir(top, 0o700); err != nil {
		return err
	}
	by := map[string]*filesystem{}
	for _, s := range systems {
		by[s.dev] = s
	}
	for i := range h.plan.Parts {
		p := &h.plan.Parts[i]
		s := by[p.Dev]
		held := s != nil && s.how != "" && s.why == ""
		if p.Nested && (!held || p.gone) {
			continue
		}
		source := ""
		switch {
		case !held || !p.Read:
		case s.btrfs != nil:
			if _, ok := s.btrfs.taken[p.sub]; ok {
				source = path.Join(s.btrfs.snapshot(p.sub), p.rest)
			}
		default:
			source = path.Join(s.mounted, p.Root)
		}
		err := h.put(source, p.Path)
		if err != nil && (p.Read || !errors.Is(err, unix.ENOENT)) {
			return fmt.Errorf("put %s in its place: %w (what is mounted may have changed at this moment: capture again)", path.Join(h.plan.Root, p.Path), err)
		}
	}
	// What is mounted from now on is not to be seen there.
	if err := unix.Mount("", top, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep the view as it is: %w", err)
	}
	return nil
}

// put binds a source, or what is mounted live at the same place, into the view.
// Users may own directories on the way there, and have put links in the place of
// them since the plan was made: none is followed.
func (h *holder) put(source, at string) error {
	top := h.at("view")
	into, err := openBeneath(top, at)
	if err != nil {
		return err
	}
	defer unix.Close(into)
	if source == "" {
		from, err := openBeneath(h.plan.Root, at)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		source = descriptor(from)
	}
	if err := unix.Mount(source, descriptor(into), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	h.mounts = append(h.mounts, path.Join(top, at))
	return nil
}

func descriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// openBeneath opens a directory below another without following a link (openat2(2),
// Linux 5.6; before that, there is no way to do so).
func openBeneath(dir, at string) (int, error) {
	top, err := openDir(dir)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(top, at, &how)
	if err == unix.ENOSYS {
		fd, err = unix.Openat(top, at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path.Join(dir, at), Err: err}
	}
	return fd, nil
}

// openFrozen opens what is to be frozen on demand.
func (h *holder) openFrozen(systems []*filesystem, ready *word) error {
	h.frozen = map[string]*frozenFS{}
	for _, f := range h.plan.Freeze {
		for _, s := range systems {
			for _, p := range s.parts {
				if p.Path != f.Path || p.ReadOnly || s.how != "" && s.why == "" {
					continue
				}
				dir := path.Join(h.plan.Root, p.Path)
				fd, err := openDir(dir)
				if err != nil {
					return err
				}
				var st unix.Stat_t
				if err := unix.Fstat(fd, &st); err != nil {
					return &os.PathError{Op: "stat", Path: dir, Err: err}
				}
				h.frozen[f.Path] = &frozenFS{freeze: f, fd: fd, dev: st.Dev}
				ready.Live = append(ready.Live, live{f.Path, st.Dev})
			}
		}
	}
	return nil
}

// tell makes the notes on what is read from where.
func (h *holder) tell(systems []*filesystem, ready *word) error {
	if h.plan.Mode == imaging.SnapshotOff {
		return nil
	}
	for _, s := range systems {
		for _, p := range s.parts {
			switch {
			case p.Nested || p.ReadOnly:
			case s.why == "":
				ready.Notes = append(ready.Notes, imaging.Note{Path: p.Path, Kind: imaging.NoteSnapshot, Detail: s.how})
			case h.frozen[p.Path] == nil:
				ready.Notes = append(ready.Notes, imaging.Note{Path: p.Path, Kind: imaging.NoteLive, Detail: s.why})
			}
		}
		if s.btrfs == nil || s.why != "" {
			continue
		}
		for sub := range s.btrfs.taken {
			var st unix.Stat_t
			if err := unix.Stat(s.btrfs.snapshot(sub), &st); err != nil {
				return &os.PathError{Op: "stat", Path: s.btrfs.snapshot(sub), Err: err}
			}
			ready.Stubs = append(ready.Stubs, st.Dev)
		}
	}
	return nil
}
