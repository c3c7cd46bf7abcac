package main

import (
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/imaging/snapshot"
)

// consistency is what the flags say of keeping still what is read.
func (o *captureFlags) consistency() (c imaging.Consistency, err error) {
	if o.snapshot != "" {
		if err := c.Snapshot.UnmarshalText([]byte(o.snapshot)); err != nil {
			return c, usagef("give off, auto or require", "--snapshot: %v", err)
		}
	}
	for _, dir := range o.freeze {
		if !path.IsAbs(dir) {
			return c, usagef("give the host's mount point: --freeze /srv/db", "--freeze: %q is not an absolute path", dir)
		}
		c.Freeze = append(c.Freeze, path.Clean(dir))
	}
	if o.freezeFor == "" {
		return c, nil
	}
	c.FreezeFor, err = time.ParseDuration(o.freezeFor)
	if err != nil || c.FreezeFor < imaging.MinFreeze || c.FreezeFor > imaging.MaxFreeze {
		return c, usagef("give a time as 30s, 10m at most: all who write there wait for so long", "--freeze-for: %q is no time to freeze a file system for", o.freezeFor)
	}
	return c, nil
}

// keepCommand is the command that this program starts itself with to keep
// snapshots.
const keepCommand = "keep-snapshots"

// localSource is this machine's tree.
func localSource(o *captureFlags) imaging.Source {
	k := &snapshot.Keeper{Command: []string{"/proc/self/exe", keepCommand}}
	if o.state != "" {
		if dir, err := filepath.Abs(o.state); err == nil {
			k.Needs = []string{dir}
		}
	}
	return imaging.NewLocal(o.root, imaging.WithAround(k.Around))
}

// newKeep is the process beside a capture of this machine that has its
// snapshots, and gives them back whatever becomes of the capture.
func newKeep() *cobra.Command {
	return &cobra.Command{
		Use:    keepCommand,
		Short:  "Keep the snapshots of a capture of this machine",
		Long:   "This is what doppel starts itself with, beside a capture that takes snapshots.",
		Hidden: true,
		Args:   exactArgs(),
		RunE:   func(*cobra.Command, []string) error { return snapshot.Keep() },
	}
}

// printConsistency prints how what was read was kept still.
func printConsistency(section func(string, []string), notes []imaging.Note) {
	for _, s := range []struct {
		kind  imaging.NoteKind
		title string
	}{
		{imaging.NoteSnapshot, "read from snapshots"},
		{imaging.NoteFrozen, "frozen while they were read"},
		{imaging.NoteLive, "read live, as there was no snapshot"},
		{imaging.NoteThawed, "not wholly read while they were frozen"},
		{imaging.NoteLeft, "left behind"},
	} {
		var list []string
		for _, n := range notes {
			if n.Kind == s.kind {
				list = append(list, path.Join("/", n.Path)+"  "+n.Detail)
			}
		}
		section(s.title, list)
	}
}

// logConsistency says what did not go as it was asked for, where nobody sees the
// report.
func logConsistency(notes []imaging.Note) {
	for _, n := range notes {
		if n.Kind == imaging.NoteThawed || n.Kind == imaging.NoteLeft {
			newLog(os.Stderr).Warn("keeping still what is captured", "path", path.Join("/", n.Path), "what", string(n.Kind), "why", n.Detail)
		}
	}
}
