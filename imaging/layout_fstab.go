package imaging

import (
	"fmt"
	"strings"
)

// FstabEntry is one line of an fstab(5).
type FstabEntry struct {
	Spec    string // UUID=…, LABEL=…, PARTUUID=…, PARTLABEL=…, a path, or none
	Dir     string
	Type    string
	Options string
}

// ParseFstabLine reads one line; false for blank ones, remarks and what is no
// entry.
func ParseFstabLine(line string) (FstabEntry, bool) {
	f := strings.Fields(line)
	if len(f) < 3 || strings.HasPrefix(f[0], "#") {
		return FstabEntry{}, false
	}
	e := FstabEntry{Spec: unquoteTag(unescapeOctal(f[0])), Dir: unescapeOctal(f[1]), Type: f[2], Options: "defaults"}
	if len(f) > 3 {
		e.Options = unescapeOctal(f[3])
	}
	return e, true
}

// Names tells whether the entry's first field names this partition.
func (e FstabEntry) Names(p LayoutPartition) bool {
	tag, value, ok := strings.Cut(e.Spec, "=")
	if !ok || value == "" {
		return false
	}
	switch tag {
	case "UUID":
		return p.FS != nil && strings.EqualFold(value, p.FS.UUID)
	case "LABEL":
		return p.FS != nil && value == p.FS.Label
	case "PARTUUID":
		return strings.EqualFold(value, p.GUID)
	case "PARTLABEL":
		return value == p.Name
	}
	return false
}

// unquoteTag takes the quotes off UUID="…", which mount(8) also reads.
func unquoteTag(s string) string {
	tag, value, ok := strings.Cut(s, "=")
	if ok && len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
		return tag + "=" + value[1:len(value)-1]
	}
	return s
}

// unescapeOctal reads \040 and its like, as fstab and mountinfo write blanks.
func unescapeOctal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && s[i+1] < '4' && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// EscapeFstab writes a field so that ParseFstabLine reads it back.
func EscapeFstab(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case ' ', '\t', '\n', '\r', '\v', '\f', '\\':
			fmt.Fprintf(&b, `\%03o`, c)
		case '#':
			if i == 0 {
				b.WriteString(`\043`)
				continue
			}
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
