package store

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"
)

const (
	blobMagic   = "DOPPELMF"
	blobVersion = 2
	blobInfo    = "doppel blob v2"

	// MaxBlob bounds what ReadBlob reads, and the plain bytes of a segment.
	MaxBlob = 1 << 30

	lastSegment  = 1 << 31 // in a segment's length: none follows
	finishBuffer = 128 << 10
)

// Sealer compresses and seals a section of a blob, segment by segment, for an
// audience. It belongs to one goroutine at a time.
type Sealer struct {
	w      io.Writer
	aead   cipher.AEAD
	head   header
	kind   string
	number uint64
	small  []byte
	buf    []byte
}

// NewSealer begins a section. The kind ("manifest") is bound to it: what was
// sealed as one kind does not open as another. Sealing the same bytes twice
// gives different ones.
func NewSealer(w io.Writer, keys Keys, aud Audience, kind string) (*Sealer, error) {
	key := keys.key(aud)
	if key == nil {
		return nil, fmt.Errorf("sealing a %s: the key of the audience %s is not held", kind, aud)
	}
	s := &Sealer{w: w, kind: kind}
	s.head = header{magic: blobMagic, version: blobVersion, audience: aud, fingerprint: key.Fingerprint()}
	if _, err := rand.Read(s.head.salt[:]); err != nil {
		return nil, fmt.Errorf("sealing a %s: %w", kind, err)
	}
	var err error
	if s.aead, err = key.cipher(s.head.salt[:], blobInfo); err != nil {
		return nil, fmt.Errorf("sealing a %s: %w", kind, err)
	}
	if _, err := w.Write(s.head.append(nil)); err != nil {
		return nil, fmt.Errorf("sealing a %s: %w", kind, err)
	}
	return s, nil
}

// Segment seals the next segment; last says that the section ends with it.
func (s *Sealer) Segment(plain []byte, last bool) error {
	if len(plain) > MaxBlob {
		return fmt.Errorf("sealing a %s: a segment of %d bytes is more than %d", s.kind, len(plain), MaxBlob)
	}
	e := encoders.Get().(*zstd.Encoder)
	s.small = e.EncodeAll(plain, s.small[:0])
	encoders.Put(e)
	s.buf = s.aead.Seal(append(s.buf[:0], 0, 0, 0, 0), segmentNonce(s.number), s.small, segmentAD(s.head, s.kind, s.number, last))
	s.number++
	length := uint32(len(s.buf) - 4)
	if last {
		length |= lastSegment
	}
	binary.BigEndian.PutUint32(s.buf, length)
	if _, err := s.w.Write(s.buf); err != nil {
		return fmt.Errorf("sealing a %s: %w", s.kind, err)
	}
	return nil
}

