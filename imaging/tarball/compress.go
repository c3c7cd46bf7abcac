package tarball

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow is how far back a compressed archive may refer, which is what
// reading it takes memory for: as much as zstd(1) and "xz -9" go by default.
const maxWindow = 128 << 20

// The beginnings of compressed files, of those that are read and of those that
// people may come with.
var magics = [...]struct{ begin, name string }{
	{"\x1f\x8b", "gzip"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"\xfd7zXZ\x00", "xz"},
	{"BZh", "bzip2"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"LZIP", "lzip"},
	{"\x1f\x9d", "compress"},
	{"\x89LZO", "lzop"},
	{"PK\x03\x04", "zip"},
	{"070701", "cpio"},
	{"070702", "cpio"},
	{"070707", "cpio"},
}

// CompressionError says that an archive is in a form that is not read.
type CompressionError struct {
	Form string
	Err  error // nil: it is not known how to
}

func (e *CompressionError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("the archive is in the form of %s, which is not read", e.Form)
	}
	return fmt.Sprintf("the archive cannot be unpacked with %s: %v", e.Form, e.Err)
}

func (e *CompressionError) Unwrap() error { return e.Err }

// Hint tells what helps.
func (e *CompressionError) Hint() string {
	switch {
	case e.Err != nil:
		return "the file is damaged, cut off, or needs more memory than is given to it; if " + e.Form + " can unpack it, let it: " + e.Form + " -dc F | doppel image import - --name N"
	case e.Form == "zip" || e.Form == "cpio":
		return "unpack it and pack it with tar --xattrs --acls --sparse --format=pax -cf"
	}
	return e.Form + " -dc F | doppel image import - --name N"
}

// decompress undoes the compression that r begins with, if any.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	form := ""
	for _, m := range magics {
		begin, err := b.Peek(len(m.begin))
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read the archive: %w", err)
		}
		if string(begin) == m.begin {
			form = m.name
			break
		}
	}
	if form == "" {
		return io.NopCloser(b), nil
	}
	plain, err := unpacker(form, b)
	if err != nil {
		return nil, &CompressionError{form, err}
	}
	if plain == nil {
		return nil, &CompressionError{Form: form}
	}
	return &unpacked{plain, form}, nil
}

// unpacker is what undoes the form; nil: nothing does.
func unpacker(form string, b *bufio.Reader) (io.ReadCloser, error) {
	switch form {
	case "gzip":
		return gzip.NewReader(b)
	case "zstd":
		d, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case "xz":
		if err := checkXZ(b); err != nil {
			return nil, err
		}
		d, err := xz.NewReader(b)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(d), nil
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(b)), nil
	}
	return nil, nil
}

// checkXZ looks how large a dictionary the first block asks for (The .xz File
// Format, sections 3.1 and 5.3.1): reading takes memory for it at once.
func checkXZ(b *bufio.Reader) error {
	const streamHeader = 12
	head, err := b.Peek(streamHeader + 64)
	if err != nil && err != io.EOF {
		return err
	}
	if len(head) < streamHeader+8 || head[streamHeader] == 0 {
		return nil // too short, or empty: the reader will say
	}
	block := head[streamHeader:]
	flags, at := block[1], 2
	for _, bit := range []byte{0x40, 0x80} { // compressed and plain size, each a varint
		for flags&bit != 0 && at < len(block) {
			at++
			if block[at-1]&0x80 == 0 {
				break
			}
		}
	}
	// The filter LZMA2 (0x21) with one byte of properties.
	if i := bytes.Index(block[min(at, len(block)):], []byte{0x21, 0x01}); i >= 0 && at+i+2 < len(block) {
		bits := block[at+i+2]
		if size := int64(2|bits&1) << (bits/2 + 11); bits > 40 || size > maxWindow {
			return fmt.Errorf("it asks for a dictionary of %d bytes, more than %d", size, maxWindow)
		}
	}
	return nil
}

// unpacked names the form in errors of unpacking.
type unpacked struct {
	io.ReadCloser
	form string
}

func (u *unpacked) Read(b []byte) (int, error) {
	n, err := u.ReadCloser.Read(b)
	if err != nil && err != io.EOF {
		err = &CompressionError{u.form, err}
	}
	return n, err
}

// Compression is how an export is compressed.
type Compression string

const (
	None Compression = "none"
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// CompressionFor is the compression that the end of a file's name stands for;
// one that is known and not written is an error.
func CompressionFor(name string) (Compression, error) {
	for end, c := range map[string]Compression{".gz": Gzip, ".tgz": Gzip, ".zst": Zstd, ".zstd": Zstd, ".tzst": Zstd} {
		if strings.HasSuffix(name, end) {
			return c, nil
		}
	}
	for _, end := range []string{".xz", ".txz", ".bz2", ".tbz2", ".tbz", ".lz4", ".lz", ".Z", ".zip", ".cpio"} {
		if strings.HasSuffix(name, end) {
			return None, fmt.Errorf("%s is not written: %w", end, errCompression)
		}
	}
	return None, nil
}

var errCompression = errors.New("want a plain archive, gzip or zstd")

// compressor compresses to w. What it writes is the same for the same input.
func compressor(c Compression, w io.Writer) (io.WriteCloser, error) {
	switch c {
	case None, "":
		return nopCloser{w}, nil
	case Gzip:
		return gzip.NewWriter(w), nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(2))
	}
	return nil, fmt.Errorf("compression %q is not known: %w", c, errCompression)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
