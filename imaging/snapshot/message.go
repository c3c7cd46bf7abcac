package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"doppel/imaging"
)

// order is what the scanning process says after the plan, one JSON object each.
type order struct {
	Freeze  string `json:"freeze,omitempty"` // the path of a part
	Thaw    string `json:"thaw,omitempty"`
	Release bool   `json:"release,omitempty"` // the scan is over
}

// word is what the keeper says.
type word struct {
	// The first word.
	Ready  bool           `json:"ready,omitempty"`
	View   string         `json:"view,omitempty"`   // where, in the keeper's mounts
	Failed string         `json:"failed,omitempty"` // instead: why not
	Notes  []imaging.Note `json:"notes,omitempty"`
	Stubs  []uint64       `json:"stubs,omitempty"`
	Live   []live         `json:"live,omitempty"`

	// Answers.
	Frozen string `json:"frozen,omitempty"` // this part is; or is not, as Failed says
	Thawed string `json:"thawed,omitempty"` // this part is not any more
	After  int64  `json:"after,omitempty"`  // so many nanoseconds
	Bound  bool   `json:"bound,omitempty"`  // as that was the longest time

	// The last word.
	Released bool     `json:"released,omitempty"`
	Lost     string   `json:"lost,omitempty"` // the snapshots were not good to the end, and why
	Left     []string `json:"left,omitempty"` // what could not be given back
}

// live is a part that is to be frozen while it is read, as it has no snapshot.
type live struct {
	Path string `json:"path"`
	Dev  uint64 `json:"dev"` // st_dev of what is in it
}

// maxMessage bounds a message on the socket.
const maxMessage = 8 << 20

// decoderOf reads messages off a stream.
func decoderOf(r io.Reader) *json.Decoder { return json.NewDecoder(io.LimitReader(r, maxMessage)) }

// check refuses a plan that no scanning process makes.
func (p *plan) check() error {
	clean := func(s string) bool {
		return s == "." || s != "" && path.Clean("/"+s) == "/"+s && !strings.ContainsRune(s, 0)
	}
	if p.Root == "" {
		return nil
	}
	if !path.IsAbs(p.Root) || path.Clean(p.Root) != p.Root {
		return fmt.Errorf("%q is no root", p.Root)
	}
	if p.Mode > imaging.SnapshotRequire {
		return fmt.Errorf("the mode %d is unknown", uint8(p.Mode))
	}
	if len(p.Parts) == 0 || p.Parts[0].Path != "." || p.Parts[0].Nested {
		return errors.New("the plan has no root")
	}
	for _, e := range p.Parts {
		if !clean(e.Path) || !path.IsAbs(e.Root) {
			return fmt.Errorf("%q of %q is no part", e.Path, e.Root)
		}
	}
	for _, f := range p.Freeze {
		if !clean(f.Path) || f.For < imaging.MinFreeze || f.For > imaging.MaxFreeze {
			return fmt.Errorf("%q cannot be frozen for %v", f.Path, f.For)
		}
	}
	return nil
}
