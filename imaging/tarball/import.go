package tarball

import (
	"context"
	"io"
	"log/slog"

	"doppel/imaging"
)

// ImportOptions say under which name to import.
type ImportOptions struct {
	Name     string // of the image
	Origin   string // where the archive is, for people
	Progress func(imaging.CaptureProgress)
	Log      *slog.Logger // nil: the catalog's
}

// ImportReport is what an import came to.
type ImportReport struct {
	imaging.CaptureReport
	Notes []imaging.Note `json:"notes"` // what is otherwise in the version than in the archive
}

// Import makes the tree that tar would unpack from an archive the next version
// of the image o.Name, unless that is its latest already. The archive may be
// compressed with gzip, zstd, xz or bzip2. Nothing is unpacked onto a disk: what
// the members hold goes into the store of the catalog as it is read.
//
// It succeeds as a whole or changes no image. What is wrong with the archive is
// a *MemberError or a *CompressionError.
func Import(ctx context.Context, c *imaging.Catalog, r io.Reader, o ImportOptions) (*ImportReport, error) {
	plain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close() // it was only read from
	src := newSource(ctx, plain)
	report, err := imaging.Capture(ctx, c, src, imaging.CaptureOptions{
		Name: o.Name, Origin: o.Origin, Progress: o.Progress, Log: o.Log,
		// There is nothing to know an archive's files by next time. The name
		// of the root keeps the capture cache apart from that of the image's host.
		Root: "tar", Full: true,
	})
	if err != nil {
		return nil, err
	}
	full := &ImportReport{CaptureReport: *report, Notes: src.tree.notes}
	if full.Notes == nil {
		full.Notes = []imaging.Note{}
	}
	return full, nil
}
