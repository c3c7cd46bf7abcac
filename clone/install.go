package clone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"doppel/imaging"
)

// InstallOptions are what an install needs besides its plan.
type InstallOptions struct {
	// Work is a directory in memory: the tools go to Work/tools, the node's
	// tree is mounted at Work/target.
	Work string
	// Agent is the content of /usr/lib/doppel/doppel-agent on the node.
	Agent []byte
	// Certificate asks for the node's own credentials. It is called once,
	// when all else is in place.
	Certificate func(ctx context.Context) (Credentials, error)
	// Permit is asked right before the disk is first written, whether it
	// still may be; it waits for the answer as long as it takes, and an error
	// ends the install with the disk as it was. Nil: it may.
	Permit func(ctx context.Context) error
	// Report takes the stages as they come; it must not block for long.
	// StageFailed and StageFinish are the caller's to send: Install returns
	// its error, or nil when all is durable and unmounted.
	Report func(Report)
	Log    *slog.Logger
}

// Credentials are what an installed node proves itself with, all PEM.
type Credentials struct {
	Certificate []byte
	Key         []byte
	CA          []byte
}

// StageError is an install's failure: where, and why.
type StageError struct {
	Stage Stage
	Err   error
}

func (e *StageError) Error() string { return string(e.Stage) + ": " + e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }

// Install carries out a plan on m. Doing it again after any interruption
// continues where it stopped and comes to the same. Its error is a
// *StageError; whatever it is, nothing stays mounted.
func Install(ctx context.Context, m Machine, plan *Plan, image *imaging.Manifest, chunks imaging.ChunkSource, o InstallOptions) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	in := &install{
		m: m, plan: plan, image: image, chunks: chunks, o: o,
		tools:  filepath.Join(o.Work, "tools"),
		target: filepath.Join(o.Work, "target"),
		index:  manifestIndex{&image.List},
	}
	for _, s := range []struct {
		stage Stage
		do    func(context.Context) error
	}{
		{StageTools, in.restoreTools},
		{StagePartition, in.partition},
		{StageFormat, in.format},
		{StageApply, in.apply},
		{StageIdentity, in.identity},
		{StageBootloader, in.bootloader},
		{StageAgent, in.agent},
	} {
		in.report(s.stage, "", 0, 0)
		err := context.Cause(ctx) // not every step of a stage looks at it
		if err == nil {
			err = s.do(ctx)
		}
		if err != nil {
			in.unmountAll(context.WithoutCancel(ctx), s.stage)
			return &StageError{Stage: s.stage, Err: err}
		}
	}
	if err := in.close(ctx); err != nil {
		return &StageError{Stage: StageAgent, Err: err}
	}
	return nil
}

// install is one run of an install.
type install struct {
	m       Machine
	plan    *Plan
	image   *imaging.Manifest
	chunks  imaging.ChunkSource
	o       InstallOptions
	index   manifestIndex
	tools   string // root directory of the tools
	target  string // root directory of the node's tree
	libs    string // LD_LIBRARY_PATH of the tools
	resumed bool   // the disk carried this install already
	mounted []string
}

func (in *install) report(s Stage, detail string, done, total int64) {
	if in.o.Report != nil {
		in.o.Report(Report{Install: in.plan.ID, Stage: s, Detail: detail, Done: done, Total: total})
	}
}

func (in *install) partition(ctx context.Context) error {
	have, err := in.m.ReadTable(ctx, in.plan.Disk.Path)
	if err != nil {
		return err
	}
	if in.o.Permit != nil {
		if err := in.o.Permit(ctx); err != nil {
			return err
		}
	}
	in.resumed = have != nil && strings.EqualFold(have.GUID, in.plan.ID) && sameTable(have.Partitions, in.plan.Partitions)
	if !in.resumed {
		if err := in.m.WriteTable(ctx, in.plan); err != nil {
			return err
		}
	}
	return in.m.OpenPartitions(ctx, in.plan)
}

// sameTable tells whether a table on a disk is the plan's. Tables are in order
// of number, plans in order of place.
func sameTable(have, want []Partition) bool {
	if len(have) != len(want) {
		return false
	}
	for _, w := range want {
		if !slices.ContainsFunc(have, func(h Partition) bool {
			return h.Number == w.Number && h.Start == w.Start && h.Size == w.Size && h.Attributes == w.Attributes &&
				strings.EqualFold(h.Type, w.Type) && strings.EqualFold(h.GUID, w.GUID) && h.Name == tableName(w.Name)
		}) {
			return false
		}
	}
	return true
}

func (in *install) format(ctx context.Context) error {
	rec, err := in.m.ReadRecord(ctx, in.plan)
	if err != nil {
		return err
	}
	if err := in.devices(ctx, in.tools); err != nil {
		return err
	}
	for _, p := range in.plan.Partitions {
		if p.FS == nil {
			continue
		}
		node := PartitionPath(in.plan.Disk.Path, p.Number)
		if slices.Contains(rec.Formatted, p.GUID) {
			// The record says that mkfs came to its end; what is there must
			// still be it.
			have, err := in.m.FileSystem(ctx, node)
			if err != nil {
				return err
			}
			if have != nil && have.Type == p.FS.Type && strings.EqualFold(have.UUID, p.FS.UUID) {
				continue
			}
		}
		in.report(StageFormat, fmt.Sprintf("%s on %s", p.FS.Type, node), 0, 0)
		args, err := in.formatCommand(p.FS, node)
		if err != nil {
			return err
		}
		if err := in.run(ctx, in.tools, args); err != nil {
			return err
		}
		rec.Formatted = append(rec.Formatted, p.GUID)
		if err := in.m.WriteRecord(ctx, in.plan, rec); err != nil {
			return err
		}
	}
	return in.unmountBelow(ctx, in.tools)
}

