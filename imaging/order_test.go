package imaging

import (
	"slices"
	"testing"
)

func TestComparePath(t *testing.T) {
	want := []string{".", "!", "a", "a/b", "a/b/c", "a/b-c", "a/c", "a-b", "a-b/c", "a.b", "b", "\xff"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, ComparePath)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q", got)
	}
}

func FuzzComparePath(f *testing.F) {
	f.Add("a", "a/b", "a-b")
	f.Add(".", "", "a")
	f.Add("a/", "a//b", "/")
	f.Add("\xff/a", "\xff", ".")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, bc, ac := ComparePath(a, b), ComparePath(b, c), ComparePath(a, c)
		if ComparePath(b, a) != -ab {
			t.Errorf("%q and %q are not ordered both ways", a, b)
		}
		if (ab == 0) != (a == b) {
			t.Errorf("%q and %q: %d", a, b, ab)
		}
		if ab <= 0 && bc <= 0 && ac > 0 {
			t.Errorf("%q, %q, %q are not in line", a, b, c)
		}
		if ComparePath(parentPath(a), a) > 0 && a != "" && a[0] != '/' {
			t.Errorf("%q comes after its parent %q", parentPath(a), a)
		}
	})
}
