package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeyFile(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cluster.key")
	if err := WriteKey(path, key); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 || string(b) != hex.EncodeToString(key[:])+"\n" {
		t.Errorf("mode %o, %d bytes", info.Mode(), len(b))
	}
	if got, err := ReadKey(path); err != nil || got != key {
		t.Errorf("reading it: %v", err)
	}
	if err := WriteKey(path, Key{1}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writing over it: %v", err)
	}
	if got, err := ReadKey(path); err != nil || got != key {
		t.Errorf("it was replaced: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("beside it: %v, %v", entries, err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o610} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadKey(path); err == nil || !strings.Contains(err.Error(), "chmod 0600 "+path) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	if _, err := ReadKey(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing key: %v", err)
	}
	if _, err := ReadKey(filepath.Dir(path)); err == nil {
		t.Error("a directory is a key")
	}
}

func TestKeyFileContents(t *testing.T) {
	digits := strings.Repeat("a1", 32)
	path := filepath.Join(t.TempDir(), "key")
	for content, ok := range map[string]bool{
		digits + "\n":           true,
		digits:                  true,
		digits + "\r\n":         true,
		strings.ToUpper(digits): true,
		"":                      false,
		digits[1:] + "\n":       false,
		digits + "0\n":          false,
		digits + "\n\n":         false,
		"g" + digits[1:]:        false,
		digits + "\n" + digits:  false,
		strings.Repeat("0", 64): false,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadKey(path)
		if (err == nil) != ok {
			t.Errorf("%q: %v", content, err)
		}
		if err != nil && strings.Contains(err.Error(), digits[1:10]) {
			t.Errorf("the error tells the key: %v", err)
		}
	}
}

// No way of printing a key, or something that holds one, gives it away.
func TestKeyIsNotPrinted(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	keys := Keys{Cluster: &key}
	holder := struct{ K Key }{key}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U"} {
		fmt.Fprintf(&out, verb+verb+verb+verb+"\n", key, &key, keys, holder)
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "key", key, "pointer", &key, "keys", keys, "holder", holder)
	}
	if _, err := json.Marshal(holder); err == nil {
		t.Error("a key is marshalled")
	}
	text := strings.ToLower(out.String())
	for n := range len(key) - 3 {
		dec := strings.Trim(fmt.Sprint([]byte(key[n:n+4])), "[]")
		for _, form := range []string{hex.EncodeToString(key[n : n+4]), dec, strings.ReplaceAll(dec, " ", ",")} {
			if strings.Contains(text, form) {
				t.Fatalf("%q of the key is in\n%s", form, text)
			}
		}
	}
	f := key.Fingerprint()
	if !strings.Contains(text, hex.EncodeToString(f[:])) {
		t.Error("the fingerprint is not printed")
	}
	if f == (Key{}).Fingerprint() {
		t.Error("two keys have one fingerprint")
	}
}
