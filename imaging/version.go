package imaging

import (
	"fmt"
	"time"

	"doppel/imaging/store"
)

// Version is one version of an image as the catalog knows it.
type Version struct {
	Image   string    `json:"image"`
	Number  int       `json:"version"` // from 1, never used again
	Digest  string    `json:"digest"`  // of the manifest: the version's identity
	Blob    store.ID  `json:"blob"`    // the sealed manifest in the store
	Time    time.Time `json:"time"`
	Entries int64     `json:"entries"`
	Bytes   int64     `json:"bytes"`
	Source  string    `json:"source"` // where it was captured from
	Tags    []string  `json:"tags,omitempty"`
}

// Ref is the version as the user names it: NAME@NUMBER.
func (v Version) Ref() string { return fmt.Sprintf("%s@%d", v.Image, v.Number) }
