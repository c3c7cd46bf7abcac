package store

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// The layout of a pack; FORMAT.md has it byte by byte.
const (
	packMagic   = "DOPPELPK"
	footerMagic = "KPLEPPOD"
	packVersion = 2
	packInfo    = "doppel pack v2"

	headerSize = 56
	footerSize = 24
	tagSize    = 16 // of AES-GCM

	lengthSize = 4 // in front of a block
	maxSealed  = maxData + 4*MaxChunks + 5 + tagSize
	maxTrailer = 128 << 20
	blockEntry = 8 + 4 + 4 + 1 + 4 // of the trailer's table
	chunkEntry = 32 + 4
)

// header opens a pack and a sealed blob alike.
type header struct {
	magic       string
	version     uint8
	audience    Audience
	fingerprint [8]byte
	salt        [saltSize]byte
}

func (h header) append(b []byte) []byte {
	b = append(b, h.magic...)
	b = append(b, h.version, uint8(h.audience), 0, 0, 0, 0, 0, 0)
	b = append(b, h.fingerprint[:]...)
	return append(b, h.salt[:]...)
}

func parseHeader(magic string, version uint8, b []byte) (header, error) {
	h := header{magic: magic}
	if len(b) < headerSize {
		return h, fmt.Errorf("%d bytes are less than its header", len(b))
	}
	if string(b[:8]) != magic {
		return h, fmt.Errorf("it does not begin with %s", magic)
	}
	h.version, h.audience = b[8], Audience(b[9])
	if h.version != version {
		return h, fmt.Errorf("format version %d is not known to this doppel, which reads version %d", h.version, version)
	}
	if h.audience != Cluster && h.audience != Head {
		return h, fmt.Errorf("%s is not known", h.audience)
	}
	if [6]byte(b[10:16]) != ([6]byte{}) {
		return h, errors.New("reserved bytes of its header are not zero")
	}
	copy(h.fingerprint[:], b[16:24])
	copy(h.salt[:], b[24:56])
	return h, nil
}

// ad is what every seal of the file binds: format, version and audience. The
// salt is bound by the key that is made of it.
func (h header) ad() []byte {
	b := make([]byte, 0, 64)
	b = append(b, h.magic...)
	return append(b, h.version, uint8(h.audience))
}

// packCipher seals and opens the parts of one pack.
type packCipher struct {
	aead cipher.AEAD
	head header
}

func (h header) cipher(k *Key) (packCipher, error) {
	a, err := k.cipher(h.salt[:], packInfo)
	return packCipher{aead: a, head: h}, err
}

// A block's nonce and associated data hold its number, so that blocks cannot
// change places; the trailer has a number that no block reaches.
const trailerNumber = 1<<64 - 1

func (c packCipher) part(number uint64) (nonce, ad []byte) {
	nonce = make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[4:], number)
	ad = c.head.ad()
	if number == trailerNumber {
		return nonce, append(ad, "trailer"...)
	}
	ad = append(ad, "block"...)
	return nonce, binary.BigEndian.AppendUint64(ad, number)
}

func (c packCipher) seal(dst, plain []byte, number uint64) []byte {
	nonce, ad := c.part(number)
	return c.aead.Seal(dst, nonce, plain, ad)
}

// open opens in place.
func (c packCipher) open(sealed []byte, number uint64) ([]byte, error) {
	nonce, ad := c.part(number)
	return c.aead.Open(sealed[:0], nonce, sealed, ad)
}

// packBlock is one block's place in a pack.
type packBlock struct {
	off    int64
	sealed uint32
	plain  uint32
	codec  Codec
	count  uint32  // of chunks
	chunks []Chunk // dropped once they are in the index
}

// size is the block's with the length in front of it.
func (b packBlock) size() int64 { return lengthSize + int64(b.sealed) }

func (b packBlock) end() int64 { return b.off + b.size() }

// footed is how long the plain content of a block's seal is, less the encoded
// bytes themselves.
func footed(chunks int) int { return 4*chunks + 4 + 1 }

// appendBlockFoot writes what follows a block's encoded bytes within its seal:
// the sizes of its chunks, their number, the codec. So a block can be told
// without the pack's table.
func appendBlockFoot(dst []byte, c Codec, chunks []Chunk) []byte {
	for _, c := range chunks {
		dst = binary.BigEndian.AppendUint32(dst, c.Size)
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(chunks)))
	return append(dst, uint8(c))
}

