package imaging

import (
	"context"
	"errors"
	"io"

	"doppel/imaging/store"
)

// Source is something that can be captured: the local tree, a host with the
// agent over SSH, a host with SFTP alone. A Source is used by one capture and
// closed.
type Source interface {
	// Describe tells what the host is and how its disks are laid out. A source
	// that knows it only from what it scans says ErrScanFirst before.
	Describe(ctx context.Context, root string) (Facts, *Layout, error)
	// Scan walks the tree, reads what sink asks for, and gives everything to
	// sink. Entries come in canonical order (see Sort).
	Scan(ctx context.Context, req ScanRequest, sink Sink) error
	io.Closer
}

// ErrScanFirst says that a Source can be described only when it was scanned.
var ErrScanFirst = errors.New("what was not scanned yet cannot be described")

// Recaller is a Sink that gives back, at any time during a scan, a chunk that it
// was not missing or that Block has taken.
type Recaller interface {
	Recall(ctx context.Context, ref store.Ref) ([]byte, error)
}

// ScanRequest says what to walk.
type ScanRequest struct {
	Root          string
	Exclude       []string // globs against the path below Root; a directory's match leaves the directory and drops its contents
	OneFileSystem bool
	Limits        Limits
	Consistency   Consistency

	// Mark, when it is not zero, is what the next request may name this scan by
	// in its Since: a Source that can watches the tree from before the scan on.
	Mark Mark
	// Since is the scan that this one is to be the continuation of: what has not
	// changed since then is given as Same. A Source that does not know what has
	// changed since then, or cannot watch, gives everything, with a NoteRescan.
	Since Mark
}

// Mark names a scan. Zero names none.
type Mark uint64

// Watcher is a Source that can watch its tree between scans.
type Watcher interface {
	Source
	// Quiet tells whether nothing has changed in the tree since the scan with
	// that mark; not so, too, when that is not known.
	Quiet(ctx context.Context, since Mark) (bool, error)
}

// Stamp is what makes a file the same file as last time, without reading it.
type Stamp struct {
	Path         string
	Dev, Ino     uint64
	Size         int64
	MTime, CTime Time
}

// Content is a regular file's content as chunks, and what else is found out by
// opening it.
type Content struct {
	Extents []Extent
	Chunks  []store.Chunk
	Flags   uint32
	Project uint32
	Xattrs  []Xattr
}

// Sink takes what a scan finds. A scan calls it from one goroutine at a time
// per method; answers come in the order of the questions.
type Sink interface {
	// Cached answers for each file whether its content is known from the last
	// capture and wholly in the store; nil means: read it.
	Cached(ctx context.Context, class []Class, files []Stamp) ([]*Content, error)
	// Missing answers which of the chunks the store lacks; a chunk that Block
	// has taken is no longer missing.
	Missing(ctx context.Context, refs []store.Ref) ([]bool, error)
	// Block takes chunks that were missing. The sink verifies every chunk
	// against its ID before it keeps any, and does not keep b's Data, which is
	// good until Block returns.
	Block(ctx context.Context, b store.Block) error
	// Entries takes entries in canonical order, each with the Stamp it was
	// read under. The zero Stamp says that there is nothing to know the file
	// by next time: it is no regular file, or it changed too lately to tell
	// the next change from this one by its times.
	Entries(ctx context.Context, entries []Entry, stamps []Stamp) error
	// Same says that the directory at path, with all that is below it, is as it
	// was given in the scan that the request's Since names. It stands in the place
	// of their entries, in the order of these.
	Same(ctx context.Context, path string) error
	// Note takes a remark about a path.
	Note(ctx context.Context, n Note) error
	// Progress takes running totals, a few times a second.
	Progress(p ScanProgress)
}

// NoteKind is why a Note was made.
type NoteKind string

const (
	NoteUnstable NoteKind = "unstable" // changed during every try to read it
	NoteLost     NoteKind = "lost"     // the source could not carry some metadata (SFTP)
	NoteSecret   NoteKind = "secret"   // a secret, with its class
	NoteVanished NoteKind = "vanished" // was there when listed, gone when read
	NoteRescan   NoteKind = "rescan"   // why everything is looked at, and not only what has changed; of no path
)

// Note is a remark about a path that belongs in the capture's report.
type Note struct {
	Path   string   `json:"path"`
	Kind   NoteKind `json:"kind"`
	Detail string   `json:"detail,omitempty"`
}

// ScanProgress are running totals of one scan.
type ScanProgress struct {
	Entries   int64 // walked so far
	Bytes     int64 // of regular files walked so far
	BytesRead int64 // actually read
}

// Facts are what an image says about the host it was taken from. They hold
// nothing that changes while the tree does not, so that equal trees have
// equal digests.
type Facts struct {
	Hostname  string            `json:"hostname"`
	Arch      string            `json:"arch"`       // as uname -m: x86_64, aarch64
	OSRelease map[string]string `json:"os_release"` // of /etc/os-release
	Firmware  string            `json:"firmware"`   // bios, uefi, or empty when unknown
	Cmdline   string            `json:"cmdline"`    // the running kernel's, empty when it is not this tree's own

	// LayoutNote says why there is no Layout, when there is none.
	LayoutNote string `json:"layout_note,omitempty"`
}

// Layout is how the disks of a captured host are laid out, so that a double
// can be laid out alike. A tree that is no host's own root (a chroot, a
// directory) has none.
type Layout struct {
	Table      string            `json:"table"`       // gpt or mbr
	SectorSize int               `json:"sector_size"` // bytes
	DiskSize   int64             `json:"disk_size"`   // bytes
	Partitions []LayoutPartition `json:"partitions"`
}

// LayoutPartition is one partition of the disk that holds the root.
type LayoutPartition struct {
	Number     int         `json:"number"`
	Start      int64       `json:"start"` // bytes
	Size       int64       `json:"size"`  // bytes
	Type       string      `json:"type"`  // GPT type GUID, upper case, or MBR type "0x83"
	GUID       string      `json:"guid,omitempty"`
	Name       string      `json:"name,omitempty"`
	Attributes uint64      `json:"attributes,omitempty"`
	FS         *FileSystem `json:"fs,omitempty"`
}

// FileSystem is what is on a partition.
type FileSystem struct {
	Type     string   `json:"type"` // ext4, ext3, ext2, xfs, vfat, swap
	UUID     string   `json:"uuid"` // as blkid writes it
	Label    string   `json:"label,omitempty"`
	Features []string `json:"features,omitempty"` // as mkfs takes them; ext and xfs
	Mount    string   `json:"mount,omitempty"`    // absolute path, empty for swap or unmounted
	Options  string   `json:"options,omitempty"`  // as in the host's fstab
}
