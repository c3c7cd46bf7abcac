package imaging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"doppel/imaging/store"
)

// The names of an image's versions are the one thing in a store that nothing
// else could tell again. So the file begins with a line that holds its digest,
// and there is a copy of it, one change behind at most.
const (
	namesHeader  = "doppel names 1 " // format version 1; the digest and a newline follow
	copiesFolder = ".copies"
)

// nameFile is what a file below store/names holds.
type nameFile struct {
	Next     int       `json:"next"`     // the number of the next version
	Versions []Version `json:"versions"` // by number
}

// NamesError says that the file of an image's versions is gone or damaged.
type NamesError struct {
	Image string
	Path  string
	Err   error
}

func (e *NamesError) Error() string {
	return fmt.Sprintf("the versions of %s are not known: %s: %v", e.Image, e.Path, e.Err)
}

func (e *NamesError) Unwrap() error { return e.Err }

// Hint tells what helps.
func (e *NamesError) Hint() string {
	return "doppel image repair takes the copy of it, where that is whole"
}

func (c *Catalog) namesDir() string            { return filepath.Join(c.dir, "store", "names") }
func (c *Catalog) namePath(name string) string { return filepath.Join(c.namesDir(), name) }
func (c *Catalog) copyPath(name string) string {
	return filepath.Join(c.namesDir(), copiesFolder, name)
}

// names lists the images there are, those of which only the copy of their file
// is left included.
func (c *Catalog) names() ([]string, error) {
	var names []string
	for _, dir := range []string{c.namesDir(), filepath.Join(c.namesDir(), copiesFolder)} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, e := range entries {
			// What is being written has a name with a dot in front.
			if CheckName(e.Name()) == nil && e.Type().IsRegular() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// readNames reads the file of an image. Where there is neither file nor copy is
// an image without versions.
func (c *Catalog) readNames(name string) (*nameFile, error) {
	path := c.namePath(name)
	f, err := readNameFile(path, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	there, cerr := exists(c.copyPath(name))
	if cerr != nil {
		return nil, fmt.Errorf("read the versions of an image: %w", cerr)
	}
	if there {
		return nil, err
	}
	return &nameFile{Next: 1}, nil
}

// readNameFile reads a file of names, or a copy.
func readNameFile(path, name string) (*nameFile, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the versions of an image: %w", err)
	}
	if err != nil {
		return nil, &NamesError{name, path, fs.ErrNotExist}
	}
	f, err := parseNameFile(name, b)
	if err != nil {
		return nil, &NamesError{name, path, err}
	}
	return f, nil
}

// parseNameFile reads what a name file holds and checks all that others rely on.
func parseNameFile(name string, b []byte) (*nameFile, error) {
	line, text, _ := bytes.Cut(b, []byte("\n"))
	digest, ok := strings.CutPrefix(string(line), namesHeader)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", namesHeader)
	}
	if digest != namesDigest(name, text) {
		return nil, errors.New("some of its bytes have changed, or it is that of another image")
	}
	f := &nameFile{}
	if err := json.Unmarshal(text, f); err != nil {
		return nil, err
	}
	last := 0
	tags := make(map[string]bool)
	for _, v := range f.Versions {
		if v.Image != name || v.Number <= last || v.Number >= f.Next {
			return nil, fmt.Errorf("version %d of %q is out of place", v.Number, v.Image)
		}
		last = v.Number
		if _, err := store.ParseID(v.Digest); err != nil || !strings.HasPrefix(v.Digest, "sha256:") {
			return nil, fmt.Errorf("version %d has no digest", v.Number)
		}
		for _, t := range v.Tags {
			if err := checkTag(t); err != nil {
				return nil, err
			}
			if tags[t] {
				return nil, fmt.Errorf("two versions have the tag %q", t)
			}
			tags[t] = true
		}
	}
	if f.Next < 1 {
		return nil, errors.New("it does not tell the next version's number")
	}
	return f, nil
}

// namesDigest is over the image's name and a newline, too, so that the file of
// one image is not taken for that of another.
func namesDigest(name string, text []byte) string {
	return store.Sum(append([]byte(name+"\n"), text...)).String()
}

// encode is what the file of the image holds.
func (f *nameFile) encode(name string) ([]byte, error) {
	text, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the versions of an image: %w", err)
	}
	text = append(text, '\n')
	return append([]byte(namesHeader+namesDigest(name, text)+"\n"), text...), nil
}

// writeNames replaces the file durably, and then its copy.
func (c *Catalog) writeNames(name string, f *nameFile) error {
	b, err := f.encode(name)
	if err != nil {
		return err
	}
	if err := replaceFile(c.namePath(name), b); err != nil {
		return fmt.Errorf("write the versions of an image: %w", err)
	}
	err = makeDirs(filepath.Dir(c.copyPath(name)))
	if err == nil {
		err = replaceFile(c.copyPath(name), b)
	}
	if err != nil {
		// The change is made; the next one makes another copy.
		c.log.Warn("the copy of the versions of an image is not what it should be", "image", name, "error", err)
	}
	return nil
}

// checkNames reads all files of names and their copies. It gives what can be
// read and tells fn of what cannot.
func (c *Catalog) checkNames(ctx context.Context, fn func(*NamesError)) ([]Version, error) {
	names, err := c.names()
	if err != nil {
		return nil, err
	}
	var list []Version
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f, err := c.readNames(name)
		if err == nil {
			list = append(list, f.Versions...)
		} else if err := tellNames(err, fn); err != nil {
			return nil, err
		}
		// A copy that is not there is made with the next change.
		_, err = readNameFile(c.copyPath(name), name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			if err := tellNames(err, fn); err != nil {
				return nil, err
			}
		}
	}
	return list, nil
}

// tellNames hands on an error that is about what a file of names holds.
func tellNames(err error, fn func(*NamesError)) error {
	var bad *NamesError
	if !errors.As(err, &bad) {
		return err
	}
	fn(bad)
	return nil
}
