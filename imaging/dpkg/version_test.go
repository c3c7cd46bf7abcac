package dpkg

import (
	"errors"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
)

func sign(n int) int { return max(-1, min(1, n)) }

// The order of deb-version(7), and of versions that there were.
var ascending = []string{
	"~~", "~~a", "~", "", "0.0.0.1", "0.1~rc1-1", "0.1-1~bpo12+1", "0.1-1", "0.1-1a", "0.1-1+b1", "0.1-1.1",
	"1.0~beta1~svn1245", "1.0~beta1", "1.0", "1.0-1", "1.0a-1", "1.0+dfsg-1", "1.0-x-1", "1.0.1-1", "1.2", "1.10",
	"2.36-9", "2.36-9+deb12u4", "2.36-9+deb12u10", "9.99999999999999999999", "9.100000000000000000000", "1:0.1", "1:1", "10:0",
}

func TestCompareVersions(t *testing.T) {
	for i, a := range ascending {
		for j, b := range ascending {
			if got := CompareVersions(a, b); sign(got) != sign(i-j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
	for _, same := range [][]string{{"1.0", "0:1.0", "00:1.00", "1.0-0", "1.0-", "1.0-00"}, {"1.", "1.0"}, {"a", "a0", "a0-0"}} {
		for _, a := range same {
			for _, b := range same {
				if got := CompareVersions(a, b); got != 0 {
					t.Errorf("%q and %q: %d", a, b, got)
				}
			}
		}
	}
}

// dpkg is the judge of a few hundred pairs, many of which differ in little.
func TestCompareAsDpkg(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Fatal("this test asks dpkg: run it on a Debian, or install dpkg")
	}
	random := rand.New(rand.NewPCG(1, 2))
	part := func() string {
		pieces := []string{"0", "1", "9", "10", "00", "007", "a", "Z", "rc", "~", "~~", "+", ".", ".", "-", "+b", "dfsg", "deb12u"}
		var b strings.Builder
		for range random.IntN(6) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	make := func() string {
		v := []string{"", "", "", "0:", "1:", "02:"}[random.IntN(6)] + []string{"0", "1", "1", "2"}[random.IntN(4)] + part()
		if strings.HasSuffix(v, "-") {
			v += "1" // dpkg refuses an empty revision
		}
		return v
	}
	pairs := [][2]string{{"1.0", "1.0-0"}, {"1.0~", "1.0"}, {"1:0", "2"}, {"1.0-1-1", "1.0-1"}, {"1.0+", "1.0."}}
	for range 400 {
		a := make()
		b := make()
		if random.IntN(2) == 0 {
			b = a + strings.TrimSuffix(part(), "-")
		}
		if !strings.HasSuffix(b, "-") {
			pairs = append(pairs, [2]string{a, b})
		}
	}
	var seen [3]int
	for _, p := range pairs {
		want := 0
		for op, order := range map[string]int{"lt": -1, "gt": 1} {
			err := exec.Command("dpkg", "--compare-versions", p[0], op, p[1]).Run()
			var no *exec.ExitError
			if err == nil {
				want = order
			} else if !errors.As(err, &no) || no.ExitCode() != 1 {
				t.Fatalf("dpkg on %q and %q: %v", p[0], p[1], err)
			}
		}
		seen[want+1]++
		if got := CompareVersions(p[0], p[1]); sign(got) != want {
			t.Errorf("%q and %q: %d, to dpkg %d", p[0], p[1], got, want)
		}
		if got := CompareVersions(p[1], p[0]); sign(got) != -want {
			t.Errorf("%q and %q the other way round: %d, to dpkg %d", p[0], p[1], got, -want)
		}
	}
	if seen[0] < 50 || seen[1] < 5 || seen[2] < 50 {
		t.Errorf("of %d pairs, %v are below, equal and above", len(pairs), seen)
	}
}

// FuzzVersions: an order has two sides, equality one, and it is in itself
// consistent.
func FuzzVersions(f *testing.F) {
	f.Add("1:1.0-1", "1.0-1~", "1.0")
	f.Add("0~~a", "0~", "0a+")
	f.Add("", "-", ":")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if CompareVersions(a, a) != 0 || CompareVersions(a, b) != -CompareVersions(b, a) {
			t.Fatalf("%q and %q: %d and %d", a, b, CompareVersions(a, b), CompareVersions(b, a))
		}
		if CompareVersions(a, b) <= 0 && CompareVersions(b, c) <= 0 && CompareVersions(a, c) > 0 {
			t.Fatalf("%q, %q, %q go round in a circle", a, b, c)
		}
		_ = checkVersion(a)
	})
}
