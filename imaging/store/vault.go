package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Vault is a store opened with keys: the chunks in its packs, by their names.
// All methods are safe for concurrent use.
type Vault struct {
	st   Store
	keys Keys

	mu sync.RWMutex
	index
	byID    map[ID]*pack
	damaged []Fault
	foreign []packFile // of audiences whose key is not held

	blocks blockCache
}

// packFile is a pack as the store knows it.
type packFile struct {
	id   ID
	size int64
}

// pack is a pack whose trailer has been read.
type pack struct {
	packFile
	cipher packCipher
	blocks []packBlock
}

// place is where a chunk is.
type place struct {
	pack  *pack
	block uint32
	off   uint32 // in the plain block
	size  uint32
}

const openers = 8 // trailers read at a time

// tailGuess is how much of a pack's end is read at first, in the hope that it
// holds the whole trailer: one of a full pack of ordinary chunks.
const tailGuess = 64 << 10

// OpenVault reads the tables of the packs, or when packs is nil of all that
// the store lists. Packs of an audience whose key is not held are left out.
// One that is damaged is an error if it was asked for; else it is left out and
// Damaged tells of it.
//
// The order of packs is the order in which a chunk that is in several is
// looked for.
func OpenVault(ctx context.Context, st Store, keys Keys, packs []ID) (*Vault, error) {
	v := &Vault{
		st: st, keys: keys,
		byID: map[ID]*pack{},
	}
	files, err := v.files(ctx, packs)
	if err != nil {
		return nil, fmt.Errorf("opening the vault: %w", err)
	}
	// Tables are large while they are read: some packs at a time.
	for some := range slices.Chunk(files, openers) {
		if err := v.open(ctx, some, packs != nil); err != nil {
			return nil, fmt.Errorf("opening the vault: %w", err)
		}
	}
	return v, nil
}

