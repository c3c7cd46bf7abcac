package imaging

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"doppel/imaging/store"
)

// CatalogOptions are what a Catalog may be told.
type CatalogOptions struct {
	Log *slog.Logger // nil: silent

	// Readers tells who reads the store otherwise than under Reading, machines
	// that are being installed say; "" is nobody. It is asked before anything
	// is deleted. Nil: nobody.
	Readers func(ctx context.Context) (who string, err error)
}

// Catalog is the images of one state directory: names over a store. Any number
// of processes may use it at once.
type Catalog struct {
	dir     string
	log     *slog.Logger
	readers func(ctx context.Context) (string, error)
}

// OpenCatalog opens the catalog of the state directory dir. Nothing is made
// until something is written.
func OpenCatalog(dir string, o CatalogOptions) (*Catalog, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the state directory: %w", err)
	}
	if info, err := os.Stat(abs); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory, and so no state directory", abs)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open the state directory: %w", err)
	}
	return &Catalog{dir: abs, log: cmp.Or(o.Log, slog.New(slog.DiscardHandler)), readers: o.Readers}, nil
}

// Dir is the state directory.
func (c *Catalog) Dir() string { return c.dir }

// Vault opens the chunks of the store. Whoever relies on them to stay holds
// the store's shared lock from before.
func (c *Catalog) Vault(ctx context.Context) (*store.Vault, error) {
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	keys, err := c.Keys()
	if err != nil {
		return nil, err
	}
	return store.OpenVault(ctx, st, keys, nil)
}

// List lists all versions, by image and number.
func (c *Catalog) List(ctx context.Context) ([]Version, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	list := []Version{}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f, err := c.readNames(name)
		if err != nil {
			return nil, err
		}
		list = append(list, f.Versions...)
	}
	return list, nil
}

// Resolve finds the version that ref names: NAME (its latest), NAME@NUMBER,
// NAME@latest, NAME@TAG, or the unambiguous beginning of a digest.
func (c *Catalog) Resolve(ctx context.Context, ref string) (Version, error) {
	name, which, at := strings.Cut(ref, "@")
	if !at {
		which = latest
	}
	if CheckName(name) == nil {
		f, err := c.readNames(name)
		if err != nil {
			return Version{}, err
		}
		if v, ok := f.pick(which); ok {
			return v, nil
		}
		if at && len(f.Versions) > 0 {
			return Version{}, &UnknownImageError{Ref: ref, Known: known(f.Versions)}
		}
	}
	list, err := c.List(ctx)
	if err != nil {
		return Version{}, err
	}
	if !at {
		if v, err := byDigest(list, ref); err != nil || v.Number > 0 {
			return v, err
		}
	}
	return Version{}, &UnknownImageError{Ref: ref, Known: known(list)}
}

// leastDigest is how many digits of a digest are taken for one.
const leastDigest = 4

// byDigest finds the version whose digest begins with ref; none: the zero
// Version. Versions of one digest are one, the last of them.
func byDigest(list []Version, ref string) (Version, error) {
	digits := strings.ToLower(strings.TrimPrefix(ref, "sha256:"))
	if len(digits) < leastDigest || strings.Trim(digits, "0123456789abcdef") != "" {
		return Version{}, nil
	}
	var found []Version
	for _, v := range list {
		if !strings.HasPrefix(v.Digest, "sha256:"+digits) {
			continue
		}
		if i := slices.IndexFunc(found, func(w Version) bool { return w.Digest == v.Digest }); i >= 0 {
			found[i] = v
		} else {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return Version{}, nil
	case 1:
		return found[0], nil
	}
	return Version{}, &AmbiguousError{Ref: ref, Among: found}
}

// Manifest reads the manifest of a version and checks that it is the one.
func (c *Catalog) Manifest(ctx context.Context, v Version) (*Manifest, error) {
	st, err := c.Store()
	if err != nil {
		return nil, err
	}
	keys, err := c.Keys()
	if err != nil {
		return nil, err
	}
	m, digest, err := ReadManifest(ctx, st, keys, v.Blob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Ref(), err)
	}
	if digest.String() != v.Digest {
		return nil, fmt.Errorf("%s: %w", v.Ref(), &store.CorruptError{What: "manifest", ID: v.Blob, Detail: "it is that of the version " + digest.String()})
	}
	return m, nil
}

// change reads the file of an image, lets fn change it, and replaces it, with
// everyone else kept out.
func (c *Catalog) change(ctx context.Context, name string, fn func(*nameFile) error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	release, err := lockDir(ctx, c.namesDir())
	if err != nil {
		return fmt.Errorf("lock the images: %w", err)
	}
	defer release()
	f, err := c.readNames(name)
	if err != nil {
		return err
	}
	if err := fn(f); err != nil {
		return err
	}
	return c.writeNames(name, f)
}

// Add makes v the next version of its image and gives it its number; the
// number that it comes with does not count. All that it needs must be durable
// in the store, and the store's shared lock held since before it was put there.
func (c *Catalog) Add(ctx context.Context, v Version) (Version, error) {
	if _, err := store.ParseID(v.Digest); err != nil {
		return v, err
	}
	for _, tag := range v.Tags {
		if err := checkTag(tag); err != nil {
			return v, err
		}
	}
	err := c.change(ctx, v.Image, func(f *nameFile) error {
		v.Number = f.Next
		f.Next++
		f.untag(v.Tags)
		f.Versions = append(f.Versions, v)
		return nil
	})
	return v, err
}

// untag takes tags from the versions that have them.
func (f *nameFile) untag(tags []string) {
	for i := range f.Versions {
		f.Versions[i].Tags = slices.DeleteFunc(f.Versions[i].Tags, func(t string) bool { return slices.Contains(tags, t) })
	}
}

// Tag gives the version that ref names the tag as another name. If another
// version of the image has the tag, it moves.
func (c *Catalog) Tag(ctx context.Context, ref, tag string) (Version, error) {
	if err := checkTag(tag); err != nil {
		return Version{}, err
	}
	v, err := c.Resolve(ctx, ref)
	if err != nil {
		return Version{}, err
	}
	err = c.change(ctx, v.Image, func(f *nameFile) error {
		f.untag([]string{tag})
		for i := range f.Versions {
			if f.Versions[i].Number == v.Number {
				f.Versions[i].Tags = append(f.Versions[i].Tags, tag)
				v = f.Versions[i]
				return nil
			}
		}
		return &UnknownImageError{Ref: v.Ref(), Known: known(f.Versions)}
	})
	return v, err
}
