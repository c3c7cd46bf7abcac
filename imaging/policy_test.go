package imaging

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPolicy(t *testing.T) {
	local := time.Local
	time.Local = time.FixedZone("test", 2*3600)
	t.Cleanup(func() { time.Local = local })
	// A version every twelve hours, the fifth under a clock in 1970.
	var versions []Version
	for n := 1; n <= 60; n++ {
		at := time.Date(2026, 1, 1, 3, 0, 0, 0, time.Local).Add(time.Duration(n-1) * 12 * time.Hour)
		if n == 5 {
			at = time.Unix(0, 0)
		}
		versions = append(versions, Version{Image: "x", Number: n, Time: at.UTC()})
	}
	versions[9].Tags = []string{"golden"}
	for _, c := range []struct {
		policy Policy
		keep   string // numbers
	}{
		{Policy{}, "60 10"},
		{Policy{Last: 1}, "60 10"},
		{Policy{Last: 3}, "60 59 58 10"},
		{Policy{Last: 100}, "all"},
		{Policy{Hourly: 2}, "60 59 10"},
		{Policy{Daily: 3}, "60 58 56 10"},
		{Policy{Weekly: 2}, "60 50 10"},            // 30 and 25 January 2026, a Friday and a Sunday
		{Policy{Monthly: 12}, "60 10 5"},           // and January 1970
		{Policy{Last: 2, Daily: 2}, "60 59 58 10"}, // any rule keeps
	} {
		keep, remove := c.policy.Apply(versions)
		if len(keep)+len(remove) != len(versions) {
			t.Errorf("%+v: %d and %d of %d", c.policy, len(keep), len(remove), len(versions))
		}
		var got []string
		for _, k := range keep {
			got = append(got, fmt.Sprint(k.Number))
			if len(k.Why) == 0 {
				t.Errorf("%+v keeps %d without a reason", c.policy, k.Number)
			}
		}
		if text := strings.Join(got, " "); text != c.keep && !(c.keep == "all" && len(remove) == 0) {
			t.Errorf("%+v keeps %s, not %s", c.policy, text, c.keep)
		}
	}
	keep, _ := Policy{Last: 2, Daily: 1}.Apply(versions)
	if !slices.Equal(keep[0].Why, []string{"latest", "last", "daily"}) || !slices.Equal(keep[2].Why, []string{"tag golden"}) {
		t.Errorf("reasons: %q, %q", keep[0].Why, keep[2].Why)
	}
	if keep, remove := (Policy{Last: 1}).Apply(nil); len(keep)+len(remove) != 0 {
		t.Error("of nothing, something")
	}
}
