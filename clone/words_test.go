package clone

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// The last words of a program are its last lines, bounded in bytes too: one that
// draws a bar may say megabytes in one line.
func TestLastWords(t *testing.T) {
	var bar strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&bar, "\r%5d of 100000 ▓▓▓", i)
	}
	for said, want := range map[string]string{
		"": "", "\n \n": "", "no space\n": ": no space", "1\n2\n3\n4\n5\n6\n7\n": ": 2; 3; 4; 5; 6; 7",
		bar.String() + "\nno space left\n":           ": 99995 of 100000 ▓▓▓; 99996 of 100000 ▓▓▓; 99997 of 100000 ▓▓▓; 99998 of 100000 ▓▓▓; 99999 of 100000 ▓▓▓; no space left",
		strings.Repeat("▓", 1<<20) + "no space left": ": …" + strings.Repeat("▓", (maxWords-len("no space left"))/3) + "no space left",
	} {
		if have := lastWords(said); have != want || !utf8.ValidString(have) {
			t.Errorf("of %.40q: %.400q, want %.400q", said, have, want)
		}
	}
}
