package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"doppel/imaging"

	"golang.org/x/sys/unix"
)

// plan is what a keeper is asked for. Its paths are absolute, or from Root.
type plan struct {
	Root   string               `json:"root"` // empty: only what dead owners have left is to be removed
	Mode   imaging.SnapshotMode `json:"mode"`
	Parts  []part               `json:"parts"`
	Freeze []freeze             `json:"freeze"`
}

// part is a mount of the plan, or a btrfs subvolume that is nested in one.
type part struct {
	imaging.Part
	Nested bool `json:"nested,omitempty"` // in the part before it that is none
	// Boot: it holds what only firmware and boot loaders read.
	Boot bool `json:"boot,omitempty"`
	// Freeze: it is frozen while it is read, where there is no snapshot.
	Freeze bool `json:"freeze,omitempty"`

	// What the keeper finds out about one on btrfs.
	sub, rest string // the subvolume's path from the top level, and where in it
	gone      bool   // removed since
}

// freeze is a file system to freeze on demand.
type freeze struct {
	Path string        `json:"path"` // of the plan's part
	For  time.Duration `json:"for"`
}

// maxNested bounds how many subvolumes are snapshotted.
const maxNested = 1000

// makePlan looks at what a scan comes to.
func (k *Keeper) makePlan(ctx context.Context, mounts *imaging.Mounts, req imaging.ScanRequest) (*plan, error) {
	parts, entered, err := mounts.Parts(req)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("the mount table does not tell what %s is on", mounts.Root())
	}
	p := &plan{Root: mounts.Root(), Mode: req.Consistency.Snapshot}
	mounted := map[string]bool{}
	for _, point := range mounts.Points() {
		mounted[point] = true
	}
	for _, m := range parts {
		p.Parts = append(p.Parts, part{Part: m, Boot: isBoot(p.Root, m.Path)})
		if m.FS != "btrfs" || !m.Read || p.Mode == imaging.SnapshotOff {
			continue
		}
		nested, err := nestedSubvolumes(ctx, p.Root, m, mounted, func(path string) bool { return entered(path) && !req.OneFileSystem })
		if err != nil {
			return nil, fmt.Errorf("list the subvolumes below %s: %w", path.Join(p.Root, m.Path), err)
		}
		p.Parts = append(p.Parts, nested...)
		if len(p.Parts) > maxNested {
			return nil, fmt.Errorf("there are more than %d subvolumes below %s (leave those out that are backups: --exclude '.snapshots/*')", maxNested, path.Join(p.Root, m.Path))
		}
	}
	return p, k.planFreezes(mounts, p, &req.Consistency)
}

// isBoot tells whether a part holds what is read when the machine starts and
// hardly ever written. It is usually on a partition of its own that can have no
// snapshot: nobody means that one by requiring them.
func isBoot(root, p string) bool {
	if root != "/" {
		return false
	}
	first, _, _ := strings.Cut(p, "/")
	return first == "boot" || first == "efi"
}

// planFreezes finds the parts that are to be frozen, and refuses those that
// must not be.
func (k *Keeper) planFreezes(mounts *imaging.Mounts, p *plan, c *imaging.Consistency) error {
	if len(c.Freeze) == 0 {
		return nil
	}
	bound := c.FreezeFor
	if bound == 0 {
		bound = imaging.DefaultFreeze
	}
	if bound < imaging.MinFreeze || bound > imaging.MaxFreeze {
		return fmt.Errorf("%v is no time to freeze a file system for: give %v to %v", bound, imaging.MinFreeze, imaging.MaxFreeze)
	}
	needs, err := k.needs(mounts)
	if err != nil {
		return err
	}
	for _, dir := range c.Freeze {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return fmt.Errorf("freeze %s: %w", dir, err)
		}
		i := slices.IndexFunc(p.Parts, func(e part) bool { return path.Join(p.Root, e.Path) == real && !e.Nested })
		switch {
		case !path.IsAbs(dir):
			return fmt.Errorf("freeze %s: it is no absolute path", dir)
		case i < 0:
			return fmt.Errorf("freeze %s: no file system of the tree is mounted there (findmnt --target %s shows where)", dir, dir)
		case !p.Parts[i].Read:
			return fmt.Errorf("freeze %s: the capture leaves out what is in it", dir)
		case p.Parts[i].FS == "btrfs":
			return fmt.Errorf("freeze %s: it is btrfs, which has snapshots: capture with --snapshot auto instead", dir)
		case needs[p.Parts[i].Dev] != "":
			return fmt.Errorf("freeze %s: %s is on that file system, which the capture and logins need: it would wait for itself", dir, needs[p.Parts[i].Dev])
		case p.Parts[i].Freeze:
			continue
		}
		p.Parts[i].Freeze = true
		p.Freeze = append(p.Freeze, freeze{Path: p.Parts[i].Path, For: bound})
	}
	return nil
}

// needed are what writes or waits somewhere while a capture goes on: this
// process, sshd, syslog, PAM.
var needed = [...]string{"/", "/dev", "/etc", "/root", "/run", "/tmp", "/usr", "/var", "/var/lib", "/var/log", "/var/run", "/var/spool", "/var/tmp"}

// needs finds the file systems that must not be frozen: by their device, what
// is on them.
func (k *Keeper) needs(mounts *imaging.Mounts) (map[string]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := imaging.ReadMounts(f, "/")
	if err != nil {
		return nil, err
	}
	list := slices.Concat(needed[:], k.Needs)
	if exe, err := os.Executable(); err == nil {
		list = append(list, exe)
	}
	if wd, err := os.Getwd(); err == nil {
		list = append(list, wd)
	}
	out := map[string]string{}
	for _, p := range list {
		if real, err := filepath.EvalSymlinks(p); err == nil {
			out[all.Device(real)] = p
		}
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, e := range open {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || !path.IsAbs(name) || strings.HasPrefix(name, "/dev/") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/self/fd/"+e.Name(), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			if dev := all.Device(name); out[dev] == "" {
				out[dev] = name
			}
		}
	}
	return out, nil
}

// nestedSubvolumes lists the subvolumes within a btrfs part that are seen
// there: a snapshot has empty directories in their place.
func nestedSubvolumes(ctx context.Context, root string, m imaging.Part, mounted map[string]bool, entered func(string) bool) ([]part, error) {
	var out []part
	todo := []string{""}
	for len(todo) > 0 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		at := todo[0]
		todo = todo[1:]
		dir := path.Join(root, m.Path, at)
		below, err := childSubvolumes(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		for _, name := range below {
			rest := path.Join(at, name)
			rel := path.Join(m.Path, rest)
			// Something may be mounted on it, or on a directory that leads to it.
			covered := false
			for p := rel; p != m.Path && p != "."; p = path.Dir(p) {
				covered = covered || mounted[p]
			}
			if covered || !entered(path.Dir(rel)) || isOwn(name) {
				continue
			}
			e := part{Part: m, Nested: true}
			e.Path, e.Root, e.Read = rel, path.Join(m.Root, rest), entered(rel)
			out = append(out, e)
			if e.Read {
				todo = append(todo, rest)
			}
			if len(out) > maxNested {
				return out, nil
			}
		}
	}
	return out, nil
}
