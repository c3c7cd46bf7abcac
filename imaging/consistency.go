package imaging

import (
	"fmt"
	"time"
)

// Consistency says how what a scan reads is kept still while it is read. The
// zero Consistency reads the live tree.
type Consistency struct {
	// Snapshot says whether to read from snapshots of the source's file systems.
	Snapshot SnapshotMode
	// Freeze are mount points, absolute paths on the source, whose file systems
	// are frozen (ioctl_fifreeze(2)) while they are read, where they have no
	// snapshot: who writes there waits.
	Freeze []string
	// FreezeFor is the longest time that one of them is frozen; zero means
	// DefaultFreeze. What was not read by then is read live.
	FreezeFor time.Duration
}

// Bounds of Consistency.FreezeFor.
const (
	DefaultFreeze = 30 * time.Second
	MinFreeze     = 100 * time.Millisecond
	MaxFreeze     = 10 * time.Minute
)

// Wanted tells whether anything is to be kept still.
func (c *Consistency) Wanted() bool { return c.Snapshot != SnapshotOff || len(c.Freeze) > 0 }

// SnapshotMode says whether a scan reads from snapshots.
type SnapshotMode uint8

const (
	SnapshotOff     SnapshotMode = iota // the live tree
	SnapshotAuto                        // from snapshots where they can be had
	SnapshotRequire                     // an error where they cannot be had
)

func (m SnapshotMode) String() string {
	switch m {
	case SnapshotOff:
		return "off"
	case SnapshotAuto:
		return "auto"
	case SnapshotRequire:
		return "require"
	}
	return fmt.Sprintf("SnapshotMode(%d)", uint8(m))
}

// MarshalText writes off, auto or require.
func (m SnapshotMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads off, auto or require.
func (m *SnapshotMode) UnmarshalText(b []byte) error {
	for _, known := range []SnapshotMode{SnapshotOff, SnapshotAuto, SnapshotRequire} {
		if known.String() == string(b) {
			*m = known
			return nil
		}
	}
	return fmt.Errorf("%q is none of off, auto and require", b)
}

// Kinds of Note that say how what was read was kept still. Their paths are
// those of mount points, from the tree's root.
const (
	NoteInstant  NoteKind = "instant"  // all snapshots are taken: what changes from now on is not in the image
	NoteSnapshot NoteKind = "snapshot" // a file system is read from a snapshot
	NoteFrozen   NoteKind = "frozen"   // a file system was frozen while it was read
	NoteLive     NoteKind = "live"     // a file system is read live, and why
	NoteThawed   NoteKind = "thawed"   // the bound was over before a frozen file system was read
	NoteLeft     NoteKind = "left"     // a snapshot could not be removed
)

// isConsistency tells whether a note is about how what was read was kept still.
func (k NoteKind) isConsistency() bool {
	switch k {
	case NoteSnapshot, NoteFrozen, NoteLive, NoteThawed, NoteLeft:
		return true
	}
	return false
}
