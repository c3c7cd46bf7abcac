package imaging

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"doppel/imaging/store"
)

// A manifest in the store is one blob of two sealed sections:
//
//	"doppel sealed manifest 1\n"
//	length of the first section, 8 bytes, big-endian
//	for the audience cluster: the SHA-256 of the head part, the cluster part
//	for the audience head: the head part
//
// Sealing is done with fresh salt, so the same manifest written twice gives two
// blobs of one digest.
const (
	sealedMagic = "doppel sealed manifest 1\n"
	kindCluster = "manifest"
	kindHead    = "manifest head"
)

// WriteManifest seals m and puts it into st, which takes both audience keys.
// It tells the blob, and the digest that is the version's identity.
func WriteManifest(ctx context.Context, st store.Store, keys store.Keys, m *Manifest) (blob store.ID, digest string, err error) {
	cluster, head, err := m.Encode()
	if err != nil {
		return blob, "", err
	}
	return writeParts(ctx, st, keys, cluster, head)
}

func writeParts(ctx context.Context, st store.Store, keys store.Keys, cluster, head []byte) (blob store.ID, digest string, err error) {
	sum := store.Sum(head)
	first, err := store.SealBlob(keys, store.Cluster, kindCluster, slices.Concat(sum[:], cluster))
	if err != nil {
		return blob, "", fmt.Errorf("write manifest: %w", err)
	}
	second, err := store.SealBlob(keys, store.Head, kindHead, head)
	if err != nil {
		return blob, "", fmt.Errorf("write manifest: %w", err)
	}
	b := binary.BigEndian.AppendUint64([]byte(sealedMagic), uint64(len(first)))
	b = append(append(b, first...), second...)
	if blob, err = store.PutBlob(ctx, st, store.KindManifest, b); err != nil {
		return blob, "", fmt.Errorf("write manifest: %w", err)
	}
	return blob, ManifestDigest(cluster, sum).String(), nil
}

// ReadManifest reads the manifest that blob holds and tells the digest that it
// has. A reader without the key of the audience head gets the entries that are
// for heads only Withheld.
func ReadManifest(ctx context.Context, st store.Store, keys store.Keys, blob store.ID) (m *Manifest, digest string, err error) {
	b, err := store.ReadBlob(ctx, st, store.KindManifest, blob)
	if err != nil {
		return nil, "", fmt.Errorf("read manifest: %w", err)
	}
	corrupt := func(detail string) error {
		return fmt.Errorf("read manifest: %w", &store.CorruptError{What: "manifest", ID: blob, Detail: detail})
	}
	start := len(sealedMagic) + 8
	if len(b) < start || string(b[:len(sealedMagic)]) != sealedMagic {
		return nil, "", corrupt("it does not begin as a sealed manifest of this version does")
	}
	n := binary.BigEndian.Uint64(b[len(sealedMagic):])
	b = b[start:]
	if n > uint64(len(b)) {
		return nil, "", corrupt("its first section is longer than itself")
	}
	first, err := store.OpenBlob(keys, store.Cluster, kindCluster, b[:n])
	if err != nil {
		return nil, "", fmt.Errorf("read manifest %s: %w", blob, err)
	}
	var sum store.ID
	if len(first) < len(sum) {
		return nil, "", corrupt("its first section is too short")
	}
	cluster := first[copy(sum[:], first):]
	var head []byte
	if keys.Head != nil {
		if head, err = store.OpenBlob(keys, store.Head, kindHead, b[n:]); err != nil {
			return nil, "", fmt.Errorf("read manifest %s: %w", blob, err)
		}
		if store.Sum(head) != sum {
			return nil, "", corrupt("its two sections are of two manifests")
		}
	}
	if m, err = DecodeManifest(cluster, head); err != nil {
		return nil, "", corrupt(err.Error())
	}
	return m, ManifestDigest(cluster, sum).String(), nil
}
