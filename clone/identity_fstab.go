package clone

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"doppel/imaging"
)

func (w *identity) fstab() error {
	old, err := w.read("etc/fstab")
	if err != nil {
		return err
	}
	return w.write("etc/fstab", rewriteFstab(old, w.plan), 0o644)
}

// rewriteFstab makes the head's fstab the node's. Lines that name one of the
// plan's file systems, and those that name no disk at all (tmpfs, NFS, files),
// stay as they are, so that a double with the head's layout has the head's
// fstab byte for byte. A line for a mount point of the plan that names a device
// by what it is not called here is given its UUID; a line for a disk that this
// machine does not have becomes a remark, since systemd would wait for that
// disk at every boot. What the plan mounts and no line names is added.
func rewriteFstab(old []byte, plan *Plan) []byte {
	var out strings.Builder
	done := make(map[int]bool)
	for line := range strings.Lines(string(old)) {
		line = strings.TrimRight(line, "\n")
		e, ok := imaging.ParseFstabLine(line)
		if !ok {
			fmt.Fprintln(&out, line)
			continue
		}
		if p := namedPartition(plan, e); p != nil && !done[p.Number] {
			done[p.Number] = true
			fmt.Fprintln(&out, line)
			continue
		}
		if !namesDisk(e) {
			fmt.Fprintln(&out, line)
			continue
		}
		if p := mountedPartition(plan, e, done); p != nil {
			done[p.Number] = true
			options := p.FS.Options
			if e.Type == p.FS.Type {
				options = e.Options // those of another type would keep it from being mounted
			}
			fmt.Fprintln(&out, fstabLine(p.FS, options))
			continue
		}
		fmt.Fprintln(&out, "# not on this machine: "+line)
	}
	var missing []*imaging.FileSystem
	for i := range plan.Partitions {
		p := &plan.Partitions[i]
		if p.FS != nil && !done[p.Number] && (p.FS.Mount != "" || p.FS.Type == "swap") {
			missing = append(missing, p.FS)
		}
	}
	// The root before what is mounted in it, swap behind.
	slices.SortStableFunc(missing, func(a, b *imaging.FileSystem) int {
		return strings.Compare(cmp.Or(a.Mount, "swap"), cmp.Or(b.Mount, "swap"))
	})
	for _, fs := range missing {
		fmt.Fprintln(&out, fstabLine(fs, fs.Options))
	}
	return []byte(out.String())
}

// namedPartition finds the plan's partition that an entry names by something
// that is true on this machine, and mounts where the plan says.
func namedPartition(plan *Plan, e imaging.FstabEntry) *Partition {
	for i := range plan.Partitions {
		p := &plan.Partitions[i]
		l := imaging.LayoutPartition{GUID: p.GUID, Name: p.Name, FS: p.FS}
		if p.FS != nil && e.Names(l) {
			return p
		}
	}
	return nil
}

// namesDisk tells whether an entry is about a block device of this machine.
func namesDisk(e imaging.FstabEntry) bool {
	tag, _, ok := strings.Cut(e.Spec, "=")
	return ok && slices.Contains([]string{"UUID", "LABEL", "PARTUUID", "PARTLABEL", "ID"}, tag) || strings.HasPrefix(e.Spec, "/dev/")
}

// mountedPartition finds the plan's partition that belongs where an entry
// mounts something under another name.
func mountedPartition(plan *Plan, e imaging.FstabEntry, done map[int]bool) *Partition {
	for i := range plan.Partitions {
		p := &plan.Partitions[i]
		if p.FS == nil || done[p.Number] {
			continue
		}
		if p.FS.Type == "swap" && e.Type == "swap" || p.FS.Mount != "" && p.FS.Mount == e.Dir {
			return p
		}
	}
	return nil
}

func fstabLine(fs *imaging.FileSystem, options string) string {
	if options == "" {
		options = "defaults"
	}
	dir, pass := fs.Mount, 2
	switch {
	case fs.Type == "swap":
		dir, pass = "none", 0
	case fs.Type == "xfs":
		pass = 0 // fsck.xfs does nothing by design
	case fs.Mount == "/":
		pass = 1
	}
	return fmt.Sprintf("UUID=%s %s %s %s 0 %d", fs.UUID, imaging.EscapeFstab(dir), fs.Type, imaging.EscapeFstab(options), pass)
}
