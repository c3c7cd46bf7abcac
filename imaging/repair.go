package imaging

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// RepairOptions say how Repair works.
type RepairOptions struct {
	// Depth is how closely it looks for damage: store.Bytes, or store.Chunks.
	Depth store.Depth

	// DryRun only says what it would come to.
	DryRun bool

	// Step, if not nil, is told each step before it is taken.
	Step func(name string)
}

// RepairReport says what Repair found and did or, of a dry run, would do.
type RepairReport struct {
	Names  []RepairedNames `json:"names"`
	Packs  []RepairedPack  `json:"packs"`
	Linked []string        `json:"linked"` // versions whose manifest was damaged, and found again
	Lost   []ImageFault    `json:"-"`      // what is still wrong
	DryRun bool            `json:"dry_run,omitempty"`
}

// RepairedNames is a file of an image's versions that was not what it was.
type RepairedNames struct {
	Image string `json:"image"`
	Error string `json:"error"` // what was wrong
	From  string `json:"from"`  // "copy", "original", or "" when both are gone
}

// RepairedPack is a pack that was not what it was.
type RepairedPack struct {
	Pack  string `json:"pack"`
	Error string `json:"error"`        // what was wrong
	Saved int    `json:"chunks_saved"` // whole, those included that another pack holds
	Bytes int64  `json:"bytes_saved"`
}

// Repair finds what is damaged in the store and saves what is whole of it.
// Files of names are taken from their copies. Whole chunks of damaged packs are
// written into new packs, and the damaged ones set aside, for the next Prune to
// delete. A version whose manifest is damaged gets another that says the same,
// if there is one: capturing an unchanged tree again makes one. What is lost
// for good, and what it harms, is in the report; capturing the same tree again
// brings back what is still in it, for all versions.
//
// Captures go on meanwhile; Repair waits for them only to set packs aside. After
// kill -9 or power loss at any instant nothing is worse than it was, and another
// Repair finishes the work.
func (c *Catalog) Repair(ctx context.Context, o RepairOptions) (*RepairReport, error) {
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	release, err := st.LockPruning(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	r := &repair{catalog: c, st: st, o: o}
	r.report = RepairReport{Names: []RepairedNames{}, Packs: []RepairedPack{}, Linked: []string{}, DryRun: o.DryRun}
	if r.keys, err = c.Keys(); err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context) error{r.names, r.packs, r.manifests, r.rest} {
		if err := part(ctx); err != nil {
			return &r.report, c.explain(err)
		}
	}
	return &r.report, nil
}

// repair is one run of Repair. It holds LockPruning.
type repair struct {
	catalog *Catalog
	st      *store.Dir
	o       RepairOptions
	keys    store.Keys
	report  RepairReport

	whole []store.ID         // packs that are what they were
	saved map[store.Ref]bool // by a dry run
}

func (r *repair) step(name string) {
	if r.o.Step != nil {
		r.o.Step(name)
	}
}

