package imaging

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"doppel/imaging/store"
)

// Version is one version of an image as the catalog knows it.
type Version struct {
	Image   string    `json:"image"`
	Number  int       `json:"version"` // from 1, never used again
	Digest  string    `json:"digest"`  // of the manifest: the version's identity
	Blob    store.ID  `json:"blob"`    // the sealed manifest in the store
	Time    time.Time `json:"time"`
	Entries int64     `json:"entries"`
	Bytes   int64     `json:"bytes"`
	Source  string    `json:"source"` // where it was captured from
	Tags    []string  `json:"tags,omitempty"`
}

// Ref is the version as the user names it: NAME@NUMBER.
func (v Version) Ref() string { return fmt.Sprintf("%s@%d", v.Image, v.Number) }

// CheckName tells what is wrong with the name of an image or a tag.
func CheckName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%.200q is no name: want up to 128 letters, digits, dots, underscores and hyphens, not beginning with a dot or a hyphen", name)
	}
	return nil
}

// checkTag tells what is wrong with a tag, which must not look like a number.
func checkTag(tag string) error {
	if err := CheckName(tag); err != nil {
		return err
	}
	if tag == latest || strings.Trim(tag, "0123456789") == "" {
		return fmt.Errorf("%q is no tag: it means a version by itself", tag)
	}
	return nil
}

const latest = "latest"

// UnknownImageError says that a reference names no version.
type UnknownImageError struct {
	Ref   string
	Known []string // what there is instead
}

func (e *UnknownImageError) Error() string {
	if len(e.Known) == 0 {
		return fmt.Sprintf("there is no image %q, nor any other", e.Ref)
	}
	return fmt.Sprintf("there is no image %q; there are %s", e.Ref, strings.Join(e.Known, ", "))
}

// AmbiguousError says that the beginning of a digest is that of several.
type AmbiguousError struct {
	Ref   string
	Among []Version
}

func (e *AmbiguousError) Error() string {
	var list []string
	for _, v := range e.Among {
		list = append(list, fmt.Sprintf("%s (%s)", v.Ref(), v.Digest))
	}
	return fmt.Sprintf("%q is the beginning of several digests: %s", e.Ref, strings.Join(list, ", "))
}

// pick finds the version that what stands behind the @ means.
func (f *nameFile) pick(which string) (Version, bool) {
	if len(f.Versions) == 0 {
		return Version{}, false
	}
	if which == latest {
		return f.Versions[len(f.Versions)-1], true
	}
	if n, err := strconv.Atoi(which); err == nil {
		i, ok := slices.BinarySearchFunc(f.Versions, n, func(v Version, n int) int { return v.Number - n })
		if ok {
			return f.Versions[i], true
		}
		return Version{}, false
	}
	for _, v := range f.Versions {
		if slices.Contains(v.Tags, which) {
			return v, true
		}
	}
	return Version{}, false
}

// known lists versions as the user names them, the last few when they are many.
func known(list []Version) []string {
	var refs []string
	if len(list) > 8 {
		list = list[len(list)-8:]
		refs = append(refs, "…")
	}
	for _, v := range list {
		refs = append(refs, v.Ref())
	}
	return refs
}
