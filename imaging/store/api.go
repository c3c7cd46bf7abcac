package store

import (
	"context"
	"errors"
	"net/http"
)

var errUnbuilt = errors.New("not built yet")

type Dir struct{ Store }

func OpenDir(path string) (*Dir, error)                          { return nil, errUnbuilt }
func (d *Dir) Path() string                                      { return "" }
func (d *Dir) LockShared(ctx context.Context) (func(), error)    { return nil, errUnbuilt }
func (d *Dir) LockExclusive(ctx context.Context) (func(), error) { return nil, errUnbuilt }

type Memory struct{ Store }

func NewMemory() *Memory { return nil }

type HTTP struct{ Store }

func NewHTTP(base string, client *http.Client) *HTTP { return nil }

func Handler(st Store) http.Handler { return nil }

// ReadBlob reads a whole blob and checks its digest.
func ReadBlob(ctx context.Context, st Store, k Kind, id ID) ([]byte, error) { return nil, errUnbuilt }

// PutBlob puts b under its digest.
func PutBlob(ctx context.Context, st Store, k Kind, b []byte) (ID, error) { return ID{}, errUnbuilt }

func GenerateKey() (Key, error)           { return Key{}, errUnbuilt }
func ReadKey(path string) (Key, error)    { return Key{}, errUnbuilt }
func WriteKey(path string, key Key) error { return errUnbuilt }
func (k Key) Fingerprint() [8]byte        { return [8]byte{} }

func BuildBlock(aud Audience, chunks [][]byte) (Block, error)      { return Block{}, errUnbuilt }
func EncodeBlock(aud Audience, chunks []Chunk, plain []byte) Block { return Block{} }
func DecodeBlock(b Block) ([]byte, error)                          { return nil, errUnbuilt }

func SealBlob(keys Keys, aud Audience, kind string, plain []byte) ([]byte, error) {
	return nil, errUnbuilt
}
func OpenBlob(keys Keys, aud Audience, kind string, sealed []byte) ([]byte, error) {
	return nil, errUnbuilt
}

type Vault struct{}

func OpenVault(ctx context.Context, st Store, keys Keys, packs []ID) (*Vault, error) {
	return nil, errUnbuilt
}

func (v *Vault) Has(ref Ref) bool                                   { return false }
func (v *Vault) Size(ref Ref) (uint32, bool)                        { return 0, false }
func (v *Vault) Chunk(ctx context.Context, ref Ref) ([]byte, error) { return nil, errUnbuilt }
func (v *Vault) Stream(ctx context.Context, refs []Ref, workers int, fn func(Ref, []byte) error) error {
	return errUnbuilt
}
func (v *Vault) PacksOf(refs []Ref) ([]ID, error)                                { return nil, errUnbuilt }
func (v *Vault) Unused(live map[Ref]struct{}) []ID                               { return nil }
func (v *Vault) Damaged() []Fault                                                { return nil }
func (v *Vault) Verify(ctx context.Context, readData bool, fn func(Fault)) error { return errUnbuilt }
func (v *Vault) NewWriter() *Writer                                              { return nil }

// Fault is one thing Verify found wrong.
type Fault struct {
	Pack  ID
	Block int   // -1: the pack as a whole
	Chunk ID    // zero: the block as a whole
	Lost  []Ref // the chunks that cannot be read because of it, as far as known
	Err   error
}

type Writer struct{}

func (w *Writer) Add(ctx context.Context, b Block) error { return errUnbuilt }
func (w *Writer) Has(ref Ref) bool                       { return false }
func (w *Writer) Commit(ctx context.Context) error       { return errUnbuilt }
func (w *Writer) Close() error                           { return nil }
