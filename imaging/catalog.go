package imaging

import (
	"context"
	"log/slog"

	"doppel/imaging/store"
)

// CatalogOptions are what a Catalog may be told.
type CatalogOptions struct {
	Log *slog.Logger // nil: silent
}

// Catalog is the images of one state directory: names over a store.
type Catalog struct{ dir string }

// OpenCatalog opens the catalog of the state directory dir. Nothing is made
// until something is written.
func OpenCatalog(dir string, o CatalogOptions) (*Catalog, error) { return nil, errUnbuilt }

// Store is the store the catalog's blobs are in.
func (c *Catalog) Store() (store.Store, error) { return nil, errUnbuilt }

// Keys are the audience keys of the state directory.
func (c *Catalog) Keys() (store.Keys, error) { return store.Keys{}, errUnbuilt }

// Vault opens the chunks of the store.
func (c *Catalog) Vault(ctx context.Context) (*store.Vault, error) { return nil, errUnbuilt }

// List lists all versions, by image and number.
func (c *Catalog) List(ctx context.Context) ([]Version, error) { return nil, errUnbuilt }

// Resolve finds the version that ref names: NAME, NAME@NUMBER, NAME@latest,
// NAME@TAG, or the unambiguous beginning of a digest.
func (c *Catalog) Resolve(ctx context.Context, ref string) (Version, error) {
	return Version{}, errUnbuilt
}

// Manifest reads the manifest of a version.
func (c *Catalog) Manifest(ctx context.Context, v Version) (*Manifest, error) {
	return nil, errUnbuilt
}

// Add makes v the next version of its image and gives it its number.
func (c *Catalog) Add(ctx context.Context, v Version) (Version, error) { return v, errUnbuilt }

// Remove takes the version that ref names out of the catalog, and deletes
// what nothing needs any more.
func (c *Catalog) Remove(ctx context.Context, ref string) (Version, error) {
	return Version{}, errUnbuilt
}

// Tag gives the version that ref names the tag as another name.
func (c *Catalog) Tag(ctx context.Context, ref, tag string) (Version, error) {
	return Version{}, errUnbuilt
}

// ImageFault is one thing that is wrong with a version.
type ImageFault struct {
	Version Version
	Path    string   // empty: the version as a whole
	Chunk   store.ID // zero: not about one chunk
	Err     error
}

// Verify checks that the versions named by refs (all when there are none) are
// wholly in the store, and with readData that every byte is right. It calls
// fn for every fault; an error means that it could not check.
func (c *Catalog) Verify(ctx context.Context, refs []string, readData bool, fn func(ImageFault)) error {
	return errUnbuilt
}
