package imaging

import (
	"context"

	"doppel/imaging/store"
)

// Encode writes the manifest as its cluster part and its head part.
func (m *Manifest) Encode() (cluster, head []byte, err error) { return nil, nil, errUnbuilt }

// DecodeManifest reads what Encode wrote; head is nil for a reader that may
// not have it, and the entries it is about come Withheld.
func DecodeManifest(cluster, head []byte) (*Manifest, error) { return nil, errUnbuilt }

// ManifestDigest is the identity of a version, from its cluster part and the
// SHA-256 of its head part.
func ManifestDigest(cluster []byte, head store.ID) store.ID { return store.ID{} }

// WriteManifest seals m and puts it into st. It tells the blob and the
// version's digest.
func WriteManifest(ctx context.Context, st store.Store, keys store.Keys, m *Manifest) (blob store.ID, digest string, err error) {
	return blob, "", errUnbuilt
}

// ReadManifest reads the manifest that blob holds, as far as keys reach.
func ReadManifest(ctx context.Context, st store.Store, keys store.Keys, blob store.ID) (m *Manifest, digest string, err error) {
	return nil, "", errUnbuilt
}
