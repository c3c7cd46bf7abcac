package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// GenerateKey makes a new audience key.
func GenerateKey() (Key, error) {
	var k Key
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("making a key: %w", err)
	}
	return k, nil
}

// Fingerprint tells keys apart without telling anything about them. Packs and
// manifests carry it in the clear.
func (k Key) Fingerprint() [8]byte {
	mac := hmac.New(sha256.New, k[:])
	mac.Write([]byte("doppel key fingerprint v1"))
	var f [8]byte
	copy(f[:], mac.Sum(nil))
	return f
}

// String, GoString, Format and LogValue write the fingerprint, so that no way
// of printing a value that holds a key gives the key away.
func (k Key) String() string {
	f := k.Fingerprint()
	return "key " + hex.EncodeToString(f[:])
}

func (k Key) GoString() string { return "store.Key(" + k.String() + ")" }

func (k Key) Format(s fmt.State, verb rune) {
	if verb == 'v' && s.Flag('#') {
		io.WriteString(s, k.GoString())
		return
	}
	io.WriteString(s, k.String())
}

func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText refuses: keys travel as bytes that someone chose to send, never
// because they were part of something that was encoded.
func (k Key) MarshalText() ([]byte, error) {
	return nil, errors.New("a key is not written as text; send its bytes where that is meant")
}

const maxKeyFile = 2*sha256.Size + 2 // digits, and a line end of one or two bytes

// ReadKey reads a key that WriteKey wrote. A file that anyone but its owner
// may read is refused.
func ReadKey(path string) (Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return Key{}, fmt.Errorf("reading a key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Key{}, fmt.Errorf("reading a key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return Key{}, fmt.Errorf("reading a key: %s is not a regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return Key{}, fmt.Errorf("reading a key: others than its owner have access to %s (mode %#o); if it has not leaked, run: chmod 0600 %s", path, perm, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return Key{}, fmt.Errorf("reading a key: %w", err)
	}
	k, err := parseKey(b)
	if err != nil {
		return Key{}, fmt.Errorf("reading a key: %s %w", path, err)
	}
	return k, nil
}

// parseKey never quotes what it was given: a key with a typing error is still
// most of a key.
func parseKey(b []byte) (Key, error) {
	var k Key
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) != hex.EncodedLen(len(k)) {
		return Key{}, errors.New("is not a key: want 64 hexadecimal digits and a newline")
	}
	if _, err := hex.Decode(k[:], b); err != nil {
		return Key{}, errors.New("is not a key: want 64 hexadecimal digits and a newline")
	}
	if k == (Key{}) {
		return Key{}, errors.New("is not a key: it is all zeros")
	}
	return k, nil
}

// WriteKey writes a key durably, for its owner alone. It never replaces a
// file: what was sealed with a key that is gone cannot be read again.
func WriteKey(path string, k Key) error {
	err := writeKey(path, k)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("writing a key: %s is there already; what it sealed cannot be read without it, so it is not replaced: %w", path, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	return nil
}

func writeKey(path string, k Key) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix) // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := io.WriteString(f, hex.EncodeToString(k[:])+"\n"); err != nil {
		f.Close()
		return err
	}
	if err := f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// link, unlike rename, does not replace what is there.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// key gives the key of an audience; nil when it is not held.
func (ks Keys) key(a Audience) *Key {
	switch a {
	case Cluster:
		return ks.Cluster
	case Head:
		return ks.Head
	}
	return nil
}

const saltSize = 32

// cipher makes the cipher of one pack or blob. A salt is used for one file only,
// so the nonces within it need not differ from those of any other.
func (k *Key) cipher(salt []byte, info string) (cipher.AEAD, error) {
	derived, err := hkdf.Key(sha256.New, k[:], salt, info, len(k))
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	b, err := aes.NewCipher(derived)
	if err != nil {
		return nil, fmt.Errorf("making a cipher: %w", err)
	}
	return cipher.NewGCM(b)
}

// WrongKeyError says that something is sealed with another key than the one
// held for its audience.
type WrongKeyError struct {
	What     string // "pack sha256:…" or the kind of a blob
	Audience Audience
	Sealed   [8]byte // fingerprint of the key it is sealed with
	Held     [8]byte // fingerprint of the key that is held; zero when none is
}

func (e *WrongKeyError) Error() string {
	if e.Held == ([8]byte{}) {
		return fmt.Sprintf("%s is sealed for the audience %s, whose key (fingerprint %x) is not held here", e.What, e.Audience, e.Sealed)
	}
	return fmt.Sprintf("%s is sealed with another key: the %s key it needs has the fingerprint %x, the one held here %x", e.What, e.Audience, e.Sealed, e.Held)
}
