package resync

import (
	"context"

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
	Entries     int64                `json:"entries"` // compared
	Differences []imaging.Difference `json:"differences"`
	Allowed     []Excused            `json:"allowed"`
}

// Equal tells whether the tree differs in nothing but what may be.
func (r Report) Equal() bool { return len(r.Differences) == 0 }

// Drift compares the tree at dir with m and sorts the differences by whether
// allowed lets them be.
func Drift(ctx context.Context, m *imaging.Manifest, dir string, allowed Allowed) (Report, error) {
	return Report{}, nil
}
