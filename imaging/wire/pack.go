package wire

import (
	"encoding/binary"

	"github.com/klauspost/compress/zstd"
)

// packedBit, in the byte that says a frame's kind, says that the payload is
// packed: the length that it has when it is unpacked, and a zstd frame.
const packedBit = 0x80

const (
	minPacked = 512       // bytes; a payload of fewer is not worth it
	maxPacked = 256 << 10 // bytes that a payload may have when it is unpacked
	// maxPacking is how many bytes may come out of one, so that memory stays in
	// proportion to what a peer sent. Frames of real trees pack four- or
	// fivefold; what packs better than it may goes as it is.
	maxPacking = 16
)

// packs tells whether payloads of this kind may be packed: those that are
// many, repeat themselves, are not compressed already, and have time. A scan
// waits for the answer to a question about files, so those are only written
// briefly.
func (k kind) packs() bool { return k == kindEntries }

// packer packs payloads; the caller serializes. The zero value is ready.
type packer struct {
	z           *zstd.Encoder
	plain, data []byte
}

// pack gives the packed payload, which is good until the next one, or nil when
// it goes as it is.
func (c *packer) pack(k kind, parts ...[]byte) []byte {
	c.plain = c.plain[:0]
	for _, p := range parts {
		if !k.packs() || len(c.plain)+len(p) > maxPacked {
			return nil
		}
		c.plain = append(c.plain, p...)
	}
	if len(c.plain) < minPacked {
		return nil
	}
	if c.z == nil {
		// Only options that do not fit together give an error.
		c.z, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(maxPacked), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	}
	c.data = c.z.EncodeAll(c.plain, binary.AppendUvarint(c.data[:0], uint64(len(c.plain))))
	if len(c.data) >= len(c.plain) || len(c.plain) > maxPacking*len(c.data) {
		return nil
	}
	return c.data
}

// unpacker unpacks payloads, one at a time. The zero value is ready.
type unpacker struct{ z *zstd.Decoder }

// unpack gives the payload, which is the caller's own.
func (c *unpacker) unpack(k kind, data []byte) ([]byte, error) {
	if !k.packs() {
		return nil, violation("a packed %s", k)
	}
	n, used := binary.Uvarint(data)
	switch {
	case used <= 0:
		return nil, violation("a packed %s without its length", k)
	case n > maxPacked || n > uint64(maxPacking*len(data)):
		return nil, violation("a %s says that %d bytes are packed in %d", k, n, len(data))
	}
	if c.z == nil {
		c.z, _ = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxPacked), zstd.WithDecoderMaxMemory(maxPacked), zstd.WithDecodeAllCapLimit(true))
	}
	// It writes no further than it was given room for.
	plain, err := c.z.DecodeAll(data[used:], make([]byte, 0, n))
	if err != nil {
		return nil, violation("a packed %s: %v", k, err)
	}
	if uint64(len(plain)) != n {
		return nil, violation("a %s says that %d bytes are packed in it, and %d are", k, n, len(plain))
	}
	return plain, nil
}
