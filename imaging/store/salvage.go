package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Salvaged is what was found in a damaged pack.
type Salvaged struct {
	Chunks int   // that are whole
	Bytes  int64 // plain, of them
	Table  bool  // its table could be read; without it what lies behind a block whose length is wrong is not found
}

// maxSalvage bounds a pack that is read as a whole; none is ever so large.
const maxSalvage = 1 << 30

// Salvage reads a damaged pack and gives add all blocks of whole chunks that are
// in it, also where its header, table or footer is lost: a block tells by itself
// which chunks it holds, and opens only if it is what it was. Blocks in which
// some chunks are wrong come without these. The bytes of a block are good until
// add returns.
//
// A pack of an audience whose key is not held gives nothing.
func Salvage(ctx context.Context, st Store, keys Keys, id ID, add func(Block) error) (Salvaged, error) {
	var s Salvaged
	r, err := st.Open(ctx, KindPack, id, 0, -1)
	if err != nil {
		return s, fmt.Errorf("reading a damaged pack: %w", err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSalvage))
	if err != nil {
		return s, fmt.Errorf("reading pack %s: %w", id, err)
	}
	if len(b) < headerSize {
		return s, nil
	}
	blocks := []packBlock(nil)
	p, err := openPack(ctx, st, keys, packFile{id, int64(len(b))})
	switch {
	case err == nil:
		s.Table, blocks = true, p.blocks
	case !isFault(err) && !errors.Is(err, errNotHeld):
		return s, fmt.Errorf("reading a damaged pack: %w", err)
	}
	for _, c := range salvageCiphers(keys, b) {
		err := c.salvage(b, blocks, func(found Block, plain []byte) error {
			s.Chunks += len(found.Chunks)
			s.Bytes += int64(len(plain))
			return add(found)
		})
		if err != nil || s.Chunks > 0 {
			return s, err
		}
	}
	return s, nil
}

// salvageCiphers are the ciphers that a pack may have been sealed with: all but
// its salt can be told without it.
func salvageCiphers(keys Keys, b []byte) []packCipher {
	var list []packCipher
	for _, aud := range []Audience{Cluster, Head} {
		key := keys.key(aud)
		if key == nil {
			continue
		}
		h := header{magic: packMagic, version: packVersion, audience: aud, fingerprint: key.Fingerprint()}
		copy(h.salt[:], b[headerSize-saltSize:headerSize])
		if c, err := h.cipher(key); err == nil {
			list = append(list, c)
		}
	}
	return list
}

// salvage goes from block to block: where the table has them or, without one,
// by the length in front of each.
func (c packCipher) salvage(b []byte, table []packBlock, add func(Block, []byte) error) error {
	off := int64(headerSize)
	for number := 0; ; number++ {
		size := int64(0)
		switch {
		case table != nil && number == len(table):
			return nil
		case table != nil:
			off, size = table[number].off, int64(table[number].sealed)
		case int64(len(b)) < off+lengthSize:
			return nil
		default:
			size = int64(binary.BigEndian.Uint32(b[off:]))
		}
		end := off + lengthSize + size
		if size < tagSize || size > maxSealed || end > int64(len(b)) {
			if table != nil {
				continue
			}
			return nil
		}
		sealed := append([]byte(nil), b[off+lengthSize:end]...)
		off = end
		inside, err := c.open(sealed, uint64(number))
		if err != nil {
			continue
		}
		if err := c.wholeChunks(inside, table, number, add); err != nil {
			return err
		}
	}
}

// wholeChunks gives on what is right in an opened block. Its seal says that it
// is what was written; where the table is there too, a chunk must have had its
// name then.
func (c packCipher) wholeChunks(inside []byte, table []packBlock, number int, add func(Block, []byte) error) error {
	data, codec, chunks, err := parseBlockFoot(inside)
	if err != nil || len(chunks) == 0 {
		return nil
	}
	b := Block{Audience: c.head.audience, Codec: codec, Chunks: chunks, Data: data}
	plain, err := DecodeBlock(b)
	if err != nil {
		return nil
	}
	var good []Chunk
	var kept []byte
	rest := plain
	for i := range chunks {
		chunks[i].ID = Sum(rest[:chunks[i].Size])
		if table == nil || i < len(table[number].chunks) && table[number].chunks[i] == chunks[i] {
			good = append(good, chunks[i])
			kept = append(kept, rest[:chunks[i].Size]...)
		}
		rest = rest[chunks[i].Size:]
	}
	switch len(good) {
	case len(chunks):
		return add(b, plain)
	case 0:
		return nil
	}
	return add(EncodeBlock(b.Audience, good, kept, nil), kept)
}
