package clone

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"doppel/imaging/store"
)

// PairWord is what a head is told of the pair that it is one of: who of the two
// is captured, and who follows.
type PairWord struct {
	Image      string `json:"image"`
	Generation uint64 `json:"generation"` // of the direction; only grows
	Source     bool   `json:"source"`     // this head is the active one, which is captured
}

// PairOrders tell a head the direction, or, with a generation of 0, only ask
// what it was told last.
type PairOrders struct {
	ID string `json:"id,omitempty"` // of the question; empty: nobody waits for the answer
	PairWord
}

// PairAnswer is what a head knows of the direction after PairOrders.
type PairAnswer struct {
	ID     string `json:"id,omitempty"`
	Failed string `json:"failed,omitempty"` // why it does not take the orders
	PairWord
}

// PartedOrders name the version that a head and the one that took over from it
// had in common.
type PartedOrders struct {
	Base     string   `json:"base"`     // NAME@VERSION
	Manifest store.ID `json:"manifest"` // its manifest's blob
	Digest   string   `json:"digest"`   // its identity
}

// Kept says how many paths an update left as they are because they were changed
// here.
type Kept struct {
	Own  int `json:"own"`
	Both int `json:"both"` // of them, that were changed on the other head as well
}

func (w *PairWord) what() string {
	if w.Source {
		return fmt.Sprintf("the active head of %s in generation %d", w.Image, w.Generation)
	}
	return fmt.Sprintf("the head of %s that follows in generation %d", w.Image, w.Generation)
}

// stale is the remedy when a doppel gives orders that another has overtaken.
const stale = "another doppel has turned the direction since: give orders there, and stop the one whose state is older; or, if its state is the one to go by, doppel sync turn IMAGE --to HEAD --force there"

// givenUp is the remedy when a doppel knows nothing of the pair.
const givenUp = "give orders from the doppel that has the pair in its configuration; if the pair was given up, remove /" + nodeDir + "/" + pairName + " on the node"

// Take tells whether a head that was told known (nil: nothing) takes a later
// word: of the same pair, and of a higher generation or the same again. The
// error is a *RefusedError.
func (known *PairWord) Take(w PairWord) error {
	switch {
	case known == nil:
		return nil
	case w.Image != known.Image:
		return &RefusedError{What: fmt.Sprintf("this is %s, and of no pair of %q", known.what(), w.Image), Hint: givenUp}
	case w.Generation < known.Generation, w.Generation == known.Generation && w.Source != known.Source:
		return &RefusedError{What: fmt.Sprintf("this is %s, and the word is of generation %d", known.what(), w.Generation), Hint: stale}
	}
	return nil
}

// Permit tells whether a head that was told known (nil: nothing) carries out an
// update. Orders of an older generation are refused, and so is whatever would
// make the active head a version; of that one, paths that are named may be
// changed. The error is a *RefusedError.
func (known *PairWord) Permit(o *UpdateOrders) error {
	everything := len(o.Paths) == 0 || slices.ContainsFunc(o.Paths, func(p string) bool { return path.Clean("/"+p) == "/" })
	switch {
	case o.Pair != nil && o.Pair.Source && everything:
		return &RefusedError{What: fmt.Sprintf("this is %s, which is never made equal to anything", o.Pair.what()), Hint: "doppel sync turn makes the other head the active one first"}
	case known == nil:
		return nil
	case o.Pair == nil && known.Source && everything:
		return &RefusedError{What: fmt.Sprintf("this is %s, and is not made %s by a doppel that knows nothing of the pair", known.what(), o.Image), Hint: givenUp}
	case o.Pair == nil:
		return &RefusedError{What: fmt.Sprintf("this is %s, and the orders are of a doppel that knows nothing of the pair", known.what()), Hint: givenUp}
	}
	return known.Take(*o.Pair)
}

// pairName is where a head keeps what it was told of its pair, in the node's
// directory.
const pairName = "pair.json"

// EncodePair writes what a head was told of its pair: pair.json in
// /etc/doppel/node.
func EncodePair(w PairWord) ([]byte, error) {
	b, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", pairName, err)
	}
	return append(b, '\n'), nil
}

// DecodePair reads what EncodePair wrote.
func DecodePair(b []byte) (*PairWord, error) {
	var w PairWord
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, fmt.Errorf("read %s: %w", pairName, err)
	}
	if w.Image == "" || w.Generation == 0 {
		return nil, fmt.Errorf("read %s: it is of no pair", pairName)
	}
	return &w, nil
}
