package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ID is a SHA-256 digest: of a chunk's plain bytes, or of a blob's stored
// bytes. It is comparable and may be a map key.
type ID [sha256.Size]byte

// Sum is the ID of b.
func Sum(b []byte) ID { return sha256.Sum256(b) }

// String writes the ID as "sha256:" and 64 hexadecimal digits.
func (id ID) String() string { return "sha256:" + hex.EncodeToString(id[:]) }

// Hex writes the ID's 64 hexadecimal digits alone, as file names use them.
func (id ID) Hex() string { return hex.EncodeToString(id[:]) }

// IsZero tells whether the ID was never set.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID reads what String or Hex wrote.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(strings.TrimPrefix(s, "sha256:"))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("%q is not a digest: want sha256: and 64 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// MarshalText and UnmarshalText let an ID travel in JSON as String writes it.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

func (id *ID) UnmarshalText(b []byte) error {
	p, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = p
	return nil
}

// Audience is who may read a block: its key seals the block.
type Audience uint8

const (
	Cluster Audience = 1 // every installed node
	Head    Audience = 2 // heads only
)

func (a Audience) String() string {
	switch a {
	case Cluster:
		return "cluster"
	case Head:
		return "head"
	}
	return fmt.Sprintf("audience(%d)", uint8(a))
}

// Ref names a chunk for an audience: the same bytes may be stored once for
// each.
type Ref struct {
	Audience Audience
	ID       ID
}

// Kind is the kind of a blob.
type Kind string

const (
	KindPack     Kind = "pack"
	KindManifest Kind = "manifest"
)

// Store keeps immutable blobs, each named by the SHA-256 of its bytes. All
// methods are safe for concurrent use.
//
// Put returns only when the blob is durable; it refuses bytes whose digest is
// not id, and a blob that is there already is not written again. Open reads n
// bytes from off (n < 0: to the end); a range that goes past the blob's end is
// an error that is io.ErrUnexpectedEOF. A blob that is not there gives a
// *MissingError; a store that cannot be written gives ErrReadOnly; one that
// cannot list gives errors.ErrUnsupported.
type Store interface {
	Put(ctx context.Context, k Kind, id ID, r io.Reader) error
	Open(ctx context.Context, k Kind, id ID, off, n int64) (io.ReadCloser, error)
	Stat(ctx context.Context, k Kind, id ID) (size int64, err error)
	List(ctx context.Context, k Kind, fn func(id ID, size int64) error) error
	Delete(ctx context.Context, k Kind, id ID) error
}

// ErrReadOnly is the answer of a store that takes no writes.
var ErrReadOnly = errors.New("the store is read-only")

// MissingError says that a blob or a chunk is not in the store.
type MissingError struct {
	What string // "pack", "manifest" or "chunk"
	ID   ID
}

func (e *MissingError) Error() string { return fmt.Sprintf("%s %s is not in the store", e.What, e.ID) }

// CorruptError says that bytes read are not the bytes that were written.
type CorruptError struct {
	What   string // "pack", "block", "chunk" or "manifest"
	ID     ID     // of the pack (for a block: of the pack that holds it), chunk or manifest
	Detail string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s %s is corrupt: %s", e.What, e.ID, e.Detail)
}

// Key is an audience's 256-bit key.
type Key [32]byte

// Keys are the audience keys a process holds; nil means that it may not read
// (or write) for that audience.
type Keys struct {
	Cluster *Key
	Head    *Key
}

// Codec is how a block's bytes were made smaller.
type Codec uint8

const (
	Raw  Codec = 0
	Zstd Codec = 1
)

// Chunk is one entry of a block's table.
type Chunk struct {
	ID   ID
	Size uint32
}

// Block is several MiB of neighbouring chunks, compressed together. Data,
// decoded, is the chunks' bytes one after the other.
type Block struct {
	Audience Audience
	Codec    Codec
	Chunks   []Chunk
	Data     []byte
}

// MaxBlock bounds the plain bytes of one block, so that a reader can bound its
// memory: writers aim at 4 MiB, a block that says it is larger than this is
// refused.
const MaxBlock = 16 << 20