func segmentNonce(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// segmentAD binds a segment to its section, its place, and whether it is the
// last: none can be taken away, added, or change places.
func segmentAD(h header, kind string, number uint64, last bool) []byte {
	ad := binary.BigEndian.AppendUint64(h.ad(), number)
	if last {
		ad = append(ad, 1)
	} else {
		ad = append(ad, 0)
	}
	return append(ad, kind...)
}

// Opener reads a section that a Sealer wrote. It belongs to one goroutine at a
// time.
type Opener struct {
	r      io.Reader
	id     ID
	aead   cipher.AEAD
	head   header
	kind   string
	number uint64
	sealed []byte
	last   bool
}

// NewOpener begins to read a section from r, which stands at its start; id is
// the blob's, for errors.
func NewOpener(r io.Reader, id ID, keys Keys, aud Audience, kind string) (*Opener, error) {
	o := &Opener{r: r, id: id, kind: kind}
	b := make([]byte, headerSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, o.short(err)
	}
	var err error
	if o.head, err = parseHeader(blobMagic, blobVersion, b); err != nil {
		return nil, o.corrupt("%v", err)
	}
	if o.head.audience != aud {
		return nil, fmt.Errorf("opening a %s: it is sealed for the audience %s, not %s", kind, o.head.audience, aud)
	}
	key := keys.key(aud)
	if key == nil {
		return nil, fmt.Errorf("opening a %s: %w", kind, &WrongKeyError{What: "it", Audience: aud, Sealed: o.head.fingerprint})
	}
	if held := key.Fingerprint(); held != o.head.fingerprint {
		return nil, fmt.Errorf("opening a %s: %w", kind, &WrongKeyError{What: "it", Audience: aud, Sealed: o.head.fingerprint, Held: held})
	}
	if o.aead, err = key.cipher(o.head.salt[:], blobInfo); err != nil {
		return nil, fmt.Errorf("opening a %s: %w", kind, err)
	}
	return o, nil
}

// Next gives the plain bytes of the next segment, which are the caller's own,
// and io.EOF behind the last one.
func (o *Opener) Next() ([]byte, error) {
	if o.last {
		return nil, io.EOF
	}
	var length [4]byte
	if _, err := io.ReadFull(o.r, length[:]); err != nil {
		return nil, o.short(err)
	}
	n := binary.BigEndian.Uint32(length[:])
	o.last = n&lastSegment != 0
	if n &^= lastSegment; n < tagSize || n > MaxBlob {
		return nil, o.corrupt("segment %d says it has %d bytes", o.number, n)
	}
	var err error
	if o.sealed, err = readGrowing(o.r, o.sealed[:0], int(n)); err != nil {
		return nil, o.short(err)
	}
	small, err := o.aead.Open(o.sealed[:0], segmentNonce(o.number), o.sealed, segmentAD(o.head, o.kind, o.number, o.last))
	if err != nil {
		return nil, o.corrupt("segment %d does not open: some of its bytes, or the kind it was sealed as, are not these", o.number)
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBlob))
	if err != nil {
		return nil, fmt.Errorf("opening a %s: %w", o.kind, err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(small, nil)
	if err != nil {
		return nil, o.corrupt("segment %d does not decode: %v", o.number, err)
	}
	o.number++
	return plain, nil
}

// readGrowing reads n bytes behind b and takes memory as they come, not as
// they are announced.
func readGrowing(r io.Reader, b []byte, n int) ([]byte, error) {
	const step = 1 << 20
	for n > 0 {
		now := min(n, max(step, len(b)))
		at := len(b)
		b = slices.Grow(b, now)[:at+now]
		if _, err := io.ReadFull(r, b[at:]); err != nil {
			return nil, err
		}
		n -= now
	}
	return b, nil
}

// short says what the end of a blob that comes too early means.
func (o *Opener) short(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return o.corrupt("it is shorter than it was")
	}
	return fmt.Errorf("opening a %s: %w", o.kind, err)
}

func (o *Opener) corrupt(format string, a ...any) error {
	return &CorruptError{What: o.kind, ID: o.id, Detail: fmt.Sprintf(format, a...)}
}

// PutBlob puts b under its digest.
func PutBlob(ctx context.Context, st Store, k Kind, b []byte) (ID, error) {
	id := Sum(b)
	return id, st.Put(ctx, k, id, bytes.NewReader(b))
}

// BlobReader reads a whole blob from its beginning. What it gives is checked
// only when Finish has said so.
type BlobReader struct {
	kind Kind
	id   ID
	r    io.ReadCloser
	sum  hash.Hash
}

// OpenBlob opens a blob to be read whole.
func OpenBlob(ctx context.Context, st Store, k Kind, id ID) (*BlobReader, error) {
	r, err := st.Open(ctx, k, id, 0, -1)
	if err != nil {
		return nil, err
	}
	return &BlobReader{k, id, r, newDigester(io.Discard).h}, nil
}

func (b *BlobReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.sum.Write(p[:n])
	return n, err
}

// Finish reads what is left and holds all that was read against the blob's
// name.
func (b *BlobReader) Finish() error {
	// io.Copy would go by 8 KiB.
	for buf := make([]byte, finishBuffer); ; {
		_, err := b.Read(buf)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("reading %s %s: %w", b.kind, b.id, err)
		}
	}
	if got := ID(b.sum.Sum(nil)); got != b.id {
		return &CorruptError{What: string(b.kind), ID: b.id, Detail: "its bytes have the digest " + got.String()}
	}
	return nil
}

// Close ends the reading.
func (b *BlobReader) Close() error { return b.r.Close() }

// ReadBlob reads a whole blob and checks its digest.
func ReadBlob(ctx context.Context, st Store, k Kind, id ID) ([]byte, error) {
	r, err := OpenBlob(ctx, st, k, id)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxBlob+1))
	if err == nil && len(b) > MaxBlob {
		err = &CorruptError{What: string(k), ID: id, Detail: fmt.Sprintf("it is larger than %d bytes", MaxBlob)}
	} else if err == nil {
		err = r.Finish()
	}
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", k, id, err)
	}
	return b, nil
}
