package imaging

import (
	"context"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"doppel/imaging/store"
)

// differsAt reads fd and tells from where on it does not hold what e says, or
// -1: each chunk is compared by its digest, what lies between the extents with
// zeros. progress, if any, is told of the bytes read.
func differsAt(ctx context.Context, fd int, e *Entry, progress func(int64)) (int64, error) {
	var largest uint32
	for _, c := range e.Chunks {
		largest = max(largest, c.Size)
	}
	buf := make([]byte, largest)
	r := &dataReader{fd: fd, extents: e.Data()}
	for _, c := range e.Chunks {
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		b, at := buf[:c.Size], r.offset()
		_, err := io.ReadFull(r, b)
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return at, nil // shorter by now than it was
		case err != nil:
			return at, err
		}
		if progress != nil {
			progress(int64(len(b)))
		}
		if store.Sum(b) != c.ID {
			return at, nil
		}
	}
	return holesDifferAt(ctx, fd, e)
}

// dataReader reads the extents of a file one after the other.
type dataReader struct {
	fd      int
	extents []Extent
	pos     int64 // in the first of them
}

// offset is where in the file the next byte is.
func (r *dataReader) offset() int64 {
	if len(r.extents) == 0 {
		return 0
	}
	return r.extents[0].Offset + r.pos
}

func (r *dataReader) Read(b []byte) (int, error) {
	for len(r.extents) > 0 && r.pos == r.extents[0].Length {
		r.extents, r.pos = r.extents[1:], 0
	}
	if len(r.extents) == 0 {
		return 0, io.EOF
	}
	x := r.extents[0]
	b = b[:min(int64(len(b)), x.Length-r.pos)]
	n, err := preadAll(r.fd, b, x.Offset+r.pos)
	r.pos += int64(n)
	return n, err
}

// preadAll fills b from off; a file that ends before gives io.ErrUnexpectedEOF.
func preadAll(fd int, b []byte, off int64) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Pread(fd, b[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return done, err
		case n == 0:
			return done, io.ErrUnexpectedEOF
		}
		done += n
	}
	return done, nil
}

func pwriteAll(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// holesDifferAt tells where fd holds anything but zeros outside e's extents,
// or -1. It does not ask for real holes: a copy may have filled them.
func holesDifferAt(ctx context.Context, fd int, e *Entry) (int64, error) {
	var at int64
	for _, x := range append(slices.Clip(e.Data()), Extent{Offset: e.Size}) {
		if off, err := nonZeroAt(ctx, fd, at, x.Offset); off >= 0 || err != nil {
			return off, err
		}
		at = x.Offset + x.Length
	}
	return -1, nil
}

// nonZeroAt tells where in a range anything but zeros is, or -1. It reads only
// what is allocated.
func nonZeroAt(ctx context.Context, fd int, from, to int64) (int64, error) {
	var buf []byte
	for from < to {
		if err := ctx.Err(); err != nil {
			return from, context.Cause(ctx)
		}
		data, err := unix.Seek(fd, from, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO: // nothing but hole up to the end
			return -1, nil
		case err != nil: // a file system that cannot tell
			data = from
		}
		if from = max(from, data); from >= to {
			return -1, nil
		}
		if buf == nil {
			buf = make([]byte, min(to-from, 128<<10))
		}
		n, err := preadAll(fd, buf[:min(int64(len(buf)), to-from)], from)
		if err != nil && err != io.ErrUnexpectedEOF {
			return from, err
		}
		if i := slices.IndexFunc(buf[:n], func(c byte) bool { return c != 0 }); i >= 0 {
			return from + int64(i), nil
		}
		from += int64(n)
		if err != nil {
			return from, nil // shorter by now than it was
		}
	}
	return -1, nil
}
