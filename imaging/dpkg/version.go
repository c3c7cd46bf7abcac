package dpkg

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// CompareVersions is below zero where a is earlier than b, zero where dpkg makes
// no difference between them, as between 1.0 and 0:1.00-0, above where it is
// later: deb-version(7).
func CompareVersions(a, b string) int {
	x, y := splitVersion(a), splitVersion(b)
	return cmp.Or(compareDigits(x.epoch, y.epoch), comparePart(x.upstream, y.upstream), comparePart(x.revision, y.revision))
}

// version is a version in its three parts.
type version struct{ epoch, upstream, revision string }

func splitVersion(s string) version {
	v := version{upstream: s}
	if epoch, rest, ok := strings.Cut(s, ":"); ok {
		v.epoch, v.upstream = epoch, rest
	}
	if i := strings.LastIndexByte(v.upstream, '-'); i >= 0 {
		v.upstream, v.revision = v.upstream[:i], v.upstream[i+1:]
	}
	return v
}

// comparePart compares an upstream version or a revision: in turns what comes
// before a digit, and a number.
func comparePart(a, b string) int {
	for a != "" || b != "" {
		textA, restA := cutWhere(a, isDigit)
		textB, restB := cutWhere(b, isDigit)
		numberA, nextA := cutWhere(restA, isNoDigit)
		numberB, nextB := cutWhere(restB, isNoDigit)
		if c := cmp.Or(compareText(textA, textB), compareDigits(numberA, numberB)); c != 0 {
			return c
		}
		a, b = nextA, nextB
	}
	return 0
}

func isDigit(c rune) bool   { return c >= '0' && c <= '9' }
func isNoDigit(c rune) bool { return !isDigit(c) }

// cutWhere cuts in front of the first character that is so.
func cutWhere(s string, is func(rune) bool) (before, from string) {
	if i := strings.IndexFunc(s, is); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// compareText compares what has no digits: a tilde is before the end, the end
// before letters, letters before everything else.
func compareText(a, b string) int {
	rank := func(s string, i int) int {
		switch {
		case i >= len(s):
			return 0
		case s[i] == '~':
			return -1
		case s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z':
			return int(s[i])
		}
		return int(s[i]) + 256
	}
	for i := range max(len(a), len(b)) {
		if c := cmp.Compare(rank(a, i), rank(b, i)); c != 0 {
			return c
		}
	}
	return 0
}

// compareDigits compares numbers of any length; none is zero.
func compareDigits(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// checkVersion refuses what dpkg would not install as a version.
func checkVersion(s string) error {
	epoch, rest, ok := strings.Cut(s, ":")
	if !ok {
		rest = s
	} else if n, err := strconv.ParseUint(epoch, 10, 32); err != nil || n > math.MaxInt32 {
		return fmt.Errorf("the version %.80q, whose epoch is no number", s)
	}
	if rest == "" {
		return errors.New("a version without a number")
	}
	return checkWord("version", s)
}

// checkWord refuses what no name, version or architecture can be.
func checkWord(what, s string) error {
	if s == "" || len(s) > maxWord || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fmt.Errorf("the %s %.80q, which no package can have", what, s)
	}
	return nil
}
