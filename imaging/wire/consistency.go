package wire

import (
	"fmt"
	"time"

	"doppel/imaging"
)

// maxFreeze bounds the list of what is to be frozen.
const maxFreeze = 64

// checkConsistency refuses what the protocol does not carry.
func checkConsistency(c *imaging.Consistency) error {
	if len(c.Freeze) > maxFreeze {
		return fmt.Errorf("%d file systems to freeze are more than the protocol carries (%d)", len(c.Freeze), maxFreeze)
	}
	if c.FreezeFor < 0 || c.FreezeFor > imaging.MaxFreeze {
		return fmt.Errorf("%v is no time to freeze a file system for: %v at most", c.FreezeFor, imaging.MaxFreeze)
	}
	return nil
}

func putConsistency(b []byte, c *imaging.Consistency) []byte {
	b = putUint(append(b, byte(c.Snapshot)), uint64(len(c.Freeze)))
	for _, dir := range c.Freeze {
		b = putString(b, dir)
	}
	return putUint(b, uint64(c.FreezeFor))
}

func (d *decoder) consistency() (c imaging.Consistency) {
	c.Snapshot = imaging.SnapshotMode(d.byte("snapshots"))
	if c.Snapshot > imaging.SnapshotRequire {
		d.fail("the mode %d of snapshots is unknown", uint8(c.Snapshot))
	}
	if n := d.count(maxFreeze, 1, "file systems to freeze"); n > 0 {
		c.Freeze = make([]string, n)
		for i := range c.Freeze {
			c.Freeze[i] = d.string(maxPath, "what to freeze")
		}
	}
	c.FreezeFor = time.Duration(d.uint(uint64(imaging.MaxFreeze), "how long to freeze"))
	return c
}
