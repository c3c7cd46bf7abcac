package clone

import (
	"fmt"
	"strings"
)

// RefusedError says that an install cannot be planned: what is in the way, and
// what to do about it. Nothing was written.
type RefusedError struct {
	What string
	Hint string
}

func (e *RefusedError) Error() string {
	if e.Hint == "" {
		return e.What
	}
	return fmt.Sprintf("%s (%s)", e.What, e.Hint)
}

// DiskError says that no disk, or more than one, qualifies.
type DiskError struct {
	What     string
	Hint     string
	Verdicts []DiskVerdict
}

// DiskVerdict is a disk and why it does not qualify; Why is empty when it does.
type DiskVerdict struct {
	Disk Disk
	Why  string
}

func (e *DiskError) Error() string {
	var b strings.Builder
	b.WriteString(e.What)
	for i, v := range e.Verdicts {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		why := v.Why
		if why == "" {
			why = "qualifies"
		}
		fmt.Fprintf(&b, "%s%s %s", sep, v.Disk, why)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

// String names a disk the way a person tells one from another.
func (d Disk) String() string {
	parts := []string{FormatBytes(d.Size)}
	for _, s := range []string{d.Bus, d.Model, d.Serial} {
		if s = strings.TrimSpace(s); s != "" {
			parts = append(parts, s)
		}
	}
	return fmt.Sprintf("%s [%s]", d.Path, strings.Join(parts, " "))
}

// FormatBytes writes n with a binary unit: 8.0 GiB.
func FormatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, u := float64(n)/1024, 0
	for v >= 1023.95 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[u])
}
