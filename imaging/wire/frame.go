package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"doppel/imaging/store"
)

// Version is the version of the protocol. Both ends must have the same: the
// client brings its agent along, so there is nothing to be compatible with.
const Version = 5

// magic opens the greeting of either end. The control bytes keep it from
// occurring in what a login shell prints.
const magic = "\x00doppel\x01wire\x02"

// maxChatter is how many bytes in front of the agent's greeting are skipped.
const maxChatter = 64 << 10

// kind is what a frame holds.
type kind uint8

const (
	// from the client
	kindDescribe      kind = 1 // root
	kindScan          kind = 2 // request
	kindCachedAnswer  kind = 3 // answer to kindCached
	kindMissingAnswer kind = 4 // answer to kindMissing
	kindPing          kind = 5 // sign of life
	kindQuiet         kind = 6 // mark of the scan since which nothing may have changed
	// from the agent
	kindDescribed kind = 16 // facts and layout
	kindCached    kind = 17 // question
	kindMissing   kind = 18 // question
	kindBlock     kind = 19
	kindChunks    kind = 20 // part of the chunks of the next entry that says so
	kindExtents   kind = 21 // part of the extents of the next entry that says so
	kindEntries   kind = 22
	kindNote      kind = 23
	kindProgress  kind = 24
	kindDone      kind = 25
	kindError     kind = 26 // why the operation under way ended
	kindSame      kind = 27 // path of a directory that is as in the scan before
	kindQuieted   kind = 28 // whether it is quiet
	// from both, after magic
	kindHello kind = 32
)

var kindNames = map[kind]string{
	kindDescribe: "describe", kindScan: "scan", kindCachedAnswer: "cached answer", kindMissingAnswer: "missing answer", kindPing: "ping",
	kindDescribed: "described", kindCached: "cached", kindMissing: "missing", kindBlock: "block", kindChunks: "chunks", kindExtents: "extents",
	kindEntries: "entries", kindNote: "note", kindProgress: "progress", kindDone: "done", kindError: "error", kindSame: "same", kindQuiet: "quiet", kindQuieted: "quieted", kindHello: "hello",
}

func (k kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Bounds. What a decoder refuses, an encoder does not produce.
const (
	maxPath       = 64 << 10            // bytes; PATH_MAX bounds one system call, not a tree's depth
	maxText       = 64 << 10            // bytes of a message for people
	maxJSON       = 4 << 20             // facts and layout
	maxFiles      = 1 << 14             // in one cached question
	maxRefs       = 1 << 15             // in one missing question
	maxRun        = 1 << 14             // chunks or extents in one frame
	maxEntryRuns  = 1 << 24             // chunks or extents of one entry: above a TiB in chunks of 64 KiB
	maxXattrs     = 1 << 15             // of one entry: names are bounded to 64 KiB in all by listxattr(2)
	maxXattrName  = 255                 // XATTR_NAME_MAX
	maxXattrValue = 64 << 10            // XATTR_SIZE_MAX
	maxExcludes   = 1 << 12             //
	maxCPU        = 1 << 20             // percent of one core
	maxControl    = 8 << 20             // bytes of a frame that is no block
	flushEntries  = 256 << 10           // bytes of entries gathered into one frame
	maxCached     = 1 << 20             // answers "cached" that no entry made use of yet
	blockSlack    = store.MaxBlock / 64 // an incompressible block may grow a little
	maxData       = store.MaxBlock + blockSlack
	maxBlock      = maxData + (maxBlockRefs * 38) + 64
	maxBlockRefs  = 1 << 18 // chunks in one block
)

// limit is how long a frame of this kind may be.
func (k kind) limit() int {
	switch k {
	case kindBlock:
		return maxBlock
	case kindPing, kindDone:
		return 0
	case kindQuiet, kindQuieted:
		return binary.MaxVarintLen64
	case kindSame:
		return maxPath + binary.MaxVarintLen64
	case kindProgress:
		return 3 * binary.MaxVarintLen64
	case kindHello, kindNote, kindError:
		return maxPath + maxText + 1024
	}
	return maxControl
}

// ProtocolError says that the other end sent what the protocol does not allow.
type ProtocolError struct {
	Detail string
}

func (e *ProtocolError) Error() string {
	return "the other end breaks the protocol: " + e.Detail
}

func violation(format string, args ...any) error {
	return &ProtocolError{Detail: fmt.Sprintf(format, args...)}
}

// frameReader reads frames.
type frameReader struct {
	r        *bufio.Reader
	unpacker unpacker
	total    int64
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// next reads one frame. The payload is the caller's own. At the end of the
// stream between frames it gives io.EOF, within one io.ErrUnexpectedEOF.
func (f *frameReader) next() (kind, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	k, n, packed := kind(head[0]&^packedBit), binary.BigEndian.Uint32(head[1:]), head[0]&packedBit != 0
	if _, ok := kindNames[k]; !ok {
		return 0, nil, violation("a frame of unknown kind %d", head[0])
	}
	if int64(n) > int64(k.limit()) {
		return 0, nil, violation("a %s frame says it is %d bytes long, the limit is %d", k, n, k.limit())
	}
	payload, err := readGrowing(f.r, int(n))
	if err != nil {
		return 0, nil, err
	}
	f.total += int64(len(head)) + int64(n)
	if packed {
		payload, err = f.unpacker.unpack(k, payload)
	}
	return k, payload, err
}

// readGrowing reads n bytes and allocates in proportion to what has arrived,
// not to what was announced.
func readGrowing(r io.Reader, n int) ([]byte, error) {
	const step = 256 << 10
	buf := make([]byte, 0, min(n, step))
	for len(buf) < n {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(n, 4*cap(buf)))
			copy(grown, buf)
			buf = grown
		}
		got, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+got]
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return buf, nil
}

// skipTo reads up to and including magic and gives what came before it.
func (f *frameReader) skipTo(magic string) (chatter []byte, err error) {
	for {
		b, err := f.r.ReadByte()
		if err != nil {
			return chatter, err
		}
		f.total++
		chatter = append(chatter, b)
		if n := len(chatter) - len(magic); n >= 0 && string(chatter[n:]) == magic {
			return chatter[:n], nil
		}
		if len(chatter) >= maxChatter+len(magic) {
			return chatter, violation("no greeting in the first %d bytes", maxChatter)
		}
	}
}

// frameWriter writes frames; the caller serializes. Frames stay in the buffer
// until flush, or until it is full.
type frameWriter struct {
	w      *bufio.Writer
	packer packer
}

func newFrameWriter(w io.Writer) *frameWriter {
	return &frameWriter{w: bufio.NewWriterSize(w, 64<<10)}
}

// write writes one frame whose payload is the parts one after the other.
func (f *frameWriter) write(k kind, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > k.limit() {
		return fmt.Errorf("a %s message of %d bytes is longer than the protocol carries (%d)", k, n, k.limit())
	}
	var head [5]byte
	head[0] = byte(k)
	if data := f.packer.pack(k, parts...); data != nil {
		head[0] |= packedBit
		n, parts = len(data), [][]byte{data}
	}
	binary.BigEndian.PutUint32(head[1:], uint32(n))
	if _, err := f.w.Write(head[:]); err != nil {
		return err
	}
	for _, p := range parts {
		if _, err := f.w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func (f *frameWriter) flush() error { return f.w.Flush() }
