package resync

import (
	"context"
	"fmt"
	"strings"

	"doppel/imaging"
)

// Allowed judges one difference: whether it may be, and why.
type Allowed func(path string, d imaging.Difference) (reason string, ok bool)

// Excused is a difference that may be, with the reason.
type Excused struct {
	imaging.Difference
	Reason string `json:"reason"`
}

// Report is how a tree differs from its image.
type Report struct {
	Entries     int64                `json:"entries"`     // that the image has
	Differences []imaging.Difference `json:"differences"` // that may not be, by path
	Allowed     []Excused            `json:"allowed"`     // that may be, by path

	Own []Own `json:"own,omitempty"` // among the differences: kept as they are until somebody decides
}

// Equal tells whether the tree differs in nothing but what may be.
func (r Report) Equal() bool { return len(r.Differences) == 0 }

// Drift compares the tree at dir with m and sorts the differences by whether
// allowed lets them be; a nil allowed lets nothing be.
func Drift(ctx context.Context, m *imaging.Manifest, dir string, allowed Allowed, o imaging.CompareOptions) (Report, error) {
	differences, err := imaging.CompareTree(ctx, m, dir, o)
	if err != nil {
		return Report{}, err
	}
	return sortOut(m, differences, allowed), nil
}

// sortOut is Drift once the differences are known.
func sortOut(m *imaging.Manifest, differences []imaging.Difference, allowed Allowed) Report {
	r := Report{
		Entries:     int64(m.List.Len()),
		Differences: []imaging.Difference{},
		Allowed:     []Excused{},
	}
	verdicts := make([]verdict, len(differences))
	changedIn := map[string]string{} // directory: a path in it that may differ
	for i, d := range differences {
		if allowed == nil {
			break
		}
		v := &verdicts[i]
		if v.reason, v.ok = allowed(d.Path, d); v.ok && d.Path != "." && changedIn[parentOf(d.Path)] == "" {
			changedIn[parentOf(d.Path)] = d.Path
		}
	}
	dirs := directories(m)
	for i, d := range differences {
		v := verdicts[i]
		if path := changedIn[d.Path]; !v.ok && path != "" && d.Kind == imaging.DiffMTime && dirs[d.Path] {
			v = verdict{reason: fmt.Sprintf("%q, which may differ, is in it", path), ok: true}
		}
		if v.ok {
			r.Allowed = append(r.Allowed, Excused{Difference: d, Reason: v.reason})
		} else {
			r.Differences = append(r.Differences, d)
		}
	}
	return r
}

// verdict is what was said of one difference.
type verdict struct {
	reason string
	ok     bool
}

func directories(m *imaging.Manifest) map[string]bool {
	dirs := map[string]bool{}
	for _, e := range m.List.All() {
		if e.Kind == imaging.Directory {
			dirs[e.Path] = true
		}
	}
	return dirs
}

// parentOf is the directory that path is in.
func parentOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}
