package clone

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// What a head that was told something takes from then on, and carries out.
func TestPairWord(t *testing.T) {
	word := func(generation uint64, source bool) *PairWord {
		return &PairWord{Image: "head", Generation: generation, Source: source}
	}
	other := &PairWord{Image: "other", Generation: 9}
	const fine, behind, noPair, never = "", "another doppel has turned the direction since", "remove /etc/doppel/node/pair.json", "makes the other head the active one first"
	for _, c := range []struct {
		name          string
		known, word   *PairWord
		take          string // how the word itself is refused
		update, paths string // how an update with it is refused, of everything and of paths
	}{
		{"never told", nil, word(1, false), fine, fine, fine},
		{"never told, no pair", nil, nil, fine, fine, fine},
		{"never told, the source", nil, word(1, true), fine, never, fine},
		{"the same", word(2, false), word(2, false), fine, fine, fine},
		{"a later one", word(2, false), word(3, false), fine, fine, fine},
		{"was the source", word(2, true), word(3, false), fine, fine, fine},
		{"is the source now", word(2, false), word(3, true), fine, never, fine},
		{"the source still", word(2, true), word(2, true), fine, never, fine},
		{"an older one, of a time when it followed", word(2, true), word(1, false), behind, behind, behind},
		{"an older one", word(3, false), word(2, false), behind, behind, behind},
		{"an older one, which makes it the source", word(3, false), word(2, true), behind, never, behind},
		{"two doppels turned at once", word(2, true), word(2, false), behind, behind, behind},
		{"two doppels turned at once, the other way", word(2, false), word(2, true), behind, never, behind},
		{"a doppel without the pair", word(2, false), nil, fine, noPair, noPair},
		{"a doppel without the pair, to the source", word(2, true), nil, fine, noPair, noPair},
		{"another pair", word(2, false), other, noPair, noPair, noPair},
	} {
		check := func(what string, err error, want string) {
			t.Helper()
			var no *RefusedError
			if want == "" && err != nil || want != "" && (!errors.As(err, &no) || !strings.Contains(no.Hint, want)) {
				t.Errorf("%s: %s: %v, want %q", c.name, what, err, want)
			}
		}
		if c.word != nil {
			check("taken", c.known.Take(*c.word), c.take)
		}
		check("an update", c.known.Permit(&UpdateOrders{Image: "head@4", Pair: c.word}), c.update)
		check("paths", c.known.Permit(&UpdateOrders{Image: "head@4", Pair: c.word, Paths: []string{"etc"}}), c.paths)
	}
}

func FuzzDecodePair(f *testing.F) {
	f.Add([]byte(`{"image":"head","generation":3,"source":true}`))
	f.Add([]byte(`{"image":"","generation":0}`))
	f.Add([]byte(`{"generation":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := DecodePair(b)
		if err != nil {
			return
		}
		one, err := EncodePair(*w)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodePair(one); err != nil || *back != *w {
			t.Errorf("%s comes back as %+v, %v", one, back, err)
		}
		if err := w.Take(*w); err != nil {
			t.Errorf("what is known is not taken: %v", err)
		}
	})
}

func FuzzDecodeNodeConfig(f *testing.F) {
	f.Add([]byte(`{"server":"https://10.77.0.1:8443","node":"head1","install":"I","enlisted":true}`))
	f.Add([]byte(`{"node":"head1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeNodeConfig(b)
		if err != nil {
			return
		}
		one, err := configJSON(c)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeNodeConfig(one); err != nil || back != c {
			t.Errorf("%s comes back as %+v, %v", one, back, err)
		}
	})
}

// FuzzFoundPlan makes a plan of anything that a machine says of itself: one that
// comes of it can be kept and read.
func FuzzFoundPlan(f *testing.F) {
	b, err := json.Marshal(testFound())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"firmware":"uefi","trees":[{"mount":"/","type":"vfat"},{"mount":"/efi","type":"vfat"},{"mount":"/"}],"layout":{"partitions":[{}]}}`))
	f.Add([]byte(`{"firmware":"bios","trees":[{"mount":"","type":""}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var found Found
		if json.Unmarshal(b, &found) != nil {
			return
		}
		p, err := FoundPlan(found, foundTarget())
		if err != nil {
			var no *RefusedError
			if !errors.As(err, &no) {
				t.Errorf("%v is no refusal", err)
			}
			return
		}
		one, err := EncodePlan(p)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodePlan(one); err != nil || back.Found == nil {
			t.Errorf("%s: %v", one, err)
		}
		p.mounts()
		p.ESP()
	})
}
