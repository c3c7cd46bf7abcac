package imaging

import (
	"context"
	"errors"
	"fmt"

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
	if err := k.load(ctx, versions); err != nil {
		return err
	}
	if depth > store.Tables {
		if err := k.readData(ctx, st, keys, depth, whole); err != nil {
			return err
		}
	} else if whole {
		for _, f := range vault.Damaged() {
			fn(ImageFault{Err: f.Err})
		}
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

// check is one run of Verify. Manifests are read twice, once to learn which
// packs matter and once to name what is wrong: one at a time fits in memory,
// all may not.
type check struct {
	catalog  *Catalog
	vault    *store.Vault
	fn       func(ImageFault)
	versions []Version // whose manifests could be read
	needed   map[store.Ref]struct{}
	bad      map[store.Ref]error
}

// load reads the manifests and reports those that cannot be.
func (k *check) load(ctx context.Context, versions []Version) error {
	k.needed = make(map[store.Ref]struct{})
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
			k.needed[ref.Ref] = struct{}{}
		}
	}
	return nil
}

// isDataFault tells whether err is about what is in the store, and not about
// getting there.
func isDataFault(err error) bool {
	var missing *store.MissingError
	var corrupt *store.CorruptError
	var wrong *store.WrongKeyError
	return errors.As(err, &missing) || errors.As(err, &corrupt) || errors.As(err, &wrong)
}

// readData reads the packs of the versions, or all there are, and notes which
// chunks are bad.
func (k *check) readData(ctx context.Context, st store.Store, keys store.Keys, depth store.Depth, whole bool) error {
	vault := k.vault
	if !whole {
		var present []store.Ref
		for ref := range k.needed {
			if vault.Has(ref) {
				present = append(present, ref)
			}
		}
		packs, err := vault.PacksOf(present)
		if err != nil || len(packs) == 0 {
			return err
		}
		if vault, err = store.OpenVault(ctx, st, keys, packs); err != nil {
			return err
		}
	}
	return vault.Verify(ctx, depth, func(f store.Fault) {
		lost := f.Lost
		named := false
		for _, ref := range lost {
			_, needed := k.needed[ref]
			named = named || needed
			k.bad[ref] = f.Err
		}
		if whole && !named {
			k.fn(ImageFault{Chunk: f.Chunk, Err: f.Err})
		}
	})
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
