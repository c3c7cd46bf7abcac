package imaging

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// PruneOptions say what Prune does.
type PruneOptions struct {
	// Remove are versions to be taken out of the catalog. One that has become
	// the latest of its image meanwhile, or has got a tag, stays.
	Remove []Version

	// Repack has packs of which much is dead, and many small ones, written
	// anew. Without it only what is wholly unused goes.
	Repack bool

	// DryRun only says what would come of it.
	DryRun bool

	// Step, if not nil, is told each step before it is taken.
	Step func(name string)
}

// PruneReport says what Prune did or, of a dry run, about what it would do.
// Sizes are in bytes.
type PruneReport struct {
	Removed   []Version `json:"removed"`
	Blobs     int       `json:"blobs_deleted"` // packs and manifests
	Deleted   int64     `json:"bytes_deleted"`
	Rewritten int       `json:"packs_rewritten"`
	Copied    int64     `json:"bytes_copied"` // into new packs
	Freed     int64     `json:"bytes_freed"`  // deleted less copied; negative while much waits
	// Waiting is what nothing needs any more but someone may still read; the
	// next prune deletes it.
	Waiting    int64    `json:"bytes_waiting"`
	WaitingFor string   `json:"waiting_for,omitempty"`
	Damaged    []string `json:"damaged"` // what could not be written anew, as it is damaged
}

// Remove takes the version that ref names out of the catalog, and then deletes
// what nothing needs any more. Its number is not used again. It waits until no
// one adds to the store.
func (c *Catalog) Remove(ctx context.Context, ref string) (Version, error) {
	st, err := c.Store()
	if err != nil {
		return Version{}, err
	}
	release, err := st.LockPruning(ctx)
	if err != nil {
		return Version{}, err
	}
	defer release()
	v, err := c.Resolve(ctx, ref)
	if err != nil {
		return Version{}, err
	}
	if err := c.forget(ctx, v); err != nil {
		return v, err
	}
	p := &prune{catalog: c, st: st}
	if err := p.run(ctx); err != nil {
		return v, fmt.Errorf("%s is removed; its space is not free yet: %w", v.Ref(), err)
	}
	c.log.Info("version removed", "image", v.Ref(), "blobs", p.report.Blobs, "bytes", p.report.Deleted)
	return v, nil
}

// forget takes a version's name.
func (c *Catalog) forget(ctx context.Context, v Version) error {
	return c.change(ctx, v.Image, func(f *nameFile) error {
		f.Versions = slices.DeleteFunc(f.Versions, func(w Version) bool { return w.Number == v.Number })
		return nil
	})
}

// Sweep deletes what no version needs: what interrupted captures left, and
// what removed versions needed alone.
func (c *Catalog) Sweep(ctx context.Context) (PruneReport, error) {
	return c.Prune(ctx, PruneOptions{})
}

// Prune removes versions and gives back the room of what no version needs.
//
// Captures go on while it writes packs anew; it waits for them only to take the
// old ones out of the list. What it takes out is deleted when nobody reads: who
// holds Reading, and whom CatalogOptions.Readers tells of, may read on. After
// kill -9, power loss or a full disk at any instant every version is whole, and
// another Prune finishes the work. Two at once take turns.
func (c *Catalog) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	st, err := c.Store()
	if err != nil {
		return PruneReport{}, err
	}
	release, err := st.LockPruning(ctx)
	if err != nil {
		return PruneReport{}, err
	}
	defer release()
	p := &prune{catalog: c, st: st, o: o}
	err = p.run(ctx)
	return p.report, err
}

// prune is one run of Prune. It holds LockPruning.
type prune struct {
	catalog *Catalog
	st      *store.Dir
	o       PruneOptions
	report  PruneReport

	keys   store.Keys
	live   *store.Live
	marked map[store.ID]bool // manifests whose chunks are in live
}

func (p *prune) step(name string) {
	if p.o.Step != nil {
		p.o.Step(name)
	}
}

func (p *prune) run(ctx context.Context) error {
	var err error
	p.report.Removed, p.report.Damaged = []Version{}, []string{}
	if p.keys, err = p.catalog.Keys(); err != nil {
		return err
	}
	if p.keys.Head == nil {
		return errors.New("what heads alone may read cannot be told from what nobody needs: keys/head.key is not here")
	}
	if err := p.remove(ctx); err != nil {
		return err
	}
	packs, err := p.repack(ctx)
	if packs == nil || p.o.DryRun {
		return err
	}
	// A disk that filled up has room again once what was replaced is gone.
	return errors.Join(err, p.retire(ctx, packs), p.free(ctx))
}

// remove takes the names of versions away.
func (p *prune) remove(ctx context.Context) error {
	for _, v := range p.o.Remove {
		if p.o.DryRun {
			p.report.Removed = append(p.report.Removed, v)
			continue
		}
		p.step("remove")
		removed := false
		err := p.catalog.change(ctx, v.Image, func(f *nameFile) error {
			i := slices.IndexFunc(f.Versions, func(w Version) bool { return w.Number == v.Number })
			if i < 0 || i == len(f.Versions)-1 || len(f.Versions[i].Tags) > 0 {
				return nil
			}
			f.Versions = slices.Delete(f.Versions, i, i+1)
			removed = true
			return nil
		})
		if err != nil {
			return err
		}
		if removed {
			p.report.Removed = append(p.report.Removed, v)
		}
	}
	return nil
}

