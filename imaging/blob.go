package imaging

import (
	"context"
	"errors"
	"fmt"
	"io"

	"doppel/imaging/store"
)

// A manifest in the store is one blob: a line that says so, and two sealed
// sections (store.Sealer).
//
//	"doppel sealed manifest 2\n"
//	for the audience cluster: the SHA-256 of the head part; the preamble; then
//	entries, whole ones in each segment
//	for the audience head: the head part
//
// Sealing is done with fresh salt, so the same manifest written twice gives two
// blobs of one digest.
const (
	sealedMagic = "doppel sealed manifest 2\n"
	kindCluster = "manifest"
	kindHead    = "manifest head"
)

// WriteManifest seals m and puts it into st, which takes both audience keys.
// It tells the blob, and the digest that is the version's identity.
func WriteManifest(ctx context.Context, st store.Store, keys store.Keys, m *Manifest) (blob store.ID, digest store.ID, err error) {
	fail := func(err error) (store.ID, store.ID, error) {
		return store.ID{}, store.ID{}, fmt.Errorf("write manifest: %w", err)
	}
	preamble, err := m.preamble()
	if err != nil {
		return fail(err)
	}
	head, err := m.headPart()
	if err != nil {
		return fail(err)
	}
	sum := store.Sum(head)
	if digest, err = m.digest(sum); err != nil {
		return fail(err)
	}
	spool, err := store.NewSpool(ctx, st, store.KindManifest)
	if err != nil {
		return fail(err)
	}
	defer spool.Discard() // nothing, once it is committed
	if _, err := io.WriteString(spool, sealedMagic); err != nil {
		return fail(err)
	}
	segments := append([][]byte{sum[:], preamble}, m.List.parts...)
	if err := sealSection(spool, keys, store.Cluster, kindCluster, segments); err != nil {
		return fail(err)
	}
	if err := sealSection(spool, keys, store.Head, kindHead, [][]byte{head}); err != nil {
		return fail(err)
	}
	if blob, err = spool.Commit(); err != nil {
		return fail(err)
	}
	return blob, digest, nil
}

func sealSection(w io.Writer, keys store.Keys, aud store.Audience, kind string, segments [][]byte) error {
	s, err := store.NewSealer(w, keys, aud, kind)
	for i := 0; i < len(segments) && err == nil; i++ {
		err = s.Segment(segments[i], i == len(segments)-1)
	}
	return err
}

// ReadManifest reads the manifest that blob holds and tells the digest that it
// has. A reader without the key of the audience head gets the entries that are
// for heads only Withheld.
func ReadManifest(ctx context.Context, st store.Store, keys store.Keys, blob store.ID) (m *Manifest, digest store.ID, err error) {
	r, err := store.OpenBlob(ctx, st, store.KindManifest, blob)
	if err != nil {
		return nil, digest, fmt.Errorf("read manifest: %w", err)
	}
	m, digest, err = readSections(r, keys, blob)
	var wrong *store.WrongKeyError
	if err == nil || errors.As(err, &wrong) {
		// Bytes that changed can look like another key's.
		if e := r.Finish(); e != nil {
			err = e
		}
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, digest, fmt.Errorf("read manifest %s: %w", blob, err)
	}
	return m, digest, nil
}

// readSections reads a sealed manifest from its beginning.
func readSections(r io.Reader, keys store.Keys, blob store.ID) (*Manifest, store.ID, error) {
	corrupt := func(detail string) (*Manifest, store.ID, error) {
		return nil, store.ID{}, &store.CorruptError{What: "manifest", ID: blob, Detail: detail}
	}
	magic := make([]byte, len(sealedMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != sealedMagic {
		return corrupt("it does not begin as a sealed manifest of this version does")
	}
	first, err := store.NewOpener(r, blob, keys, store.Cluster, kindCluster)
	if err != nil {
		return nil, store.ID{}, err
	}
	var sum store.ID
	b, err := first.Next()
	if err == nil && len(b) != len(sum) {
		return corrupt("its first segment is no digest")
	}
	copy(sum[:], b)
	x := newManifestDecoder()
	for n := 0; err == nil; n++ {
		if b, err = first.Next(); err != nil {
			break
		}
		if n == 0 {
			var rest []byte
			if rest, err = x.preamble(b); err == nil && len(rest) > 0 {
				return corrupt("something follows its preamble")
			}
		} else {
			err = x.part(b)
		}
		if err != nil {
			return corrupt(err.Error())
		}
	}
	if err != io.EOF {
		return nil, store.ID{}, err
	}
	if keys.Head != nil {
		head, err := readHead(r, keys, blob)
		if err != nil {
			return nil, store.ID{}, err
		}
		if store.Sum(head) != sum {
			return corrupt("its two sections are of two manifests")
		}
		if err := x.head(head); err != nil {
			return corrupt(err.Error())
		}
	}
	m, err := x.done()
	if err != nil {
		return corrupt(err.Error())
	}
	digest, err := m.digest(sum)
	return m, digest, err
}

// readHead reads the section for heads, with which the blob ends.
func readHead(r io.Reader, keys store.Keys, blob store.ID) ([]byte, error) {
	o, err := store.NewOpener(r, blob, keys, store.Head, kindHead)
	if err != nil {
		return nil, err
	}
	head, err := o.Next()
	if err != nil {
		return nil, err
	}
	if _, err := o.Next(); err != io.EOF {
		return nil, &store.CorruptError{What: "manifest", ID: blob, Detail: "its section for heads has more than one segment"}
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return nil, &store.CorruptError{What: "manifest", ID: blob, Detail: "something follows its sections"}
	}
	return head, nil
}
