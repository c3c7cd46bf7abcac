package resync

import (
	"strings"
	"testing"

	"doppel/imaging"
)

// manifestOf makes a manifest of lines: "d PATH", "f PATH CONTENT", "l PATH TARGET" (a
// hard link).
func manifestOf(t *testing.T, lines string) *imaging.Manifest {
	t.Helper()
	entries := []imaging.Entry{{Path: ".", Kind: imaging.Directory, Mode: 0o755}}
	for line := range strings.Lines(lines) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		e := imaging.Entry{Path: f[1], Mode: 0o644}
		switch f[0] {
		case "d":
			e.Kind = imaging.Directory
		case "f":
			e.Kind, e.Mode = imaging.Regular, 0o600+uint32(len(f[2]))
		case "l":
			e = imaging.Entry{Path: f[1], Kind: imaging.HardLink, Target: f[2]}
		}
		entries = append(entries, e)
	}
	l, err := imaging.NewEntries(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return &imaging.Manifest{List: l}
}

// What both have done with a path decides what is kept, what is not looked at,
// and what is told as changed on both sides.
func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name, base, target string
		own                string // HOW PATH, ...
		want               string // HOW PATH [both], ...
		skips              string
	}{
		{"changed here alone", "f a 1", "f a 1", "changed a", "changed a", ""},
		{"changed on both", "f a 1", "f a 22", "changed a", "changed a both", ""},
		{"changed here, removed there", "f a 1", "", "changed a", "changed a both", ""},
		{"removed here, changed there", "f a 1", "f a 22", "removed a", "removed a both", "a"},
		{"removed here alone", "f a 1", "f a 1", "removed a", "removed a", "a"},
		{"added on both", "", "f a 1", "added a", "added a both", ""},
		{"added in a directory that went there", "d d\nf d/x 1", "", "added d/a", "added d/a both", ""},
		{"added in a directory that is a file there", "d d\nf d/x 1", "f d 1", "added d/a", "changed d both,added d/a both", ""},
		{"a directory removed here", "d d\nf d/x 1", "d d\nf d/x 1", "removed d,removed d/x", "removed d,removed d/x", "d,d/x"},
		{"a directory removed here, added to there", "d d\nf d/x 1", "d d\nf d/x 1\nf d/y 1", "removed d,removed d/x", "removed d/x", "d/x"},
		{"one of two names", "f a 1\nl b a", "f a 22\nl b a", "changed b", "changed a both,changed b", ""},
		{"two names there that were one each", "f a 1\nf b 1", "f a 1\nl b a", "changed a", "changed a,changed b both", ""},
		{"one of two names removed here", "f a 1\nl b a", "f a 22\nl b a", "removed b", "removed b", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var own []Own
			for _, o := range strings.Split(c.own, ",") {
				how, p, _ := strings.Cut(o, " ")
				own = append(own, Own{Path: p, How: How(how)})
			}
			m := NewMerge(manifestOf(t, c.base), manifestOf(t, c.target), own)
			var have, skips []string
			for _, o := range m.Own {
				word := string(o.How) + " " + o.Path
				if o.Both {
					word += " both"
				}
				have = append(have, word)
				if !m.Keeps(o.Path) {
					t.Errorf("%s is not kept", o.Path)
				}
				if m.Skips(o.Path) {
					skips = append(skips, o.Path)
				}
			}
			if got := strings.Join(have, ","); got != c.want {
				t.Errorf("own: %s, want %s", got, c.want)
			}
			if got := strings.Join(skips, ","); got != c.skips {
				t.Errorf("not looked at: %s, want %s", got, c.skips)
			}
			if m.Keeps("elsewhere") || m.Skips("elsewhere") || Both(m.Own) != strings.Count(c.want, "both") {
				t.Error("too much is kept, or counted")
			}
		})
	}
}

// What an update that was cut off has brought was not changed here, and a
// path of which the time alone differs was not either.
func TestChangedSince(t *testing.T) {
	base := manifestOf(t, "d d\nf d/a 1\nf d/b 1\nd e")
	differences := []imaging.Difference{
		{Path: "d", Kind: imaging.DiffMTime}, {Path: "d/a", Kind: imaging.DiffContent}, {Path: "d/a", Kind: imaging.DiffMTime},
		{Path: "d/b", Kind: imaging.DiffMissing}, {Path: "e", Kind: imaging.DiffMTime}, {Path: "e", Kind: imaging.DiffMode}, {Path: "e/new", Kind: imaging.DiffExtra}, {Path: "f", Kind: imaging.DiffMTime}, {Path: "log", Kind: imaging.DiffExtra},
	}
	text := func(own []Own) string {
		var out []string
		for _, o := range own {
			out = append(out, string(o.How)+" "+o.Path)
		}
		return strings.Join(out, ",")
	}
	allowed := func(p string) bool { return p == "log" }
	if got := text(ChangedSince(differences, nil, allowed)); got != "changed d/a,removed d/b,changed e,added e/new" {
		t.Error(got)
	}
	there := DifferAt(base, []imaging.Difference{{Path: "d/b", Kind: imaging.DiffExtra}, {Path: "e", Kind: imaging.DiffType}}, false)
	if got := text(ChangedSince(differences, []Differing{there}, allowed)); got != "removed d/b,changed e,added e/new" {
		t.Error(got)
	}
	half := DifferAt(base, []imaging.Difference{{Path: "e", Kind: imaging.DiffMode}, {Path: "d/b", Kind: imaging.DiffMode}}, true)
	if half.At("e") || !half.At("d/b") {
		t.Error("directories of a tree that is half done")
	}
	if !Below("a/b", []string{"/a/"}) || Below("a/b", []string{"a/."}) || !Below("a", []string{"a/."}) || Below("ab", []string{"a"}) || !Below("x", []string{"/"}) {
		t.Error("Below")
	}
	if got := text(Joined([]Own{{Path: "a", How: WasAdded}}, []Own{{Path: "a", How: WasChanged}, {Path: "b", How: WasRemoved}})); got != "added a,removed b" {
		t.Error(got)
	}
}
