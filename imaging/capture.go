package imaging

import (
	"context"
	"log/slog"
)

// CaptureOptions say what to capture and under which name.
type CaptureOptions struct {
	Name          string
	Root          string // default "/"
	Origin        string // where the source is, for people: root@head
	Exclude       []string
	OneFileSystem bool
	Full          bool // read every file, whatever the last capture knew
	Progress      func(CaptureProgress)
	Log           *slog.Logger // nil: silent
}

// CaptureProgress are running totals of one capture.
type CaptureProgress struct {
	ScanProgress
	BytesSent int64 // of compressed blocks
}

// SecretFile is a secret that a capture came upon.
type SecretFile struct {
	Path  string `json:"path"`
	Class string `json:"class"`
}

// CaptureReport is what a capture came to.
type CaptureReport struct {
	Image      string       `json:"image"`
	Version    int          `json:"version"`
	Digest     string       `json:"digest"`
	Unchanged  bool         `json:"unchanged"`
	Entries    int64        `json:"entries"`
	BytesTotal int64        `json:"bytes_total"`
	BytesRead  int64        `json:"bytes_read"`
	BytesSent  int64        `json:"bytes_sent"`
	BytesAdded int64        `json:"bytes_added"`
	Seconds    float64      `json:"seconds"`
	Unstable   []string     `json:"unstable"`
	Vanished   []string     `json:"vanished"`
	Lost       []Note       `json:"lost"`
	Secrets    []SecretFile `json:"secrets"`
}

// Partial tells whether the version is not all that the tree was: a file
// never held still, or the source could not carry something.
func (r *CaptureReport) Partial() bool { return len(r.Unstable) > 0 || len(r.Lost) > 0 }

// Capture captures src as the next version of the image o.Name.
func Capture(ctx context.Context, c *Catalog, src Source, o CaptureOptions) (*CaptureReport, error) {
	return nil, errUnbuilt
}