// open opens packs side by side and takes them in, in their order. One that is
// damaged is an error if it was asked for.
func (v *Vault) open(ctx context.Context, files []packFile, asked bool) error {
	opened := make([]*pack, len(files))
	faults := make([]error, len(files))
	g, ctx := errgroup.WithContext(ctx)
	for i, f := range files {
		g.Go(func() error {
			opened[i], faults[i] = openPack(ctx, v.st, v.keys, f)
			var corrupt *CorruptError
			var missing *MissingError
			switch err := faults[i]; {
			case err == nil, errors.Is(err, errNotHeld):
			case !asked && (errors.As(err, &corrupt) || errors.As(err, &missing)):
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, f := range files {
		var missing *MissingError
		switch err := faults[i]; {
		case err == nil:
			v.add(opened[i])
		case errors.Is(err, errNotHeld):
			v.foreign = append(v.foreign, f)
		case errors.As(err, &missing):
			// Removed since it was listed.
		default:
			v.damaged = append(v.damaged, Fault{Pack: f.id, Block: -1, Err: err})
		}
	}
	return nil
}

// files gives the packs to open, each once. A size of -1 is yet to be asked.
func (v *Vault) files(ctx context.Context, packs []ID) ([]packFile, error) {
	var files []packFile
	if packs == nil {
		err := v.st.List(ctx, KindPack, func(id ID, size int64) error {
			files = append(files, packFile{id, size})
			return nil
		})
		return files, err
	}
	seen := make(map[ID]bool, len(packs))
	for _, id := range packs {
		if !seen[id] {
			seen[id] = true
			files = append(files, packFile{id, -1})
		}
	}
	return files, nil
}

// errNotHeld says that a pack is of an audience whose key is not held.
var errNotHeld = errors.New("the pack is of another audience")

// openPack reads a pack's header and table.
func openPack(ctx context.Context, st Store, keys Keys, f packFile) (*pack, error) {
	var err error
	if f.size < 0 {
		if f.size, err = st.Stat(ctx, KindPack, f.id); err != nil {
			return nil, err
		}
	}
	p := &pack{packFile: f}
	if f.size < headerSize+tagSize+footerSize {
		return nil, p.corrupt("%d bytes are less than any pack has", f.size)
	}
	start := max(0, f.size-tailGuess)
	tail, err := p.read(ctx, st, start, f.size-start)
	if err != nil {
		return nil, err
	}
	head := tail
	if start > 0 {
		if head, err = p.read(ctx, st, 0, headerSize); err != nil {
			return nil, err
		}
	}
	h, err := parseHeader(packMagic, packVersion, head)
	if err != nil {
		return nil, p.corrupt("%v", err)
	}
	off, length, err := parseFooter(tail[len(tail)-footerSize:], f.size)
	if err != nil {
		return nil, p.corrupt("%v", err)
	}
	key := keys.key(h.audience)
	if key == nil {
		return nil, errNotHeld
	}
	var sealed []byte
	if off >= start {
		sealed = tail[off-start:][:length]
	} else if sealed, err = p.read(ctx, st, off, length); err != nil {
		return nil, err
	}
	if p.cipher, err = h.cipher(key); err != nil {
		return nil, err
	}
	if err := p.openTrailer(key, sealed, off); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *pack) audience() Audience { return p.cipher.head.audience }

// openTrailer opens the sealed table of a pack.
func (p *pack) openTrailer(key *Key, sealed []byte, off int64) error {
	h := p.cipher.head
	plain, err := p.cipher.open(sealed, trailerNumber)
	if held := key.Fingerprint(); held != h.fingerprint {
		if err != nil {
			return &WrongKeyError{What: "pack " + p.id.String(), Audience: h.audience, Sealed: h.fingerprint, Held: held}
		}
		return p.corrupt("its key fingerprint is not that of its key")
	}
	if err != nil {
		return p.corrupt("its trailer does not open: some of its bytes have changed")
	}
	if p.blocks, err = parseTrailer(plain, off); err != nil {
		return p.corrupt("%v", err)
	}
	return nil
}

// read reads a part of the pack that must be there whole.
func (p *pack) read(ctx context.Context, st Store, off, n int64) ([]byte, error) {
	r, err := st.Open(ctx, KindPack, p.id, off, n)
	if err != nil {
		return nil, p.readError(err)
	}
	defer r.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, p.readError(err)
	}
	return b, nil
}

// readError turns the end of a pack that comes too early into what it means.
func (p *pack) readError(err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return p.corrupt("it is shorter than it was")
	}
	return err
}

func (p *pack) corrupt(format string, a ...any) error {
	return &CorruptError{What: "pack", ID: p.id, Detail: fmt.Sprintf(format, a...)}
}

// add puts a pack's chunks into the index. The chunk lists are dropped: they
// are most of a table.
func (v *Vault) add(p *pack) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.byID[p.id] != nil {
		return
	}
	v.byID[p.id] = p
	v.index.add(p)
	for i := range p.blocks {
		p.blocks[i].chunks = nil
	}
}

// Has tells whether the chunk is in a pack that is durable and was opened.
func (v *Vault) Has(ref Ref) bool {
	_, ok := v.find(ref)
	return ok
}

// Size gives the size of a chunk's plain bytes.
func (v *Vault) Size(ref Ref) (size uint32, ok bool) {
	at, ok := v.find(ref)
	return at.size, ok
}

func (v *Vault) find(ref Ref) (place, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	n, ok := v.index.find(ref)
	if !ok {
		return place{}, false
	}
	return v.place(n), true
}

// place is where the chunk of that number is. The vault is locked.
func (v *Vault) place(n uint32) place {
	r := v.at(n)
	return place{v.packs[r.pack], r.block, r.off, r.size}
}

// Find gives the number by which the vault knows a chunk, for StreamNumbers.
// Numbers go from 0 up and stay as long as the vault.
func (v *Vault) Find(ref Ref) (number uint32, ok bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.index.find(ref)
}

// Damaged tells which of the store's packs could not be opened.
func (v *Vault) Damaged() []Fault {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Clone(v.damaged)
}

// PacksOf gives the packs that hold the chunks, in the order in which Stream
// reads them: that of the first chunk wanted from each.
func (v *Vault) PacksOf(refs []Ref) ([]ID, error) {
	var ids []ID
	seen := map[*pack]bool{}
	for _, ref := range refs {
		at, ok := v.find(ref)
		if !ok {
			return nil, &MissingError{What: "chunk", ID: ref.ID}
		}
		if !seen[at.pack] {
			seen[at.pack] = true
			ids = append(ids, at.pack.id)
		}
	}
	return ids, nil
}

// PacksOfNumbers is PacksOf for chunks that are known by their numbers.
func (v *Vault) PacksOfNumbers(numbers []uint32) []ID {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var ids []ID
	seen := make([]bool, len(v.packs))
	for _, n := range numbers {
		if p := v.at(n).pack; !seen[p] {
			seen[p] = true
			ids = append(ids, v.packs[p].id)
		}
	}
	return ids
}
