package clone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"doppel/imaging"
)

// UpdateOptions are what an update in place needs besides the plan that the
// node was installed by.
type UpdateOptions struct {
	Root   string // the node's tree; on the node itself /
	Work   string // a directory in memory, for what is made before it replaces something
	Disk   string // the node's disk, as its kernel calls it today
	Orders UpdateOrders
	Own    func(path string) bool    // true: changed on this node and kept as it is, as Orders.Keep has it; nil: nothing is
	Skip   func(path string) bool    // true: not looked at, nor what is below it; nil: nothing
	Report func(Report)              // takes the stages as they come; must not block for long
	Change func(imaging.ApplyChange) // each thing done
	Log    *slog.Logger
}

// Update makes a node that runs equal to an image, in place: what differs is
// replaced, what is right is not touched, and what the image lacks is removed
// last. The node keeps its identity (Table.Keeps) and what the orders say, and
// everything on file systems that the plan does not have. Files whose content
// follows from both, such as /etc/hosts, are written anew.
//
// A kernel of the image is in the boot menu before one that the image lacks is
// removed, so the node starts after a power cut at any instant. Doing it again
// after any interruption, with this version or another, continues from what is
// there. A hook that fails before the apply ends the update with nothing
// touched. Errors are *StageError; a *RefusedError inside says that the image
// is not for this node.
func Update(ctx context.Context, m Machine, plan *Plan, image *imaging.Manifest, chunks imaging.ChunkSource, o UpdateOptions) (*UpdateReport, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := *plan
	p.Disk.Path = o.Disk
	u := &updater{
		install: install{
			m: m, plan: &p, image: image, chunks: chunks, target: o.Root, index: manifestIndex{&image.List},
			o: InstallOptions{Log: o.Log, Report: func(r Report) {
				if r.Install = o.Orders.ID; o.Report != nil {
					o.Report(r)
				}
			}},
		},
		o:      o,
		table:  Identity(plan.Role),
		result: &UpdateReport{Image: o.Orders.Image},
	}
	start := time.Now()
	err := u.run(ctx)
	u.result.Seconds = time.Since(start).Seconds()
	return u.result, err
}

// updater is one run of an update.
type updater struct {
	install
	o      UpdateOptions
	table  Table
	result *UpdateReport
	menu   bool // something that the boot menu says has changed
	loader bool // GRUB itself has changed
	units  bool // systemd is to read its units again
}

func (u *updater) run(ctx context.Context) error {
	orders := u.o.Orders
	always := func() bool { return true }
	for _, s := range []struct {
		stage  Stage
		wanted func() bool
		do     func(context.Context) error
	}{
		{StageCheck, always, u.check},
		{StagePre, func() bool { return orders.Pre != "" }, func(ctx context.Context) error { return u.shell(ctx, orders.Pre) }},
		{StageApply, always, u.apply},
		{StageIdentity, always, u.derive},
		{StageBootloader, func() bool { return (u.menu || u.loader) && !u.leavesBoot() }, u.refreshBoot},
		{StageSettle, always, u.settle},
		{StagePost, func() bool { return orders.Post != "" }, func(ctx context.Context) error { return u.shell(ctx, orders.Post) }},
	} {
		if !s.wanted() {
			continue
		}
		u.report(s.stage, "", 0, 0)
		err := context.Cause(ctx)
		if err == nil {
			err = s.do(ctx)
		}
		if err != nil {
			return &StageError{Stage: s.stage, Err: err}
		}
	}
	return nil
}

// check refuses an image that this node could not run.
func (u *updater) check(context.Context) error {
	if err := checkStart(u.image.Head, u.plan.Firmware); err != nil && (u.plan.Found == nil || !u.keepsBoot()) {
		return err
	}
	if err := u.checkFound(); err != nil {
		return err
	}
	if arch := u.image.Facts.Arch; arch != "" && u.plan.Arch != "" && arch != u.plan.Arch {
		return &RefusedError{What: fmt.Sprintf("%s is of a machine of the kind %s, and %s is one of the kind %s", u.o.Orders.Image, arch, u.plan.Node, u.plan.Arch), Hint: "give an image of a machine of the same kind"}
	}
	here, err := u.osRelease()
	if err != nil {
		return err
	}
	there := u.image.Facts.OSRelease
	for _, key := range []string{"ID", "VERSION_ID"} {
		if u.o.Orders.Force || here == nil || here[key] == there[key] {
			continue
		}
		return &RefusedError{
			What: fmt.Sprintf("%s is %s, and %s runs %s", u.o.Orders.Image, system(there), u.plan.Node, system(here)),
			Hint: "install it with doppel deploy, which erases the disk; or, if the one is to be made the other while it runs, add --force",
		}
	}
	return nil
}

