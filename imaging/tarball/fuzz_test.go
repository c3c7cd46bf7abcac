package tarball

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// memorySink takes what a scan finds into memory, and checks it.
type memorySink struct {
	chunks  map[store.Ref][]byte
	entries []imaging.Entry
}

func (s *memorySink) Cached(ctx context.Context, class []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	return nil, errors.New("nothing is known from before")
}

func (s *memorySink) Missing(ctx context.Context, refs []store.Ref) ([]bool, error) {
	missing := make([]bool, len(refs))
	for i, ref := range refs {
		missing[i] = s.chunks[ref] == nil
	}
	return missing, nil
}

func (s *memorySink) Block(ctx context.Context, b store.Block) error {
	plain, err := store.DecodeBlock(b)
	if err != nil {
		return err
	}
	for _, c := range b.Chunks {
		if store.Sum(plain[:c.Size]) != c.ID {
			return fmt.Errorf("%s is another chunk", c.ID)
		}
		s.chunks[store.Ref{Audience: b.Audience, ID: c.ID}] = bytes.Clone(plain[:c.Size])
		plain = plain[c.Size:]
	}
	return nil
}

func (s *memorySink) Recall(ctx context.Context, ref store.Ref) ([]byte, error) {
	b := s.chunks[ref]
	if b == nil {
		return nil, &store.MissingError{What: "chunk", ID: ref.ID}
	}
	return b, nil
}

func (s *memorySink) Entries(ctx context.Context, entries []imaging.Entry, stamps []imaging.Stamp) error {
	s.entries = append(s.entries, entries...)
	return nil
}

func (s *memorySink) Same(context.Context, string) error             { return errors.New("the same as what?") }
func (s *memorySink) Note(ctx context.Context, n imaging.Note) error { return nil }
func (s *memorySink) Progress(p imaging.ScanProgress)                {}

// seeds are archives of every format and fault that the tests know.
func seeds() [][]byte {
	root := raw{name: "./", kind: '5'}
	list := [][]byte{
		archive(root, raw{name: "f", kind: '0', data: "data"}, raw{name: "z", kind: '1', link: "f"}, raw{name: "s", kind: '2', link: "/etc"}, raw{name: "c", kind: '3', major: "0000001", minor: "0000003"}, raw{name: "p", kind: '6'}),
		archive(root, paxed(raw{name: "f", kind: '0', data: "data"}, record{"path", "long\xff"}, record{"mtime", "-1.5"}, record{"SCHILY.xattr.user.a", "1"}, record{"LIBARCHIVE.xattr.user.b%3D", "AA=="},
			record{"SCHILY.acl.access", "user::rwx\nuser:1:r--\ngroup::---\nmask::r--\nother::---\n"})),
		archive(root, paxed(raw{name: "f", kind: '0', data: "data"}, record{"SCHILY.fflags", "schg,uchg"}, record{"DOPPEL.fflags", "dax"}, record{"DOPPEL.project", "7"})),
		archive(root, paxed(raw{name: "f", kind: '0', data: "2\n0\n4\n4096\n0\n" + string(make([]byte, 500)) + "data"}, record{"GNU.sparse.major", "1"}, record{"GNU.sparse.minor", "0"}, record{"GNU.sparse.name", "f"}, record{"GNU.sparse.realsize", "4096"})),
		archive(root, paxed(raw{name: "f", kind: '0', data: "data"}, record{"GNU.sparse.size", "4096"}, record{"GNU.sparse.map", "0,4,4096,0"})),
		archive(root, paxed(raw{name: "f", kind: '0', data: "data"}, record{"GNU.sparse.size", "4096"}, record{"GNU.sparse.offset", "8"}, record{"GNU.sparse.numbytes", "4"})),
		archive(root, raw{name: "f", kind: 'S', magic: "ustar  \x00", data: "data", more: map[int64]string{386: "00000000010\x0000000000004\x00", 483: "00000000100"}}),
		archive(raw{name: "g", kind: 'g', data: "14 comment=xy\n"}, root, raw{name: "l", kind: 'L', magic: "ustar  \x00", data: "long name\x00"}, raw{name: "l", kind: '0', magic: "ustar  \x00"}),
		archive(raw{name: "d/", magic: "\x00\x00\x00\x00\x00\x00\x00\x00"}, raw{name: "etc/shadow", kind: '0', data: "x"}, raw{name: "a", kind: '1', link: "etc/shadow"}),
		archive(raw{name: "../up", kind: '0'}), archive(raw{name: "a", kind: '2', link: "b"}, raw{name: "a/b", kind: '0'}),
		archive(raw{name: "a", kind: '1', link: "b"}, raw{name: "b", kind: '1', link: "a"}),
		[]byte("no archive"), nil,
	}
	return list
}

