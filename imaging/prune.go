package imaging

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// Freed says what removing came to.
type Freed struct {
	Blobs int   // packs and manifests deleted
	Bytes int64 // their size
}

// Remove takes the version that ref names out of the catalog, and then deletes
// what nothing needs any more. Its number is not used again. It waits until no
// one adds to the store or reads from it under its lock.
func (c *Catalog) Remove(ctx context.Context, ref string) (Version, error) {
	st, err := c.Store()
	if err != nil {
		return Version{}, err
	}
	release, err := st.LockExclusive(ctx)
	if err != nil {
		return Version{}, err
	}
	defer release()
	v, err := c.Resolve(ctx, ref)
	if err != nil {
		return Version{}, err
	}
	err = c.change(ctx, v.Image, func(f *nameFile) error {
		f.Versions = slices.DeleteFunc(f.Versions, func(w Version) bool { return w.Number == v.Number })
		return nil
	})
	if err != nil {
		return v, err
	}
	freed, err := c.sweep(ctx, st)
	if err != nil {
		return v, fmt.Errorf("%s is removed; its space is not free yet: %w", v.Ref(), err)
	}
	c.log.Info("version removed", "image", v.Ref(), "blobs", freed.Blobs, "bytes", freed.Bytes)
	return v, nil
}

// Sweep deletes what no version needs: what interrupted captures left, and
// what removed versions needed alone.
func (c *Catalog) Sweep(ctx context.Context) (Freed, error) {
	st, err := c.Store()
	if err != nil {
		return Freed{}, err
	}
	release, err := st.LockExclusive(ctx)
	if err != nil {
		return Freed{}, err
	}
	defer release()
	return c.sweep(ctx, st)
}

// sweep needs the exclusive lock. It deletes nothing unless it could read
// every manifest there is a name for.
func (c *Catalog) sweep(ctx context.Context, st *store.Dir) (Freed, error) {
	var freed Freed
	keys, err := c.Keys()
	if err != nil {
		return freed, err
	}
	if keys.Head == nil {
		return freed, errors.New("what heads alone may read cannot be told from what nobody needs: keys/head.key is not here")
	}
	list, err := c.List(ctx)
	if err != nil {
		return freed, err
	}
	blobs := make(map[store.ID]bool)
	live := make(map[store.Ref]struct{})
	for _, v := range list {
		m, err := c.Manifest(ctx, v)
		if err != nil {
			return freed, fmt.Errorf("what %s needs is not known: %w", v.Ref(), err)
		}
		blobs[v.Blob] = true
		for ref := range m.Refs() {
			live[ref.Ref] = struct{}{}
		}
	}
	vault, err := store.OpenVault(ctx, st, keys, nil)
	if err != nil {
		return freed, err
	}
	var unused []store.ID
	err = st.List(ctx, store.KindManifest, func(id store.ID, _ int64) error {
		if !blobs[id] {
			unused = append(unused, id)
		}
		return nil
	})
	if err != nil {
		return freed, err
	}
	err = freed.delete(ctx, st, store.KindManifest, unused)
	return freed, errors.Join(err, freed.delete(ctx, st, store.KindPack, vault.Unused(live)))
}

// delete deletes blobs and counts them.
func (f *Freed) delete(ctx context.Context, st store.Store, k store.Kind, ids []store.ID) error {
	for _, id := range ids {
		size, err := st.Stat(ctx, k, id)
		if err == nil {
			err = st.Delete(ctx, k, id)
		}
		if err != nil {
			return err
		}
		f.Blobs++
		f.Bytes += size
	}
	return nil
}
