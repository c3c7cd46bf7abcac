package imaging

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"doppel/imaging/store"
)

// ChunkSource is where Apply gets content from. *store.Vault is one.
type ChunkSource interface {
	// Find gives the number by which the source knows a chunk; not ok: it does
	// not have it. Numbers go from 0 up, without large gaps.
	Find(ref store.Ref) (number uint32, ok bool)
	// StreamNumbers reads each distinct chunk of numbers once, in the order
	// that suits the source, verifies it and gives it to fn, which is called
	// from several goroutines at once and may not keep the bytes. It may
	// change numbers. The first error of fn ends the stream and is returned.
	StreamNumbers(ctx context.Context, numbers []uint32, workers int, fn func(number uint32, b []byte) error) error
}

// Alone ends the path of a directory that is meant without what is in it.
const Alone = "/."

// ApplyOptions say how a tree is to be made equal to a manifest. The zero
// value writes everything that differs and deletes nothing.
type ApplyOptions struct {
	Delete   bool                   // remove what the manifest does not have
	Paths    []string               // only these entries, what is below them, and the directories that lead to them; with Alone at its end, without what is below
	DryRun   bool                   // only say what would be done
	Full     bool                   // read what is there and compare digests, instead of trusting size and mtime
	Lossy    bool                   // as root too, list what cannot be set instead of failing: for trees in memory, whose file system may know no extended attributes
	Skip     func(path string) bool // true: left alone, with all that is below it; neither written nor deleted
	Keep     func(path string) bool // true: left as it is where it is there; of what is not there, directories alone are made. Asked for each path by itself
	Mounts   []string               // mount points below dir, as in /boot, whose file systems belong to the tree: Delete goes there too
	Written  func() error           // called when everything that had to be written is on the disk, before anything is removed; its error ends the apply
	Workers  int                    // 0: as many as there are CPUs
	Progress func(ApplyProgress)    // a few times a second, from one goroutine at a time
	Change   func(ApplyChange)      // each thing done (or, in a dry run, to be done), from one goroutine at a time
	Log      *slog.Logger           // nil: silent
}

// ApplyProgress are running totals.
type ApplyProgress struct {
	Files      int64 `json:"files"` // regular files whole and under their names
	FilesTotal int64 `json:"files_total"`
	Bytes      int64 `json:"bytes"` // of content written
	BytesTotal int64 `json:"bytes_total"`
}

// Act is what Apply does to one path.
type Act string

const (
	ActWrite  Act = "write"  // made, or replaced whole
	ActFix    Act = "fix"    // metadata set, content was right
	ActDelete Act = "delete" // removed
)

// ApplyChange is one thing that Apply does.
type ApplyChange struct {
	Path string `json:"path"`
	Act  Act    `json:"act"`
}

// Loss is something the manifest has and the tree could not take.
type Loss struct {
	Path   string `json:"path"`
	What   string `json:"what"` // owner, mode, mtime, xattr NAME, device, …
	Reason string `json:"reason"`
}

func (l Loss) String() string { return fmt.Sprintf("%q: %s: %s", l.Path, l.What, l.Reason) }

// maxLosses bounds the losses that a report lists; all are counted.
const maxLosses = 100

// ApplyReport says what Apply did. Entries are the sum of Written, Fixed,
// Unchanged, Skipped and Withheld, but for devices that could not be made.
type ApplyReport struct {
	Entries      int64    `json:"entries"`       // of the manifest that were considered
	Written      int64    `json:"written"`       // entries made or replaced
	BytesWritten int64    `json:"bytes_written"` // of content, BytesReused and BytesShared included
	BytesReused  int64    `json:"bytes_reused"`  // that were found in files of the tree itself
	BytesShared  int64    `json:"bytes_shared"`  // of files that share their blocks with an equal one
	Deleted      int64    `json:"deleted"`       // names removed
	Fixed        int64    `json:"fixed"`         // entries whose metadata was set
	Unchanged    int64    `json:"unchanged"`     // entries that were right already
	Skipped      int64    `json:"skipped"`       // entries left alone because Skip or Keep said so
	Withheld     []string `json:"withheld"`      // entries whose content this reader may not have
	Lost         int64    `json:"lost"`          // things that could not be set
	Losses       []Loss   `json:"losses,omitempty"`
	Seconds      float64  `json:"seconds"`
}

