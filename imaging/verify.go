package imaging

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"doppel/imaging/store"
)

// EntryRef is a chunk that an entry needs.
type EntryRef struct {
	store.Ref
	Size  uint32
	Entry *Entry
}

// ImageFault is one thing that is wrong with a version.
type ImageFault struct {
	Version Version  // without number: what is wrong is in no version that was looked at
	Path    string   // empty: the version as a whole
	Chunk   store.ID // zero: not about one chunk
	Err     error
}

func (f ImageFault) Error() string {
	switch {
	case f.Version.Number == 0:
		return f.Err.Error()
	case f.Path == "":
		return fmt.Sprintf("%s: %v", f.Version.Ref(), f.Err)
	}
	return fmt.Sprintf("%s: %q: %v", f.Version.Ref(), f.Path, f.Err)
}

func (f ImageFault) Unwrap() error { return f.Err }

// Verify checks that the versions named by refs (all when there are none) are
// wholly in the store, and with readData that every byte of theirs is what was
// written.
func (c *Catalog) Verify(ctx context.Context, refs []string, readData bool, fn func(ImageFault)) error {
	depth := store.Tables
	if readData {
		depth = store.Bytes
	}
	return c.VerifyDepth(ctx, refs, depth, fn)
}

// VerifyDepth checks the versions named by refs (all when there are none) as
// closely as depth says. It calls fn for every fault; an error means that it
// could not check.
//
// A chunk that several packs hold counts as wrong when one of them does: what
// can still be read today is to be repaired while it can.
func (c *Catalog) VerifyDepth(ctx context.Context, refs []string, depth store.Depth, fn func(ImageFault)) error {
	st, err := c.Store()
	if errors.Is(err, ErrNoState) && len(refs) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	release, err := st.LockReading(ctx)
	if err != nil {
		return err
	}
	defer release()
	keys, err := c.Keys()
	if err != nil {
		return err
	}
	versions, err := c.versionsToCheck(ctx, refs, fn)
	if err != nil {
		return err
	}
	vault, err := store.OpenVault(ctx, st, keys, nil)
	if err != nil {
		return err
	}
	k := check{catalog: c, vault: vault, fn: fn, bad: make(map[store.Ref]error)}
	whole := len(refs) == 0
	switch {
	case depth > store.Tables && whole:
		err = k.readAll(ctx, versions, depth)
	case depth > store.Tables:
		err = k.readNeeded(ctx, st, keys, versions, depth)
	default:
		err = k.load(ctx, versions)
		for _, f := range vault.Damaged() {
			if whole {
				fn(ImageFault{Err: f.Err})
			}
		}
	}
	if err != nil || !k.incomplete && len(k.bad) == 0 {
		return err
	}
	return k.report(ctx)
}

// versionsToCheck finds what refs name; none name all, and then what cannot be
// read of their names is told.
func (c *Catalog) versionsToCheck(ctx context.Context, refs []string, fn func(ImageFault)) ([]Version, error) {
	if len(refs) == 0 {
		return c.checkNames(ctx, func(bad *NamesError) { fn(ImageFault{Version: Version{Image: bad.Image}, Err: bad}) })
	}
	var list []Version
	for _, ref := range refs {
		v, err := c.Resolve(ctx, ref)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// check is one run of Verify. Manifests are read once to learn which packs
// matter and, if something is wrong, once more to name it: one at a time fits in
// memory, all may not.
type check struct {
	catalog    *Catalog
	vault      *store.Vault
	fn         func(ImageFault)
	versions   []Version // whose manifests could be read
	needed     []bool    // by the chunk's number in vault
	incomplete bool      // something that is needed is not there, or of another size
	bad        map[store.Ref]error
}

// load reads the manifests and reports those that cannot be.
func (k *check) load(ctx context.Context, versions []Version) error {
	for _, v := range versions {
		m, err := k.catalog.Manifest(ctx, v)
		if err != nil {
			if !isDataFault(err) {
				return err
			}
			k.fn(ImageFault{Version: v, Err: err})
			continue
		}
		k.versions = append(k.versions, v)
		for ref := range m.Refs() {
			number, ok := k.vault.Find(ref.Ref)
			if size, _ := k.vault.Size(ref.Ref); !ok || size != ref.Size {
				k.incomplete = true
			}
			if ok {
				k.need(number)
			}
		}
	}
	return nil
}

// need notes that a version needs a chunk.
func (k *check) need(number uint32) {
	for int(number) >= len(k.needed) {
		k.needed = append(k.needed, false)
	}
	k.needed[number] = true
}

// needs tells whether a version needs a chunk.
func (k *check) needs(ref store.Ref) bool {
	number, ok := k.vault.Find(ref)
	return ok && int(number) < len(k.needed) && k.needed[number]
}

// isDataFault tells whether err is about what is in the store, and not about
// getting there.
func isDataFault(err error) bool {
	var missing *store.MissingError
	var corrupt *store.CorruptError
	var wrong *store.WrongKeyError
	return errors.As(err, &missing) || errors.As(err, &corrupt) || errors.As(err, &wrong)
}

// readAll reads the manifests and, meanwhile, all packs.
func (k *check) readAll(ctx context.Context, versions []Version, depth store.Depth) error {
	var faults []store.Fault
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return k.load(ctx, versions) })
	g.Go(func() error {
		return k.vault.Verify(ctx, depth, func(f store.Fault) { faults = append(faults, f) })
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range faults {
		if !k.spoils(f) {
			k.fn(ImageFault{Chunk: f.Chunk, Err: f.Err})
		}
	}
	return nil
}

// readNeeded reads the manifests and then the packs that hold what is needed.
func (k *check) readNeeded(ctx context.Context, st store.Store, keys store.Keys, versions []Version, depth store.Depth) error {
	if err := k.load(ctx, versions); err != nil {
		return err
	}
	var numbers []uint32
	for number, needed := range k.needed {
		if needed {
			numbers = append(numbers, uint32(number))
		}
	}
	packs := k.vault.PacksOfNumbers(numbers)
	if len(packs) == 0 {
		return nil
	}
	some, err := store.OpenVault(ctx, st, keys, packs)
	if err != nil {
		return err
	}
	return some.Verify(ctx, depth, func(f store.Fault) { k.spoils(f) })
}

// spoils notes what is lost by a fault, and tells whether any of it is needed.
func (k *check) spoils(f store.Fault) (needed bool) {
	for _, ref := range f.Lost {
		needed = needed || k.needs(ref)
		k.bad[ref] = f.Err
	}
	return needed
}

// report names every path that a bad or missing chunk is part of.
func (k *check) report(ctx context.Context) error {
	for _, v := range k.versions {
		m, err := k.catalog.Manifest(ctx, v)
		if err != nil {
			return err
		}
		for ref := range m.Refs() {
			err, bad := k.bad[ref.Ref]
			size, has := k.vault.Size(ref.Ref)
			switch {
			case bad:
			case !has:
				err = &store.MissingError{What: "chunk", ID: ref.ID}
			case size != ref.Size:
				err = &store.CorruptError{What: "chunk", ID: ref.ID, Detail: fmt.Sprintf("it has %d bytes instead of %d", size, ref.Size)}
			default:
				continue
			}
			k.fn(ImageFault{Version: v, Path: ref.Entry.Path, Chunk: ref.ID, Err: err})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
