package wire

import (
	"context"
	"io"
	"sync/atomic"

	"doppel/imaging"
)

// pacedPiece is how many bytes are written at once at a pace: small, so that a
// slow one is even.
const pacedPiece = 16 << 10

// pacedWriter writes at a pace while there is one.
type pacedWriter struct {
	ctx  context.Context // of the whole Serve
	w    io.Writer
	pace atomic.Pointer[imaging.Pace]
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	pace := p.pace.Load()
	if pace == nil {
		return p.w.Write(b)
	}
	done := 0
	for done < len(b) {
		piece := b[done:min(len(b), done+pacedPiece)]
		if err := pace.Spend(p.ctx, int64(len(piece))); err != nil {
			return done, err
		}
		n, err := p.w.Write(piece)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}