// repack finds what lives, and writes anew what is worth it. The packs it
// returns are nil if it did not come so far.
func (p *prune) repack(ctx context.Context) (*store.Repack, error) {
	release, err := p.st.LockShared(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	p.step("mark")
	p.live, p.marked = store.NewLive(), map[store.ID]bool{}
	if _, err := p.mark(ctx, p.live); err != nil {
		return nil, err
	}
	p.step("survey")
	packs, err := store.SurveyPacks(ctx, p.st, p.keys, p.live)
	if err != nil {
		return nil, err
	}
	if p.o.DryRun {
		return packs, p.estimate(ctx, packs)
	}
	if !p.o.Repack {
		return packs, nil
	}
	p.step("copy")
	p.report.Rewritten, p.report.Copied, err = packs.Copy(ctx)
	for _, bad := range packs.Corrupt() {
		p.report.Damaged = append(p.report.Damaged, bad.Error())
	}
	return packs, p.catalog.explain(err)
}

// mark adds the chunks of all versions whose manifests are not marked yet to
// live, those of the latest first, and gives the manifests that have names.
func (p *prune) mark(ctx context.Context, live *store.Live) (named map[store.ID]bool, err error) {
	list, err := p.catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	if p.o.DryRun {
		for _, v := range p.o.Remove {
			gone[v.Ref()] = true
		}
	}
	slices.SortStableFunc(list, func(a, b Version) int { return b.Number - a.Number })
	named = map[store.ID]bool{}
	for _, v := range list {
		if gone[v.Ref()] {
			continue
		}
		named[v.Blob] = true
		if p.marked[v.Blob] {
			continue
		}
		m, err := p.catalog.Manifest(ctx, v)
		if err != nil {
			return nil, &UnknownNeedsError{v, err}
		}
		p.marked[v.Blob] = true
		for ref := range m.Refs() {
			live.Add(ref.Ref)
		}
	}
	return named, nil
}

// UnknownNeedsError says that nothing can be deleted because a version's
// manifest cannot be read.
type UnknownNeedsError struct {
	Version Version
	Err     error
}

func (e *UnknownNeedsError) Error() string {
	return fmt.Sprintf("nothing is deleted, as it is not known what %s needs: %v", e.Version.Ref(), e.Err)
}

func (e *UnknownNeedsError) Unwrap() error { return e.Err }

// Hint tells what helps.
func (e *UnknownNeedsError) Hint() string {
	return fmt.Sprintf("doppel image repair may find it again; doppel image rm %s gives it up", e.Version.Ref())
}

// estimate fills the report of a dry run.
func (p *prune) estimate(ctx context.Context, packs *store.Repack) error {
	e := packs.Estimate(p.o.Repack)
	p.report.Blobs, p.report.Deleted, p.report.Rewritten, p.report.Copied = e.Packs, e.Deletes, e.Rewrites, e.Copies
	err := p.st.List(ctx, store.KindManifest, func(id store.ID, size int64) error {
		if !p.marked[id] {
			p.report.Blobs++
			p.report.Deleted += size
		}
		return nil
	})
	leftOver := func(_ store.Kind, _ store.ID, size int64) error {
		p.report.Blobs++
		p.report.Deleted += size
		return nil
	}
	err = errors.Join(err, p.st.Retired(ctx, leftOver), p.st.Aside(ctx, leftOver))
	p.report.Freed = p.report.Deleted - p.report.Copied
	return err
}

// retire takes what nothing needs out of the list. What captures added since
// the packs were looked at is asked for anew; from here on nobody adds.
func (p *prune) retire(ctx context.Context, packs *store.Repack) error {
	p.step("lock")
	release, err := p.st.LockExclusive(ctx)
	if err != nil {
		return err
	}
	defer release()
	p.step("recheck")
	later := store.NewLive()
	named, err := p.mark(ctx, later)
	if err != nil {
		return err
	}
	ids, err := packs.Removable(ctx, later)
	if err != nil {
		return err
	}
	if err := p.st.Retire(ctx, store.KindPack, ids, func() { p.step("retire pack") }); err != nil {
		return err
	}
	var unnamed []store.ID
	err = p.st.List(ctx, store.KindManifest, func(id store.ID, _ int64) error {
		if !named[id] {
			unnamed = append(unnamed, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.st.Retire(ctx, store.KindManifest, unnamed, func() { p.step("retire manifest") })
}

// free deletes what is retired, if nobody reads it. Whoever begins to read
// after it was retired does not come upon it.
func (p *prune) free(ctx context.Context) error {
	defer func() { p.report.Freed = p.report.Deleted - p.report.Copied }()
	p.step("free")
	if p.o.Repack {
		blobs, bytes, err := p.st.FreeAside(ctx)
		p.report.Blobs += blobs
		p.report.Deleted += bytes
		if err != nil {
			return err
		}
	}
	who := p.catalog.reader(ctx)
	if who == "" {
		blobs, bytes, read, err := p.st.FreeRetired(ctx, func() { p.step("free blob") })
		p.report.Blobs += blobs
		p.report.Deleted += bytes
		if err != nil {
			return err
		}
		if read {
			who = "another doppel, which reads the store"
		}
	}
	if who == "" {
		return nil
	}
	err := p.st.Retired(ctx, func(_ store.Kind, _ store.ID, size int64) error { p.report.Waiting += size; return nil })
	if p.report.Waiting > 0 {
		p.report.WaitingFor = who
	}
	return err
}

// Reading waits for the right to read what versions need, and to read on until
// it is released, whatever is removed meanwhile. It is taken before Vault. It
// keeps nobody from capturing or pruning; only that room is given back waits.
func (c *Catalog) Reading(ctx context.Context) (release func(), err error) {
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	return st.LockReading(ctx)
}

// reader tells who reads the store in another way than by Reading. Not to know
// is as if there was one.
func (c *Catalog) reader(ctx context.Context) string {
	if c.readers == nil {
		return ""
	}
	who, err := c.readers(ctx)
	if err != nil {
		return "nodes that may be being installed: " + err.Error()
	}
	return who
}
