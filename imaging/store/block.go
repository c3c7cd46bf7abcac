package store

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// MaxChunks bounds the chunks of one block, and with it a pack's table.
	MaxChunks = 1 << 20

	// maxData bounds a block's encoded bytes: an encoder gives up on bytes
	// that do not shrink, so anything much larger than MaxBlock is not
	// encoding what it says.
	maxData = MaxBlock + MaxBlock/128
)

// Encoders and decoders are costly to make and work on one block at a time, on
// the goroutine that calls them.
var (
	encoders = sync.Pool{New: func() any {
		// The options are constants, so the only error, a bad option, cannot be.
		e, _ := zstd.NewWriter(nil,
			zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithEncoderConcurrency(1),
			// A block is hardly longer, and an encoder takes twice the window.
			zstd.WithWindowSize(4<<20),
			// Text without repetitions (base64, hexadecimal digits) shrinks by
			// its letters alone.
			zstd.WithAllLitEntropyCompression(true),
			zstd.WithEncoderCRC(false)) // the sealing and the chunk IDs tell more
		return e
	}}
	decoders = sync.Pool{New: func() any {
		d, _ := zstd.NewReader(nil,
			zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(MaxBlock),
			zstd.WithDecodeAllCapLimit(true))
		return d
	}}
)

// BuildBlock makes a block of chunks given as their plain bytes.
func BuildBlock(aud Audience, chunks [][]byte) (Block, error) {
	table := make([]Chunk, 0, len(chunks))
	var plain []byte
	for _, c := range chunks {
		if len(plain)+len(c) > MaxBlock {
			return Block{}, fmt.Errorf("building a block: more than %d bytes", MaxBlock)
		}
		table = append(table, Chunk{ID: Sum(c), Size: uint32(len(c))})
		plain = append(plain, c...)
	}
	if _, err := plainSize(table); err != nil {
		return Block{}, fmt.Errorf("building a block: %w", err)
	}
	return EncodeBlock(aud, table, plain, nil), nil
}

// EncodeBlock makes a block of plain, the bytes of chunks one after the other,
// and compresses it if that saves at least three parts in a hundred; then the
// block's Data is in the room of buf, if that has enough. If it does not, Data
// is plain itself.
func EncodeBlock(aud Audience, chunks []Chunk, plain, buf []byte) Block {
	b := Block{Audience: aud, Codec: Raw, Chunks: chunks, Data: plain}
	e := encoders.Get().(*zstd.Encoder)
	defer encoders.Put(e)
	small := e.EncodeAll(plain, buf[:0])
	if len(small) <= len(plain)-(len(plain)*3+99)/100 {
		b.Codec, b.Data = Zstd, small
	}
	return b
}

// DecodeBlock gives back the plain bytes of a block: never more than MaxBlock,
// and exactly as many as its chunks say. It does not check the chunks' IDs. The
// bytes of a Raw block are its Data itself.
func DecodeBlock(b Block) ([]byte, error) {
	size, err := plainSize(b.Chunks)
	if err != nil {
		return nil, fmt.Errorf("decoding a block: %w", err)
	}
	if b.Codec == Raw {
		if len(b.Data) != size {
			return nil, fmt.Errorf("decoding a block: it holds %d bytes, its chunks say %d", len(b.Data), size)
		}
		return b.Data, nil
	}
	plain, err := decode(b.Codec, b.Data, make([]byte, 0, size), size)
	if err != nil {
		return nil, fmt.Errorf("decoding a block: %w", err)
	}
	return plain, nil
}

// decode decodes data into buf, which has room for size bytes.
func decode(c Codec, data, buf []byte, size int) ([]byte, error) {
	if len(data) > maxData {
		return nil, fmt.Errorf("%d encoded bytes are more than any block has", len(data))
	}
	var plain []byte
	switch c {
	case Raw:
		if len(data) != size {
			return nil, fmt.Errorf("it holds %d bytes, its chunks say %d", len(data), size)
		}
		plain = append(buf[:0], data...)
	case Zstd:
		d := decoders.Get().(*zstd.Decoder)
		defer decoders.Put(d)
		var err error
		// The capacity is the limit: a block cannot grow past what it says.
		if plain, err = d.DecodeAll(data, buf[:0:size]); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("codec %d is not known", c)
	}
	if len(plain) != size {
		return nil, fmt.Errorf("it decodes to %d bytes, its chunks say %d", len(plain), size)
	}
	return plain, nil
}

// plainSize adds up a table and checks its bounds.
func plainSize(chunks []Chunk) (int, error) {
	if len(chunks) == 0 {
		return 0, errors.New("a block has at least one chunk")
	}
	if len(chunks) > MaxChunks {
		return 0, fmt.Errorf("%d chunks are more than a block has (%d)", len(chunks), MaxChunks)
	}
	size := 0
	for _, c := range chunks {
		if c.Size == 0 {
			return 0, errors.New("a chunk has at least one byte")
		}
		if c.Size > MaxBlock || size+int(c.Size) > MaxBlock {
			return 0, fmt.Errorf("its chunks come to more than %d bytes", MaxBlock)
		}
		size += int(c.Size)
	}
	return size, nil
}
