package pxe

import (
	"context"
	"fmt"
	"strings"

	"doppel/imaging"
	"doppel/imaging/store"
)

// Nothing an installer is made of is larger than this.
const maxFile = 256 << 20

// files are the regular files of an image that an installer may be made of.
type files struct {
	chunks Chunks
	byPath map[string]*imaging.Entry
}

// findFiles looks up those paths and everything below dir, in one walk of the
// manifest; hard links are followed to their first name.
func findFiles(m *imaging.Manifest, chunks Chunks, dir string, paths ...string) (*files, error) {
	f := &files{chunks: chunks, byPath: map[string]*imaging.Entry{}}
	for _, p := range paths {
		f.byPath[p] = nil
	}
	links := map[string][]string{} // first name → other names
	for _, e := range m.List.All() {
		_, named := f.byPath[e.Path]
		if !named && !strings.HasPrefix(e.Path, dir+"/") {
			continue
		}
		switch e.Kind {
		case imaging.Regular:
			f.byPath[e.Path] = e
		case imaging.HardLink:
			links[e.Target] = append(links[e.Target], e.Path)
		}
	}
	for first, others := range links {
		e := m.List.Get(first)
		for _, other := range others {
			f.byPath[other] = e
		}
	}
	for p, e := range f.byPath {
		switch {
		case e == nil:
			delete(f.byPath, p)
		case e.Kind != imaging.Regular:
			return nil, fmt.Errorf("%s in the image is a %s, not a file", p, e.Kind)
		case e.Withheld:
			return nil, fmt.Errorf("%s in the image is for heads only, so no installer can be made of it", p)
		case e.Size < 0 || e.Size > maxFile:
			return nil, fmt.Errorf("%s in the image has %d bytes, more than any kernel or module", p, e.Size)
		}
	}
	return f, nil
}

func (f *files) has(path string) bool { return f.byPath[path] != nil }

// ids are the chunks that a file is made of: with its size and holes, its
// identity.
func (f *files) ids(path string) string {
	e := f.byPath[path]
	if e == nil {
		return "-"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %v", e.Size, e.Data())
	for _, c := range e.Chunks {
		b.WriteString(" " + c.ID.Hex())
	}
	return b.String()
}

// read gives a file's content; one that is not there has none.
func (f *files) read(ctx context.Context, path string) ([]byte, error) {
	e := f.byPath[path]
	if e == nil {
		return nil, nil
	}
	content := make([]byte, e.Size)
	runs := e.Data()
	for _, c := range e.Chunks {
		data, err := f.chunks.Chunk(ctx, store.Ref{Audience: e.Class.Audience(), ID: c.ID})
		if err != nil {
			return nil, fmt.Errorf("reading %s from the image: %w", path, err)
		}
		for len(data) > 0 {
			if len(runs) == 0 {
				return nil, fmt.Errorf("reading %s from the image: more data than the file has", path)
			}
			x := &runs[0]
			if x.Offset < 0 || x.Length < 0 || x.Offset > e.Size || x.Length > e.Size-x.Offset {
				return nil, fmt.Errorf("reading %s from the image: an extent lies outside the file", path)
			}
			n := min(int64(len(data)), x.Length)
			copy(content[x.Offset:], data[:n])
			data = data[n:]
			runs = shorten(runs, n)
		}
	}
	if len(runs) > 0 {
		return nil, fmt.Errorf("reading %s from the image: less data than the file has", path)
	}
	return content, nil
}

// shorten drops the first n bytes of runs without changing what they came from.
func shorten(runs []imaging.Extent, n int64) []imaging.Extent {
	if runs[0].Length == n {
		return runs[1:]
	}
	rest := append([]imaging.Extent{{Offset: runs[0].Offset + n, Length: runs[0].Length - n}}, runs[1:]...)
	return rest
}