// SpaceError says before the first byte that a tree cannot fit.
type SpaceError struct {
	Path   string // the directory whose file system is too small
	Need   int64
	Have   int64
	Inodes bool // Need and Have count inodes, not bytes
}

func (e *SpaceError) Error() string {
	if e.Inodes {
		return fmt.Sprintf("the file system at %s has %d free inodes and %d are needed", e.Path, e.Have, e.Need)
	}
	return fmt.Sprintf("the file system at %s has %d bytes free and %d are needed", e.Path, e.Have, e.Need)
}

// Apply makes the tree beneath dir equal to m, with content from src; dir is
// made if it is not there. On an error the report says what was done up to
// then.
//
// It looks first and decides, and says so when what is to be written cannot
// fit (*SpaceError). A regular file of the right size and time is taken for
// right (with Full, only after reading it), one of the right size and another
// time is read; what is right keeps its inode, and metadata that differs is
// set in place. Everything else is made beside its place under a temporary
// name (.doppel- and 16 hexadecimal digits) and renamed when it is whole. Its
// content comes from the files that give way, as far as it is in them, and
// otherwise in one pass from src, in the order in which src has it. Where the
// file system can, files of equal content share their blocks. What the image
// lacks is removed after that, and directories get their metadata last.
//
// What holds:
//
//   - Nothing outside of dir is written, whatever m says and whatever is
//     planted in the tree, before or meanwhile.
//   - At any instant, a kill or power cut included, a name leads to what was
//     there before or to the whole new file: metadata is set and data synced
//     before the rename. This is also why the next Apply may trust size and
//     time. It removes the temporary files and finishes the tree.
//   - When Apply returns without an error, all is on the disk.
//   - A wrong or missing chunk is an error (*store.CorruptError,
//     *store.MissingError) that names a path that needs it, and no such path
//     appears under its name.
//   - Delete crosses no mount point below dir that is not one of o.Mounts, and
//     leaves alone what is in an Opaque directory, a file system's own
//     lost+found, and what Skip and Keep say.
//   - What a process without privileges may not set is listed in the report.
//     As root it is an error unless o.Lossy says otherwise; but a time, an
//     inode flag or a project that the file system cannot hold is listed for
//     root too. FAT has no owners, modes and extended attributes: there they
//     are neither set nor compared.
//
// What does not hold: the tree as a whole does not change at once, and while
// Apply runs it is part old, part new; kernels before 5.8 do not tell syncfs
// of data lost on its way to the disk; access times, creation times and inode
// numbers are not part of an image. Inode flags (chattr) and projects of what
// the image has none of are looked at with Full alone, but for immutable,
// append only, compressed and no dump.
func Apply(ctx context.Context, m *Manifest, src ChunkSource, dir string, o ApplyOptions) (*ApplyReport, error) {
	start := time.Now()
	a := &applier{
		ctx: ctx, o: o, src: src, log: o.Log, workers: o.Workers,
		strict:    os.Geteuid() == 0 && !o.Lossy,
		report:    &ApplyReport{Withheld: []string{}},
		inodes:    map[inodeKey]*inode{},
		obstacles: map[*treeNode][]*treeNode{},
		touched:   map[*treeNode]struct{}{},
		unmade:    map[*treeNode]struct{}{},
		unlocked:  map[*treeNode]uint32{},

		unfastened: map[*treeNode]struct{}{},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.workers <= 0 {
		a.workers = runtime.GOMAXPROCS(0)
	}
	err := a.run(m, dir)
	if err != nil {
		err = fmt.Errorf("apply to %s: %w", dir, err)
	}
	a.report.Seconds = time.Since(start).Seconds()
	return a.report, err
}
