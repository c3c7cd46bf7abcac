package main

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
	"doppel/web"
)

// images tells machines what they need to know of a version. It remembers its
// answers: a version never changes, and while the packs it named are in the
// list they hold it.
type images struct {
	catalog *imaging.Catalog

	mu    sync.Mutex
	known map[imageFor]web.Version
}

type imageFor struct {
	digest string
	role   cluster.Role
}

// Head finds a version by its digest, with the packs that a role may read.
func (i *images) Head(ctx context.Context, digest string, role cluster.Role) (web.Version, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	key := imageFor{digest, role}
	if v, ok := i.known[key]; ok && i.current(v) {
		return v, nil
	}
	v, err := i.read(ctx, key)
	if err != nil {
		return v, fmt.Errorf("reading the image %s: %w", digest, err)
	}
	if i.known == nil {
		i.known = map[imageFor]web.Version{}
	}
	i.known[key] = v
	return v, nil
}

// current tells whether no prune has replaced what a version's packs are.
func (i *images) current(v web.Version) bool {
	st, err := i.catalog.Store()
	if err != nil || !st.Listed(store.KindManifest, v.Manifest) {
		return false
	}
	return !slices.ContainsFunc(v.Packs, func(id store.ID) bool { return !st.Listed(store.KindPack, id) })
}

func (i *images) read(ctx context.Context, key imageFor) (web.Version, error) {
	release, err := i.catalog.Reading(ctx)
	if err != nil {
		return web.Version{}, err
	}
	defer release()
	v, err := i.catalog.Resolve(ctx, key.digest)
	if err != nil {
		return web.Version{}, &cluster.RefusedError{What: err.Error(), Hint: "capture it again, or deploy another version"}
	}
	m, err := i.catalog.Manifest(ctx, v)
	if err != nil {
		return web.Version{}, err
	}
	vault, err := i.catalog.Vault(ctx)
	if err != nil {
		return web.Version{}, err
	}
	packs, err := vault.PacksOf(refsFor(m, key.role))
	if err != nil {
		return web.Version{}, err
	}
	return web.Version{Head: m.Head, Manifest: v.Blob, Packs: packs}, nil
}

// refsFor are the chunks that a role may read.
func refsFor(m *imaging.Manifest, role cluster.Role) []store.Ref {
	var refs []store.Ref
	for _, e := range m.List.All() {
		a := e.Class.Audience()
		if a == store.Head && role != cluster.Head {
			continue
		}
		for _, c := range e.Chunks {
			refs = append(refs, store.Ref{Audience: a, ID: c.ID})
		}
	}
	return refs
}
