package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	blobMagic   = "DOPPELMF"
	blobVersion = 1
	blobInfo    = "doppel blob v1"

	// MaxBlob bounds the plain bytes of a sealed blob, and what ReadBlob
	// reads of a stored one.
	MaxBlob = 1 << 30
)

// SealBlob compresses plain and seals it for an audience. The kind ("manifest")
// is bound to it: what was sealed as one kind does not open as another. Sealing
// the same bytes twice gives different blobs.
func SealBlob(keys Keys, aud Audience, kind string, plain []byte) ([]byte, error) {
	if len(plain) > MaxBlob {
		return nil, fmt.Errorf("sealing a %s: %d bytes are more than %d", kind, len(plain), MaxBlob)
	}
	key := keys.key(aud)
	if key == nil {
		return nil, fmt.Errorf("sealing a %s: the key of the audience %s is not held", kind, aud)
	}
	h := header{magic: blobMagic, version: blobVersion, audience: aud, fingerprint: key.Fingerprint()}
	if _, err := rand.Read(h.salt[:]); err != nil {
		return nil, fmt.Errorf("sealing a %s: %w", kind, err)
	}
	aead, err := key.cipher(h.salt[:], blobInfo)
	if err != nil {
		return nil, fmt.Errorf("sealing a %s: %w", kind, err)
	}
	e := encoders.Get().(*zstd.Encoder)
	small := e.EncodeAll(plain, nil)
	encoders.Put(e)
	out := make([]byte, 0, headerSize+len(small)+aead.Overhead())
	out = h.append(out)
	// The salt is used for this blob alone, so one fixed nonce does.
	return aead.Seal(out, make([]byte, aead.NonceSize()), small, blobAD(h, kind)), nil
}

// OpenBlob gives back what SealBlob sealed.
func OpenBlob(keys Keys, aud Audience, kind string, sealed []byte) ([]byte, error) {
	id := Sum(sealed)
	corrupt := func(format string, a ...any) error {
		return &CorruptError{What: kind, ID: id, Detail: fmt.Sprintf(format, a...)}
	}
	h, err := parseHeader(blobMagic, blobVersion, sealed)
	if err != nil {
		return nil, corrupt("%v", err)
	}
	if h.audience != aud {
		return nil, fmt.Errorf("opening a %s: it is sealed for the audience %s, not %s", kind, h.audience, aud)
	}
	key := keys.key(aud)
	if key == nil {
		return nil, fmt.Errorf("opening a %s: %w", kind, &WrongKeyError{What: "it", Audience: aud, Sealed: h.fingerprint})
	}
	aead, err := key.cipher(h.salt[:], blobInfo)
	if err != nil {
		return nil, fmt.Errorf("opening a %s: %w", kind, err)
	}
	small, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed[headerSize:], blobAD(h, kind))
	if held := key.Fingerprint(); held != h.fingerprint {
		if err == nil {
			return nil, corrupt("its key fingerprint is not that of its key")
		}
		return nil, fmt.Errorf("opening a %s: %w", kind, &WrongKeyError{What: "it", Audience: aud, Sealed: h.fingerprint, Held: held})
	}
	if err != nil {
		return nil, corrupt("it does not open: some of its bytes, or the kind it was sealed as, are not these")
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBlob))
	if err != nil {
		return nil, fmt.Errorf("opening a %s: %w", kind, err)
	}
	defer d.Close()
	plain, err := d.DecodeAll(small, nil)
	if err != nil {
		return nil, corrupt("decoding it: %v", err)
	}
	return plain, nil
}

func blobAD(h header, kind string) []byte {
	return append(h.ad(), kind...)
}

// PutBlob puts b under its digest.
func PutBlob(ctx context.Context, st Store, k Kind, b []byte) (ID, error) {
	id := Sum(b)
	return id, st.Put(ctx, k, id, bytes.NewReader(b))
}

// ReadBlob reads a whole blob and checks its digest.
func ReadBlob(ctx context.Context, st Store, k Kind, id ID) ([]byte, error) {
	r, err := st.Open(ctx, k, id, 0, -1)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, MaxBlob+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("reading %s %s: %w", k, id, err)
	}
	if len(b) > MaxBlob {
		return nil, &CorruptError{What: string(k), ID: id, Detail: fmt.Sprintf("it is larger than %d bytes", MaxBlob)}
	}
	if got := Sum(b); got != id {
		return nil, &CorruptError{What: string(k), ID: id, Detail: "its bytes have the digest " + got.String()}
	}
	return b, nil
}
