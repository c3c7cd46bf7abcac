package clone

import (
	"fmt"
	"slices"
	"strings"
)

// chooseDisk applies the rule of the target disk:
//
//  1. a disk that already carries this install is the one: it continues there;
//  2. else the disk the operator named, by path, by a link below /dev/disk, by
//     serial number or by WWN, if that is the name of one alone;
//  3. else the only disk that is writable, fixed, not on USB, and large enough.
//     Several: the choice is the operator's.
func chooseDisk(t Target, hw Hardware, need int64) (Disk, string, error) {
	for _, d := range hw.Disks {
		if d.GUID == "" || !strings.EqualFold(d.GUID, t.Install) {
			continue
		}
		if why := unfit(d, need); why == "" {
			return d, "carries this install already", nil
		}
	}
	if t.Disk != "" {
		return namedDisk(t, hw, need)
	}
	var fit []Disk
	verdicts := make([]DiskVerdict, 0, len(hw.Disks))
	for _, d := range hw.Disks {
		v := DiskVerdict{Disk: d, Why: unsuitable(d, need)}
		if v.Why == "" {
			fit = append(fit, d)
		}
		verdicts = append(verdicts, v)
	}
	switch {
	case len(fit) == 1:
		return fit[0], "the only disk that is writable, fixed, not on USB and large enough", nil
	case len(fit) > 1:
		return Disk{}, "", &DiskError{
			What:     fmt.Sprintf("%s has %d disks that qualify", t.Node, len(fit)),
			Hint:     fmt.Sprintf("name one: doppel deploy %s --disk %s", t.Node, nameOf(fit[0])),
			Verdicts: verdicts,
		}
	case len(hw.Disks) == 0:
		return Disk{}, "", &DiskError{
			What: fmt.Sprintf("%s has no disk", t.Node),
			Hint: "the kernel of the image shows none: look at the machine's cabling and controller settings, and whether the image has the controller's module",
		}
	}
	return Disk{}, "", &DiskError{
		What:     fmt.Sprintf("%s has no disk that qualifies", t.Node),
		Hint:     noneHint(t.Node, verdicts),
		Verdicts: verdicts,
	}
}

func namedDisk(t Target, hw Hardware, need int64) (Disk, string, error) {
	var meant []Disk
	var others, verdicts []DiskVerdict
	for _, d := range hw.Disks {
		if namedBy(d, t.Disk) == "" {
			others = append(others, DiskVerdict{Disk: d, Why: "has another name"})
			continue
		}
		meant = append(meant, d)
		verdicts = append(verdicts, DiskVerdict{Disk: d, Why: unfit(d, need)})
	}
	switch {
	case len(meant) == 0:
		return Disk{}, "", &DiskError{
			What:     fmt.Sprintf("%s has no disk %s", t.Node, t.Disk),
			Hint:     "name one of these with --disk",
			Verdicts: others,
		}
	case slices.ContainsFunc(meant, func(d Disk) bool { return !sameDisk(d, meant[0]) }):
		return Disk{}, "", &DiskError{
			What:     fmt.Sprintf("%s has %d disks that %s names", t.Node, len(meant), t.Disk),
			Hint:     fmt.Sprintf("name one by what it alone has: doppel deploy %s --disk %s", t.Node, meant[0].Path),
			Verdicts: verdicts,
		}
	case verdicts[0].Why != "":
		return Disk{}, "", &DiskError{
			What:     fmt.Sprintf("the disk %s of %s does not qualify", t.Disk, t.Node),
			Hint:     "name another with --disk",
			Verdicts: verdicts[:1],
		}
	}
	return meant[0], fmt.Sprintf("named by the operator, by its %s %s", namedBy(meant[0], t.Disk), t.Disk), nil
}

// sameDisk tells whether two of a machine's disks are one, seen by two paths.
// Serial numbers do not tell: RAID controllers show their own for all volumes.
func sameDisk(a, b Disk) bool {
	return a.Path == b.Path || a.WWN != "" && strings.EqualFold(a.WWN, b.WWN)
}

// namedBy tells by which of its names a disk is meant; empty: it is not.
func namedBy(d Disk, name string) string {
	switch {
	case name == d.Path, "/dev/"+name == d.Path:
		return "path"
	case slices.Contains(d.Links, name), slices.Contains(d.Links, "/dev/disk/"+name):
		return "link"
	case d.Serial != "" && strings.EqualFold(name, d.Serial):
		return "serial number"
	case d.WWN != "" && strings.EqualFold(strings.TrimPrefix(strings.ToLower(name), "0x"), strings.TrimPrefix(strings.ToLower(d.WWN), "0x")):
		return "WWN"
	}
	return ""
}

// unfit tells why not even an operator can have this disk.
func unfit(d Disk, need int64) string {
	switch {
	case d.ReadOnly:
		return "is read-only"
	case d.Size < need:
		return fmt.Sprintf("is too small: need %s, have %s", FormatBytes(need), FormatBytes(d.Size))
	}
	return ""
}

// unsuitable tells why a disk is not taken without being named.
func unsuitable(d Disk, need int64) string {
	switch {
	case d.ReadOnly:
		return "is read-only"
	case d.Removable:
		return "is removable"
	case strings.EqualFold(d.Bus, "usb"):
		return "is on USB"
	}
	return unfit(d, need)
}

// nameOf is the name of a disk that lasts longest: kernel names change from
// boot to boot.
func nameOf(d Disk) string {
	switch {
	case d.Serial != "" && !strings.ContainsAny(d.Serial, " \t'\""):
		return d.Serial
	case d.WWN != "":
		return d.WWN
	case len(d.Links) > 0:
		return d.Links[0]
	}
	return d.Path
}

func noneHint(node string, verdicts []DiskVerdict) string {
	for _, v := range verdicts {
		if v.Disk.Removable || strings.EqualFold(v.Disk.Bus, "usb") {
			return fmt.Sprintf("removable and USB disks are only taken by name: doppel deploy %s --disk %s", node, nameOf(v.Disk))
		}
	}
	return "fit a larger disk, or capture a smaller tree"
}
