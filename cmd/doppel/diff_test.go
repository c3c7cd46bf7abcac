package main

import "testing"

func TestSizesText(t *testing.T) {
	for _, k := range []struct {
		before, after *int64
		want          string
	}{
		{nil, nil, ""},
		{nil, new(int64(0)), "0 B"},
		{new(int64(1234)), nil, "1.2 kB"},
		{new(int64(5)), new(int64(5)), "5 B"},
		{new(int64(5)), new(int64(2_000_000)), "5 B -> 2.0 MB"},
		{new(int64(2_000_000)), new(int64(2_000_001)), "2000000 B -> 2000001 B"},
	} {
		if got := sizesText(k.before, k.after); got != k.want {
			t.Errorf("%q, want %q", got, k.want)
		}
	}
}