// apply mounts the plan's file systems and makes them the image.
func (in *install) apply(ctx context.Context) error {
	if err := in.mountTarget(ctx); err != nil {
		return err
	}
	kept := make(map[string]bool)
	for _, p := range in.plan.Partitions {
		if p.FS != nil && p.FS.Mount != "" {
			// fsck needs the directory of an ext file system that mkfs made.
			kept[strings.TrimPrefix(path.Join(p.FS.Mount, "lost+found"), "/")] = true
		}
	}
	rep, err := imaging.Apply(ctx, in.image, in.chunks, in.target, imaging.ApplyOptions{
		Delete: true,
		// After a power cut, size and time of a file say nothing about
		// whether its bytes reached the disk.
		Full: in.resumed,
		Skip: func(p string) bool { return kept[p] },
		Progress: func(p imaging.ApplyProgress) {
			in.report(StageApply, fmt.Sprintf("%d of %d files", p.Files, p.FilesTotal), p.Bytes, p.BytesTotal)
		},
		Log: in.o.Log,
	})
	if err != nil {
		return err
	}
	for _, l := range rep.Losses {
		in.o.Log.Warn("could not be set on the node", "path", l.Path, "what", l.What, "reason", l.Reason)
	}
	return nil
}

// mountTarget mounts the plan's file systems at their places below target, the
// shallow ones first.
func (in *install) mountTarget(ctx context.Context) error {
	var parts []Partition
	for _, p := range in.plan.Partitions {
		if p.FS != nil && p.FS.Mount != "" && p.FS.Type != "swap" {
			parts = append(parts, p)
		}
	}
	slices.SortStableFunc(parts, func(a, b Partition) int {
		return strings.Compare(path.Clean(a.FS.Mount), path.Clean(b.FS.Mount))
	})
	if len(parts) == 0 || parts[0].FS.Mount != "/" {
		return errors.New("the plan has no root file system")
	}
	for _, p := range parts {
		dir := filepath.Join(in.target, p.FS.Mount)
		mt := Mount{Source: PartitionPath(in.plan.Disk.Path, p.Number), Dir: dir, Type: p.FS.Type}
		if p.FS.Type == "vfat" {
			mt.Options = vfatOptions(p.FS.Options)
		}
		if err := in.m.Mount(ctx, mt); err != nil {
			return err
		}
		in.mounted = append(in.mounted, dir)
	}
	return nil
}

// vfatOptions are those of an fstab that say how owners and modes of a FAT
// file system look, so that it looks to Apply as it did to the capture. Those
// of other file systems change nothing that an install writes.
func vfatOptions(fstab string) string {
	var keep []string
	for o := range strings.SplitSeq(fstab, ",") {
		name, _, _ := strings.Cut(o, "=")
		switch name {
		case "umask", "fmask", "dmask", "uid", "gid", "shortname", "utf8", "iocharset", "codepage", "tz", "time_offset":
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

func (in *install) identity(context.Context) error {
	return WriteIdentity(in.target, in.plan, in.image)
}

// virtual are the directories that Devices mounts on.
var virtual = []string{"dev", "proc", "sys", "run"}

// devices gives a root directory its /dev, /proc, /sys and /run until
// unmountBelow.
func (in *install) devices(ctx context.Context, dir string) error {
	for _, d := range virtual {
		in.mounted = append(in.mounted, filepath.Join(dir, d))
	}
	return in.m.Devices(ctx, in.plan, dir)
}

func (in *install) run(ctx context.Context, root string, args []string) error {
	c := Command{Root: root, Args: args}
	if root == in.tools && in.libs != "" {
		c.Env = []string{"LD_LIBRARY_PATH=" + in.libs}
	}
	return in.m.Run(ctx, c)
}

// unmountBelow unmounts what devices mounted below dir.
func (in *install) unmountBelow(ctx context.Context, dir string) error {
	for i := len(in.mounted) - 1; i >= 0; i-- {
		if filepath.Dir(in.mounted[i]) != dir || !slices.Contains(virtual, filepath.Base(in.mounted[i])) {
			continue
		}
		if err := in.m.Unmount(ctx, in.mounted[i]); err != nil {
			return err
		}
		in.mounted = slices.Delete(in.mounted, i, i+1)
	}
	return nil
}

// unmountAll takes down what a stage that failed left.
func (in *install) unmountAll(ctx context.Context, s Stage) {
	for i := len(in.mounted) - 1; i >= 0; i-- {
		if err := in.m.Unmount(ctx, in.mounted[i]); err != nil {
			in.o.Log.Warn("could not be unmounted", "stage", string(s), "error", err)
		}
	}
	in.mounted = nil
}

// close makes all of it durable.
func (in *install) close(ctx context.Context) error {
	if err := in.m.Sync(ctx); err != nil {
		return err
	}
	for i := len(in.mounted) - 1; i >= 0; i-- {
		if err := in.m.Unmount(ctx, in.mounted[i]); err != nil {
			in.mounted = in.mounted[:i+1]
			return err
		}
	}
	in.mounted = nil
	return in.m.Sync(ctx)
}
