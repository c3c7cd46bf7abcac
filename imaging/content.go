package imaging

import (
	"context"
	"fmt"
	"io"

	"doppel/imaging/store"
)

// CopyContent writes what the regular file e holds, holes as zeros.
func CopyContent(ctx context.Context, w io.Writer, vault *store.Vault, e *Entry) error {
	chunks := e.Chunks
	var at int64
	var pending []byte
	for _, x := range e.Data() {
		if err := writeZeros(w, x.Offset-at); err != nil {
			return err
		}
		for left := x.Length; left > 0; {
			if len(pending) == 0 {
				if len(chunks) == 0 {
					return fmt.Errorf("%q: its chunks end before its data", e.Path)
				}
				b, err := vault.Chunk(ctx, store.Ref{Audience: e.Class.Audience(), ID: chunks[0].ID})
				if err != nil {
					return fmt.Errorf("%q: %w", e.Path, err)
				}
				pending, chunks = b, chunks[1:]
			}
			n := min(left, int64(len(pending)))
			if _, err := w.Write(pending[:n]); err != nil {
				return err
			}
			pending, left = pending[n:], left-n
		}
		at = x.Offset + x.Length
	}
	return writeZeros(w, e.Size-at)
}

func writeZeros(w io.Writer, n int64) error {
	zeros := make([]byte, 64<<10)
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if _, err := w.Write(zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}