// names puts files of names and their copies right by one another.
func (r *repair) names(ctx context.Context) error {
	list, err := r.catalog.names()
	if err != nil {
		return err
	}
	for _, name := range list {
		if err := r.image(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (r *repair) image(ctx context.Context, name string) error {
	release, err := lockDir(ctx, r.catalog.namesDir())
	if err != nil {
		return fmt.Errorf("lock the images: %w", err)
	}
	defer release()
	file, ferr := readNameFile(r.catalog.namePath(name), name)
	double, derr := readNameFile(r.catalog.copyPath(name), name)
	for _, err := range []error{ferr, derr} {
		var bad *NamesError
		if err != nil && !errors.As(err, &bad) {
			return err
		}
	}
	if ferr == nil && derr == nil {
		return nil
	}
	found := RepairedNames{Image: name}
	switch {
	case ferr != nil && derr != nil:
		found.Error = ferr.Error() + "; its copy: " + derr.Error()
		r.report.Names = append(r.report.Names, found)
		r.lose(ImageFault{Version: Version{Image: name}, Err: ferr})
		return nil
	case ferr != nil:
		// The copy may be one change behind: a number that was given since must
		// not be given again.
		found.Error, found.From, file = ferr.Error(), "copy", double
		file.Next++
	default:
		found.Error, found.From = derr.Error(), "original"
	}
	r.report.Names = append(r.report.Names, found)
	if r.o.DryRun {
		return nil
	}
	r.step("names")
	return r.catalog.writeNames(name, file)
}

func (r *repair) lose(f ImageFault) { r.report.Lost = append(r.report.Lost, f) }

// packs saves what is whole of damaged packs and sets them aside.
func (r *repair) packs(ctx context.Context) error {
	damaged, err := r.saveDamaged(ctx)
	if err != nil || r.o.DryRun || len(damaged) == 0 {
		return err
	}
	r.step("lock")
	release, err := r.st.LockExclusive(ctx)
	if err != nil {
		return err
	}
	defer release()
	r.step("set aside")
	return r.st.SetAside(ctx, store.KindPack, damaged)
}

func (r *repair) saveDamaged(ctx context.Context) ([]store.ID, error) {
	release, err := r.st.LockShared(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	damaged, err := r.damaged(ctx)
	if err != nil || len(damaged) == 0 {
		return nil, err
	}
	return damaged, r.save(ctx, damaged)
}

// damaged looks at all packs. Those whose key is not held cannot be saved from,
// so they are left as they are.
func (r *repair) damaged(ctx context.Context) ([]store.ID, error) {
	r.step("verify")
	vault, err := store.OpenVault(ctx, r.st, r.keys, nil)
	if err != nil {
		return nil, err
	}
	faults := map[store.ID]error{}
	err = vault.Verify(ctx, max(r.o.Depth, store.Bytes), func(f store.Fault) {
		if faults[f.Pack] == nil {
			faults[f.Pack] = f.Err
		}
	})
	if err != nil {
		return nil, err
	}
	var ids []store.ID
	err = r.st.List(ctx, store.KindPack, func(id store.ID, _ int64) error {
		err := faults[id]
		var wrong *store.WrongKeyError
		switch {
		case errors.As(err, &wrong):
			r.lose(ImageFault{Err: err})
		case err != nil:
			ids = append(ids, id)
			r.report.Packs = append(r.report.Packs, RepairedPack{Pack: id.String(), Error: err.Error()})
		default:
			r.whole = append(r.whole, id)
		}
		return nil
	})
	return ids, err
}

// save writes the whole chunks of damaged packs anew.
func (r *repair) save(ctx context.Context, damaged []store.ID) error {
	vault, err := store.OpenVault(ctx, r.st, r.keys, append([]store.ID{}, r.whole...))
	if err != nil {
		return err
	}
	w := vault.NewWriter()
	defer w.Close()
	r.saved = map[store.Ref]bool{}
	add := func(b store.Block) error {
		if !r.o.DryRun {
			return w.Add(ctx, b)
		}
		for _, c := range b.Chunks {
			r.saved[store.Ref{Audience: b.Audience, ID: c.ID}] = true
		}
		return nil
	}
	r.step("salvage")
	for i, id := range damaged {
		s, err := store.Salvage(ctx, r.st, r.keys, id, add)
		if err != nil {
			return err
		}
		r.report.Packs[i].Saved, r.report.Packs[i].Bytes = s.Chunks, s.Bytes
	}
	r.step("commit")
	return w.Commit(ctx)
}

// manifests finds for versions whose manifest is damaged another of the same
// digest.
func (r *repair) manifests(ctx context.Context) error {
	list, err := r.readableNames(ctx)
	if err != nil {
		return err
	}
	var bad []Version
	good := map[string]store.ID{} // by digest
	for _, v := range list {
		_, err := r.catalog.Manifest(ctx, v)
		switch {
		case err == nil:
			good[v.Digest] = v.Blob
		case !isDataFault(err):
			return err
		default:
			bad = append(bad, v)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	if err := r.unnamed(ctx, list, good); err != nil {
		return err
	}
	for _, v := range bad {
		if blob, found := good[v.Digest]; found {
			r.report.Linked = append(r.report.Linked, v.Ref())
			if err := r.link(ctx, v, blob); err != nil {
				return err
			}
		}
	}
	return nil
}

// readableNames are the versions of those images whose names can be read.
func (r *repair) readableNames(ctx context.Context) ([]Version, error) {
	return r.catalog.checkNames(ctx, func(*NamesError) {}) // names has told of them
}

// unnamed looks among the manifests that no version has, such as one of a
// capture that was killed before it gave the name.
func (r *repair) unnamed(ctx context.Context, list []Version, good map[string]store.ID) error {
	return r.st.List(ctx, store.KindManifest, func(id store.ID, _ int64) error {
		if slices.ContainsFunc(list, func(v Version) bool { return v.Blob == id }) {
			return nil
		}
		_, digest, err := ReadManifest(ctx, r.st, r.keys, id)
		if err == nil {
			good[digest.String()] = id
		} else if !isDataFault(err) {
			return err
		}
		return nil
	})
}

// link gives a version another manifest, which says the same.
func (r *repair) link(ctx context.Context, v Version, blob store.ID) error {
	if r.o.DryRun {
		return nil
	}
	r.step("link")
	return r.catalog.change(ctx, v.Image, func(f *nameFile) error {
		for i := range f.Versions {
			if f.Versions[i].Number == v.Number && f.Versions[i].Digest == v.Digest {
				f.Versions[i].Blob = blob
			}
		}
		return nil
	})
}

// rest finds what is still lost.
func (r *repair) rest(ctx context.Context) error {
	r.step("rest")
	list, err := r.readableNames(ctx)
	if err != nil {
		return err
	}
	var vault *store.Vault
	if r.o.DryRun {
		vault, err = store.OpenVault(ctx, r.st, r.keys, append([]store.ID{}, r.whole...))
	} else {
		vault, err = store.OpenVault(ctx, r.st, r.keys, nil)
	}
	if err != nil {
		return err
	}
	for _, v := range list {
		m, err := r.catalog.Manifest(ctx, v)
		if err != nil && !isDataFault(err) {
			return err
		}
		if err != nil {
			if !r.o.DryRun || !slices.Contains(r.report.Linked, v.Ref()) {
				r.lose(ImageFault{Version: v, Err: err})
			}
			continue
		}
		for ref := range m.Refs() {
			if size, ok := vault.Size(ref.Ref); (!ok || size != ref.Size) && !r.saved[ref.Ref] {
				r.lose(ImageFault{Version: v, Path: ref.Entry.Path, Chunk: ref.ID, Err: &store.MissingError{What: "chunk", ID: ref.ID}})
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
