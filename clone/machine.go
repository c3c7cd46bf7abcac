package clone

import (
	"context"
	"io"

	"doppel/imaging"
)

// Machine is what an install needs of the machine it runs on. Linux is the
// real one; a Recorder prints what would have been done.
type Machine interface {
	// ReadTable tells the disk's partition table as it is written now; nil
	// when it has no valid GPT.
	ReadTable(ctx context.Context, disk string) (*PartitionTable, error)
	// WriteTable wipes what the disk begins and ends with, and every plan
	// partition's beginning, then writes the plan's table with the plan's id
	// as its GUID.
	WriteTable(ctx context.Context, plan *Plan) error
	// OpenPartitions makes the kernel show exactly the plan's partitions, and
	// returns when the node of each is there.
	OpenPartitions(ctx context.Context, plan *Plan) error
	// ReadRecord and WriteRecord keep which of the plan's partitions have
	// been formatted, on the disk itself. A disk without a record of this
	// plan has an empty one.
	ReadRecord(ctx context.Context, plan *Plan) (Record, error)
	WriteRecord(ctx context.Context, plan *Plan, r Record) error
	// FileSystem tells what is on a partition; nil when nothing that doppel
	// knows.
	FileSystem(ctx context.Context, part string) (*imaging.FileSystem, error)
	// Mount and Unmount work on directories of the installer's own tree.
	Mount(ctx context.Context, mt Mount) error
	Unmount(ctx context.Context, dir string) error
	// Devices makes DIR/dev hold what programs expect there: the usual
	// character devices, the plan's disk and partitions, and their links
	// below dev/disk. With it go proc, sys and run.
	Devices(ctx context.Context, plan *Plan, dir string) error
	// Run runs a program with dir as its root directory.
	Run(ctx context.Context, cmd Command) error
	// BootEntry adds, or renews, the firmware's boot entry for the plan's
	// ESP, right behind the one that the machine was started from.
	BootEntry(ctx context.Context, plan *Plan, e BootEntry) error
	// Sync makes all that was written durable.
	Sync(ctx context.Context) error
}

// PartitionTable is a partition table as read from a disk.
type PartitionTable struct {
	GUID       string
	Partitions []Partition // without FS
}

// Mount is one file system to mount.
type Mount struct {
	Source  string // device, or none for virtual ones
	Dir     string
	Type    string
	Options string // as mount(8) takes them; what belongs to fstab alone is left out
}

// Command is a program to run beneath a root directory.
type Command struct {
	Root  string
	Args  []string
	Env   []string // besides PATH and LC_ALL
	Stdin io.Reader
	Hide  []string // files, as paths beneath Root, that the program does not find to be any
}

// BootEntry is a firmware boot entry (UEFI Boot####).
type BootEntry struct {
	Label     string
	Partition int    // number of the ESP in the plan
	Loader    string // path on the ESP, with slashes
}

// Record says which of a plan's partitions were wholly formatted.
type Record struct {
	Plan      string   `json:"plan"`
	Formatted []string `json:"formatted"` // partition GUIDs
}
