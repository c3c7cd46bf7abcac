package clone

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"doppel/imaging"
)

// Recorder is a Machine that does nothing to any disk: it writes down, one
// line each, what would have been done, and remembers it, so that an install
// can be interrupted and continued on it. What an install writes into the
// node's tree goes into a plain directory.
type Recorder struct {
	Out io.Writer
	// Before is asked before each step with its line; its error ends the
	// step, which is then not done. Nil: every step is done.
	Before func(step string) error
	// Ran is called for each program, to do what the program would have done
	// to the tree. Nil: nothing.
	Ran func(c Command) error

	table   *PartitionTable
	record  Record
	systems map[string]*imaging.FileSystem
}

var _ Machine = (*Recorder)(nil)

func (r *Recorder) step(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if r.Before != nil {
		if err := r.Before(line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(r.Out, line)
	return err
}

func (r *Recorder) ReadTable(context.Context, string) (*PartitionTable, error) { return r.table, nil }

func (r *Recorder) WriteTable(_ context.Context, plan *Plan) error {
	if err := r.step("partition %s as %s", plan.Disk.Path, plan.ID); err != nil {
		return err
	}
	r.table = &PartitionTable{GUID: plan.ID}
	for _, p := range plan.Partitions {
		p.FS = nil
		r.table.Partitions = append(r.table.Partitions, p)
	}
	r.record, r.systems = Record{}, make(map[string]*imaging.FileSystem)
	return nil
}

func (r *Recorder) OpenPartitions(_ context.Context, plan *Plan) error {
	return r.step("show the partitions of %s", plan.Disk.Path)
}

func (r *Recorder) ReadRecord(_ context.Context, plan *Plan) (Record, error) {
	if r.record.Plan != plan.ID {
		return Record{Plan: plan.ID}, nil
	}
	return Record{Plan: plan.ID, Formatted: slices.Clone(r.record.Formatted)}, nil
}

func (r *Recorder) WriteRecord(_ context.Context, _ *Plan, rec Record) error {
	if err := r.step("record %d formatted", len(rec.Formatted)); err != nil {
		return err
	}
	r.record = Record{Plan: rec.Plan, Formatted: slices.Clone(rec.Formatted)}
	return nil
}

func (r *Recorder) FileSystem(_ context.Context, part string) (*imaging.FileSystem, error) {
	return r.systems[part], nil
}

func (r *Recorder) Mount(_ context.Context, mt Mount) error {
	line := fmt.Sprintf("mount %s %s on %s", mt.Type, mt.Source, mt.Dir)
	if mt.Options != "" {
		line += " with " + mt.Options
	}
	if err := r.step("%s", line); err != nil {
		return err
	}
	return os.MkdirAll(mt.Dir, 0o755)
}

func (r *Recorder) Unmount(_ context.Context, dir string) error { return r.step("unmount %s", dir) }

func (r *Recorder) Devices(_ context.Context, _ *Plan, dir string) error {
	return r.step("devices in %s", dir)
}

func (r *Recorder) Run(_ context.Context, c Command) error {
	line := fmt.Sprintf("run in %s: %s", c.Root, strings.Join(c.Args, " "))
	if len(c.Hide) > 0 {
		line += ", without " + strings.Join(c.Hide, ", ")
	}
	if err := r.step("%s", line); err != nil {
		return err
	}
	if kind, ok := strings.CutPrefix(path.Base(c.Args[0]), "mk"); ok && len(c.Args) > 1 {
		r.format(kind, c.Args[1:])
	}
	if r.Ran == nil {
		return nil
	}
	return r.Ran(c)
}

// format remembers what a mkfs or mkswap makes, by its arguments.
func (r *Recorder) format(kind string, args []string) {
	found := &imaging.FileSystem{Type: strings.TrimPrefix(kind, "fs.")}
	for i, a := range args[:len(args)-1] {
		value := args[i+1]
		switch a {
		case "-U":
			found.UUID = value
		case "-i":
			if found.Type == "vfat" {
				found.UUID = value[:4] + "-" + value[4:]
			}
		case "-m":
			if id, ok := strings.CutPrefix(value, "uuid="); ok {
				found.UUID = id
			}
		}
	}
	r.systems[args[len(args)-1]] = found
}

func (r *Recorder) BootEntry(_ context.Context, plan *Plan, e BootEntry) error {
	return r.step("boot entry %q: partition %d, %s", e.Label, e.Partition, e.Loader)
}

func (r *Recorder) Sync(context.Context) error { return r.step("sync") }