// system names what an os-release(5) is of.
func system(osRelease map[string]string) string {
	if name := osRelease["PRETTY_NAME"]; name != "" {
		return name
	}
	return strings.TrimSpace(osRelease["ID"] + " " + osRelease["VERSION_ID"])
}

// osRelease is the node's own os-release(5); nil when it has none.
func (u *updater) osRelease() (map[string]string, error) {
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := tree.ReadFile(name)
		switch {
		case err == nil:
			return imaging.ParseOSRelease(b), nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return nil, nil
}

// shell runs a command of the operator's on the node.
func (u *updater) shell(ctx context.Context, command string) error {
	return u.m.Run(ctx, Command{Root: u.target, Args: []string{"/bin/sh", "-c", command}})
}

// apply makes the tree the image, but for what is the node's own.
func (u *updater) apply(ctx context.Context) error {
	foreign, err := u.plan.ForeignMounts(u.target)
	if err != nil {
		return err
	}
	paths, extras, err := u.paths(foreign)
	if err != nil {
		return err
	}
	gone, err := u.goners(extras, foreign)
	if err != nil {
		return err
	}
	if err := u.begin(); err != nil {
		return err
	}
	if len(extras) == 0 || len(paths) > 0 {
		if err := u.applyPaths(ctx, paths, foreign, gone); err != nil {
			return err
		}
	} else if err := u.beforeRemovals(ctx, nil, gone); err != nil {
		return err
	}
	return u.remove(ctx, gone)
}

// applyPaths is apply for what the image has: the whole tree, or some paths.
func (u *updater) applyPaths(ctx context.Context, paths []string, foreign map[string]bool, gone []goner) (err error) {
	stay := map[string]bool{} // in /boot; Own and Skip are asked once, before anything has changed
	noted := func(ask func(string) bool, p string) bool {
		if ask == nil || !ask(p) {
			return false
		}
		if path.Dir(p) == "boot" {
			stay[p] = true
		}
		return true
	}
	u.result.Apply, err = imaging.Apply(ctx, u.image, u.chunks, u.target, imaging.ApplyOptions{
		Delete: true, Paths: paths, Full: u.o.Orders.Full, Mounts: u.plan.mounts(),
		Skip: func(p string) bool { return foreign[p] || noted(u.o.Skip, p) },
		Keep: func(p string) bool { return u.keeps(p) || noted(u.o.Own, p) },
		Written: func() error {
			stays := func(p string) bool { return foreign["boot"] || u.keeps(p) || stay[p] }
			return u.beforeRemovals(ctx, u.leaving(paths, stays), gone)
		},
		Change: u.changed,
		Progress: func(p imaging.ApplyProgress) {
			u.report(StageApply, fmt.Sprintf("%d of %d files", p.Files, p.FilesTotal), p.Bytes, p.BytesTotal)
		},
		Log: u.o.Log,
	})
	return err
}

// paths sorts the paths that the orders name into those that the image has, and
// those that are to go.
func (u *updater) paths(foreign map[string]bool) (have, extras []string, err error) {
	for _, p := range u.o.Orders.Paths {
		name := path.Clean("/" + p)[1:]
		if name == "" {
			return nil, nil, nil // everything
		}
		alone := strings.HasSuffix(p, imaging.Alone)
		if err := u.mayChange(name, alone, foreign); err != nil {
			return nil, nil, err
		}
		switch {
		case alone && u.index.has(name):
			have = append(have, name+imaging.Alone)
		case alone:
			return nil, nil, fmt.Errorf("the version has no directory %q", name)
		case u.index.has(name):
			have = append(have, name)
		default:
			extras = append(extras, name)
		}
	}
	return have, extras, nil
}

// mayChange refuses a path that is the node's own, or holds what is not of the
// image, unless it is meant alone.
func (u *updater) mayChange(name string, alone bool, foreign map[string]bool) error {
	if u.keeps(name) {
		return &RefusedError{What: fmt.Sprintf("%q is %s's own", name, u.plan.Node), Hint: "leave it out"}
	}
	for dir, is := range foreign {
		if is && (name == dir || strings.HasPrefix(name, dir+"/") || !alone && strings.HasPrefix(dir, name+"/")) {
			return &RefusedError{What: fmt.Sprintf("%q: on /%s there is a file system that is not of the image", name, dir), Hint: "leave it out, or unmount that"}
		}
	}
	return nil
}

// markName is there from before an update changes anything until all that
// follows from its changes is done.
const markName = nodeDir + "/updating"

// begin leaves the mark. One that is there already is of an update that was
// interrupted: what follows from its changes is still to be done.
func (u *updater) begin() error {
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	if _, err := tree.Lstat(markName); err == nil {
		u.menu, u.loader, u.units = true, true, true
		return nil
	}
	return writeBeneath(tree, markName, []byte(u.o.Orders.Image+"\n"), 0o600)
}

// settle has systemd, if it runs here, read its units again, and takes the mark
// away: nothing is left to follow from the changes.
func (u *updater) settle(ctx context.Context) error {
	tree, err := os.OpenRoot(u.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	if _, err := tree.Lstat("run/systemd/system"); u.units && err == nil {
		if err := u.m.Run(ctx, Command{Root: u.target, Args: []string{"/bin/systemctl", "daemon-reload"}}); err != nil {
			return err
		}
	}
	return tree.Remove(markName)
}

// keeps tells whether the node keeps a path as it is.
func (u *updater) keeps(p string) bool { return u.table.Keeps(p) || u.ordered(p) }

// ordered tells whether the orders have the node keep a path.
func (u *updater) ordered(p string) bool { return MatchAny(u.o.Orders.Keep, p) }

// changed notes what follows from a change.
func (u *updater) changed(c imaging.ApplyChange) {
	switch {
	case strings.HasPrefix(c.Path, "boot/"), strings.HasPrefix(c.Path, "etc/grub.d/"), strings.HasPrefix(c.Path, "etc/default/grub"):
		u.menu = true
	case strings.HasPrefix(c.Path, "usr/lib/grub/"):
		u.loader = true
	case strings.HasPrefix(c.Path, "etc/systemd/"), strings.Contains(c.Path, "lib/systemd/system/"):
		u.units = true
	}
	if u.o.Change != nil {
		u.o.Change(c)
	}
}

// derive writes anew the identity files that follow from the image's.
func (u *updater) derive(ctx context.Context) error {
	var names []string
	for _, r := range u.table.rules {
		if len(u.o.Orders.Paths) > 0 {
			break // they are the node's own
		}
		if r.InPlace == Derived && u.index.has(r.Pattern) && !u.ordered(r.Pattern) {
			names = append(names, r.Pattern)
		}
	}
	var err error
	u.result.Derived, err = u.carry(ctx, names, func(tree *os.Root) error {
		w := &identity{tree: tree, plan: u.plan, image: u.image}
		return errors.Join(w.hosts(), w.passwords())
	})
	return err
}

// carry replaces files of the node by the image's, where they differ, after
// edit, if any, has altered those. It tells which.
func (u *updater) carry(ctx context.Context, names []string, edit func(tree *os.Root) error) (changed []string, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	dir, err := os.MkdirTemp(u.o.Work, "update-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if _, err = imaging.Apply(ctx, u.image, u.chunks, dir, imaging.ApplyOptions{Paths: names, Lossy: true, Log: u.o.Log}); err != nil {
		return nil, err
	}
	from, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	if edit != nil {
		if err := edit(from); err != nil {
			return nil, err
		}
	}
	to, err := os.OpenRoot(u.target)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	for _, name := range names {
		differs, err := carry(from, to, name)
		if err != nil {
			return changed, err
		}
		if !differs {
			continue
		}
		changed = append(changed, name)
		if err := u.setTime(to, path.Dir(name)); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// setTime gives a directory in which something was done the image's time again,
// as if nothing had happened.
func (u *updater) setTime(tree *os.Root, dir string) error {
	e := u.index.entry(dir)
	if e == nil || u.keeps(dir) {
		return nil
	}
	return tree.Chtimes(dir, time.Time{}, time.Unix(e.MTime.Sec, int64(e.MTime.Nsec)))
}

// carry replaces a file of one tree by that of another, if they differ.
func carry(from, to *os.Root, name string) (changed bool, err error) {
	want, err := from.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // withheld from this node
	}
	if err != nil {
		return false, err
	}
	have, err := to.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err == nil && bytes.Equal(have, want) {
		return false, nil
	}
	fi, err := from.Lstat(name)
	if err != nil {
		return false, err
	}
	return true, writeBeneath(to, name, want, fi.Mode().Perm())
}

// ForeignMounts are the paths, below the root of a node's tree, at which
// something is mounted that is none of the plan's file systems.
func (p *Plan) ForeignMounts(root string) (map[string]bool, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer table.Close()
	mounts, err := imaging.ReadMounts(table, root)
	if err != nil {
		return nil, err
	}
	foreign := map[string]bool{}
	for _, dir := range mounts.Points() {
		foreign[dir] = !slices.Contains(p.mounts(), "/"+dir)
	}
	return foreign, nil
}

// mounts are where the plan's file systems are mounted, but for the root.
func (p *Plan) mounts() []string {
	var dirs []string
	for _, part := range p.Partitions {
		if part.FS != nil && path.IsAbs(part.FS.Mount) && part.FS.Mount != "/" {
			dirs = append(dirs, path.Clean(part.FS.Mount))
		}
	}
	return dirs
}