// FuzzImport: whatever an archive is, it is refused, or the entries are those
// of a manifest and all of their content is there.
func FuzzImport(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := decompress(bytes.NewReader(mend(b)))
		if err != nil {
			return
		}
		defer plain.Close()
		sink := &memorySink{chunks: make(map[store.Ref][]byte)}
		src := newSource(t.Context(), io.LimitReader(plain, 16<<20))
		if err := src.Scan(t.Context(), imaging.ScanRequest{}, sink); err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		facts, _, err := src.Describe(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		list, err := imaging.NewEntries(sink.entries...)
		if err != nil {
			t.Fatal(err)
		}
		m := &imaging.Manifest{Head: imaging.Head{Facts: facts}, List: list}
		for ref := range m.Refs() {
			if len(sink.chunks[ref.Ref]) != int(ref.Size) {
				t.Fatalf("%q lacks a chunk", ref.Entry.Path)
			}
		}
		if _, err := m.Digest(); err != nil {
			t.Fatal(err)
		}
	})
}

// mend sets the checksums of what may be headers right, or nothing but the
// first header would ever be looked at.
func mend(b []byte) []byte {
	b = bytes.Clone(b)
	for off := 0; off+blockSize <= len(b); off += blockSize {
		h := (*header)(b[off : off+blockSize])
		if string(h.field(257, 5)) == "ustar" {
			sum, _ := h.sums()
			copy(h.checksum(), fmt.Sprintf("%06o\x00 ", sum))
		}
	}
	return b
}

// FuzzRecords: what is read of extended headers is what is written of it.
func FuzzRecords(f *testing.F) {
	f.Add([]byte("10 path=a\n11 path=bb\n"))
	f.Add([]byte("22 SCHILY.xattr.a=b=c\n"))
	f.Add([]byte("0 =\n"))
	f.Add([]byte("99999999999 a=b\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		var p pax
		err := records(b, func(key, value string) error {
			again = appendRecord(again, record{key, value})
			_ = p.add(key, value) // may refuse what makes no sense
			return nil
		})
		if err != nil {
			return
		}
		var list []record
		must(t, records(again, func(key, value string) error { list = append(list, record{key, value}); return nil }))
		if len(list) > 0 && len(again) > len(b) {
			t.Fatalf("%q is written %q", b, again)
		}
		_, _ = p.xattrs()
	})
}

// FuzzACL: an ACL in words is refused, or is the same after it was the kernel's
// and words again.
func FuzzACL(f *testing.F) {
	f.Add("user::rwx\nuser:1000:r-x\ngroup::---\ngroup:5:rw-\nmask::rwx\nother::r--\n")
	f.Add("u::7,g::-,o::-")
	f.Add("user:daemon:rwx:1, mask:r-x # effective")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseACL(text, func(group bool, name string) (uint32, bool) { return 7, name != "nobody" })
		if err != nil {
			return
		}
		back, ok := decodeACL(encodeACL(list))
		if !ok || !slices.Equal(back, list) {
			t.Fatalf("%v comes back as %v", list, back)
		}
		words, ok := aclText(list)
		again, err := parseACL(words, nil)
		if !ok || err != nil || !slices.Equal(again, list) {
			t.Fatalf("%q becomes %q: %v, %v", text, words, again, err)
		}
	})
}
