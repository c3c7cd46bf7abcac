package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"doppel/imaging"
	"doppel/imaging/store"
)

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Fatal("this test makes owners, devices and mounts: run it as root")
	}
}

// run runs a program of others and gives what it prints.
func run(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%.4000s", name, args, err, stderr.String())
	}
	return string(out)
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func fill(tb testing.TB, path string, data []byte) {
	tb.Helper()
	must(tb, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
}

func openCatalog(tb testing.TB) *imaging.Catalog {
	tb.Helper()
	c, err := imaging.OpenCatalog(filepath.Join(tb.TempDir(), "state"), imaging.CatalogOptions{})
	must(tb, err)
	return c
}

// manifest reads a version.
func manifest(tb testing.TB, c *imaging.Catalog, ref string) (*imaging.Manifest, *store.Vault) {
	tb.Helper()
	v, err := c.Resolve(tb.Context(), ref)
	must(tb, err)
	m, err := c.Manifest(tb.Context(), v)
	must(tb, err)
	vault, err := c.Vault(tb.Context())
	must(tb, err)
	return m, vault
}

func importBytes(tb testing.TB, c *imaging.Catalog, name string, archive []byte) (*ImportReport, error) {
	tb.Helper()
	return Import(tb.Context(), c, bytes.NewReader(archive), ImportOptions{Name: name, Origin: "test"})
}

// content is what a file of a version holds, holes as zeros.
func content(tb testing.TB, m *imaging.Manifest, vault *store.Vault, path string) string {
	tb.Helper()
	e := entry(tb, m, path)
	if e.Kind == imaging.HardLink {
		return content(tb, m, vault, e.Target)
	}
	var data []byte
	for _, c := range e.Chunks {
		b, err := vault.Chunk(tb.Context(), store.Ref{Audience: e.Class.Audience(), ID: c.ID})
		must(tb, err)
		data = append(data, b...)
	}
	out := make([]byte, e.Size)
	for _, x := range e.Data() {
		data = data[copy(out[x.Offset:x.Offset+x.Length], data):]
	}
	return string(out)
}

func entry(tb testing.TB, m *imaging.Manifest, path string) *imaging.Entry {
	tb.Helper()
	if e := m.List.Get(path); e != nil {
		return e
	}
	tb.Fatalf("there is no entry %q", path)
	return nil
}

// raw is a member as bytes on tape, with every field as the test wants it.
type raw struct {
	name, link string
	kind       byte
	mode       string // octal
	size       string // empty: that of data
	uid, gid   string
	mtime      string
	major      string
	minor      string
	magic      string // default ustar
	prefix     string
	data       string
	sum        string           // empty: the right one
	more       map[int64]string // bytes at further places of the header
}

func (m raw) bytes() []byte {
	var h header
	put := func(off, n int, s, or string) {
		if s == "" {
			s = or
		}
		copy(h[off:off+n], s)
	}
	put(0, 100, m.name, "")
	put(100, 8, m.mode, "0000644")
	put(108, 8, m.uid, "0000000")
	put(116, 8, m.gid, "0000000")
	put(124, 12, m.size, fmt.Sprintf("%011o", len(m.data)))
	put(136, 12, m.mtime, "00000000000")
	h[156] = m.kind
	put(157, 100, m.link, "")
	put(257, 8, m.magic, "ustar\x0000")
	put(329, 8, m.major, "0000000")
	put(337, 8, m.minor, "0000000")
	put(345, 155, m.prefix, "")
	for off, s := range m.more {
		copy(h[off:], s)
	}
	sum, _ := h.sums()
	put(148, 8, m.sum, fmt.Sprintf("%06o\x00 ", sum))
	data := m.data + strings.Repeat("\x00", -len(m.data)&(blockSize-1))
	return append(h[:], data...)
}

// paxed is a member behind an extended header with the records.
func paxed(m raw, records ...record) []byte {
	var b []byte
	for _, r := range records {
		b = appendRecord(b, r)
	}
	return append(raw{name: "PaxHeaders/x", kind: typePAX, data: string(b)}.bytes(), m.bytes()...)
}

// archive puts members and the end behind each other.
func archive(members ...any) []byte {
	var b []byte
	for _, m := range members {
		switch m := m.(type) {
		case raw:
			b = append(b, m.bytes()...)
		case []byte:
			b = append(b, m...)
		}
	}
	return append(b, make([]byte, 2*blockSize)...)
}

// members reads all there is.
func members(tb testing.TB, b []byte) (list []*Member, contents []string, err error) {
	tb.Helper()
	r := NewReader(tb.Context(), bytes.NewReader(b))
	for {
		m, err := r.Next()
		if err == io.EOF {
			return list, contents, nil
		}
		if err != nil {
			return list, contents, err
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return list, contents, err
		}
		list, contents = append(list, m), append(contents, string(data))
	}
}

// later is a clock for which nothing has changed lately.
func later() time.Time { return time.Now().Add(time.Hour) }