// parseBlockFoot takes what is within a block's seal apart. The chunks have
// sizes and no names.
func parseBlockFoot(b []byte) (data []byte, codec Codec, chunks []Chunk, err error) {
	if len(b) < footed(0) {
		return nil, 0, nil, errors.New("it is shorter than any block")
	}
	codec = Codec(b[len(b)-1])
	count := int64(binary.BigEndian.Uint32(b[len(b)-5:]))
	if count > MaxChunks || int64(len(b)) < 4*count+5 {
		return nil, 0, nil, fmt.Errorf("it says it has %d chunks", count)
	}
	data = b[:len(b)-footed(int(count))]
	sizes := b[len(data):]
	chunks = make([]Chunk, count)
	for i := range chunks {
		chunks[i].Size = binary.BigEndian.Uint32(sizes[4*i:])
	}
	_, err = plainSize(chunks)
	return data, codec, chunks, err
}

// appendTrailer writes the table of a pack's blocks.
func appendTrailer(dst []byte, blocks []packBlock) []byte {
	be := binary.BigEndian
	dst = be.AppendUint32(dst, uint32(len(blocks)))
	for _, b := range blocks {
		dst = be.AppendUint64(dst, uint64(b.off))
		dst = be.AppendUint32(dst, b.sealed)
		dst = be.AppendUint32(dst, b.plain)
		dst = append(dst, uint8(b.codec))
		dst = be.AppendUint32(dst, uint32(len(b.chunks)))
		for _, c := range b.chunks {
			dst = append(dst, c.ID[:]...)
			dst = be.AppendUint32(dst, c.Size)
		}
	}
	return dst
}

// parseTrailer reads the table of a pack whose blocks end at the offset end.
// Blocks lie one right after the other, from the header to the trailer.
func parseTrailer(b []byte, end int64) ([]packBlock, error) {
	be := binary.BigEndian
	if len(b) < 4 {
		return nil, errors.New("its table is cut short")
	}
	count := int(be.Uint32(b))
	b = b[4:]
	if count > len(b)/(blockEntry+chunkEntry) {
		return nil, fmt.Errorf("its table has no room for the %d blocks it says", count)
	}
	blocks := make([]packBlock, 0, count)
	next := int64(headerSize)
	for i := range count {
		if len(b) < blockEntry {
			return nil, errors.New("its table is cut short")
		}
		p := packBlock{
			off:    int64(be.Uint64(b)),
			sealed: be.Uint32(b[8:]),
			plain:  be.Uint32(b[12:]),
			codec:  Codec(b[16]),
		}
		chunks := int64(be.Uint32(b[17:]))
		b = b[blockEntry:]
		if p.off != next {
			return nil, fmt.Errorf("block %d is not where the one before it ends", i)
		}
		if p.sealed < tagSize || p.sealed > maxSealed {
			return nil, fmt.Errorf("block %d says it has %d bytes", i, p.sealed)
		}
		if p.codec != Raw && p.codec != Zstd {
			return nil, fmt.Errorf("block %d has the codec %d, which is not known", i, p.codec)
		}
		if chunks > int64(len(b)/chunkEntry) {
			return nil, errors.New("its table is cut short")
		}
		data := int64(p.sealed) - tagSize - int64(footed(int(chunks)))
		if data < 0 || p.codec == Raw && data != int64(p.plain) {
			return nil, fmt.Errorf("block %d has a length that its chunks cannot have", i)
		}
		p.chunks = make([]Chunk, chunks)
		for j := range p.chunks {
			copy(p.chunks[j].ID[:], b)
			p.chunks[j].Size = be.Uint32(b[32:])
			b = b[chunkEntry:]
		}
		size, err := plainSize(p.chunks)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		if uint32(size) != p.plain {
			return nil, fmt.Errorf("block %d says %d bytes, its chunks %d", i, p.plain, size)
		}
		p.count = uint32(chunks)
		next = p.end()
		blocks = append(blocks, p)
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%d bytes follow its table", len(b))
	}
	if next != end {
		return nil, errors.New("its blocks do not end where its trailer begins")
	}
	return blocks, nil
}

func appendFooter(dst []byte, off, length int64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(off))
	dst = binary.BigEndian.AppendUint64(dst, uint64(length))
	return append(dst, footerMagic...)
}

// parseFooter gives the offset and length of the sealed trailer of a pack of
// size bytes, whose last footerSize bytes are b.
func parseFooter(b []byte, size int64) (off, length int64, err error) {
	if len(b) != footerSize || string(b[16:]) != footerMagic {
		return 0, 0, fmt.Errorf("it does not end with %s: it is cut short, or not a pack", footerMagic)
	}
	off = int64(binary.BigEndian.Uint64(b))
	length = int64(binary.BigEndian.Uint64(b[8:]))
	if off < headerSize || length < tagSize || length > maxTrailer ||
		off > size || off+length+footerSize != size {
		return 0, 0, errors.New("its footer points outside it")
	}
	return off, length, nil
}
