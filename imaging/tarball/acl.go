package tarball

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// POSIX ACLs are extended attributes of the kernel's
// (include/uapi/linux/posix_acl_xattr.h), and words in archives
// (SCHILY.acl.access and .default), as acl_to_text(3) writes them. star and
// bsdtar add the numeric id as a fourth field.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion = 2
	aclNobody  = 1<<32 - 1 // the id of an entry that is for nobody in particular
	aclMost    = 1 << 12
)

const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// aclEntry is one entry of an ACL.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// errUnknownName says that the id of a user or group of an ACL is not known.
var errUnknownName = errors.New("is not known by number")

// lookup finds the id of a user or group by its name.
type lookup func(group bool, name string) (id uint32, ok bool)

// parseACL reads an ACL in words.
func parseACL(text string, find lookup) ([]aclEntry, error) {
	var list []aclEntry
	for entry := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == '\n' || r == ',' }) {
		entry, _, _ = strings.Cut(entry, "#")
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		e, err := parseACLEntry(entry, find)
		if err != nil {
			return nil, err
		}
		if list = append(list, e); len(list) > aclMost {
			return nil, fmt.Errorf("it has an ACL of more than %d entries", aclMost)
		}
	}
	// The kernel wants them in the order of their tags.
	slices.SortStableFunc(list, func(a, b aclEntry) int { return cmp.Or(cmp.Compare(a.tag, b.tag), cmp.Compare(a.id, b.id)) })
	return list, checkACL(list)
}

func parseACLEntry(text string, find lookup) (aclEntry, error) {
	e := aclEntry{id: aclNobody}
	bad := fmt.Errorf("it has an ACL with the entry %.100q, which makes no sense", text)
	f := strings.Split(text, ":")
	if len(f) == 2 { // "mask:r-x", "other:r--"
		f = []string{f[0], "", f[1]}
	}
	if len(f) < 3 || len(f) > 4 {
		return e, bad
	}
	named := f[1] != "" || len(f) == 4 && f[3] != ""
	switch f[0] {
	case "user", "u":
		e.tag = aclUserObj
	case "group", "g":
		e.tag = aclGroupObj
	case "mask", "m":
		e.tag = aclMask
	case "other", "o":
		e.tag = aclOther
	default:
		return e, bad
	}
	for i, c := range []byte(strings.TrimSpace(f[2])) {
		switch {
		case i < 3 && c == "rwx"[i]:
			e.perm |= 4 >> i
		case i >= 3 || c != '-':
			return e, bad
		}
	}
	if !named {
		return e, nil
	}
	if e.tag != aclUserObj && e.tag != aclGroupObj {
		return e, bad
	}
	e.tag <<= 1
	number := f[1]
	if len(f) == 4 && f[3] != "" {
		number = f[3]
	}
	if n, err := strconv.ParseUint(number, 10, 32); err == nil && n != aclNobody {
		e.id = uint32(n)
		return e, nil
	}
	var ok bool
	if e.id, ok = find(e.tag == aclGroup, f[1]); !ok {
		return e, fmt.Errorf("%.100q of its ACL %w", f[1], errUnknownName)
	}
	return e, nil
}

// checkACL checks what the kernel will (posix_acl_valid), so that a version has
// no ACL that cannot be set.
func checkACL(list []aclEntry) error {
	count := make(map[uint16]int)
	for i, e := range list {
		count[e.tag]++
		if i > 0 && list[i-1].tag > e.tag || e.perm > 7 || e.tag == 0 || e.tag > aclOther || e.tag&(e.tag-1) != 0 {
			return errors.New("it has an ACL whose entries make no sense")
		}
		if i > 0 && list[i-1].tag == e.tag && list[i-1].id == e.id {
			return errors.New("it has an ACL with an entry twice")
		}
	}
	if len(list) == 0 {
		return nil
	}
	named := count[aclUser] + count[aclGroup]
	if count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 || count[aclMask] > 1 || named > 0 && count[aclMask] == 0 {
		return errors.New("it has an ACL without all entries that one must have")
	}
	return nil
}

// encodeACL writes an ACL as the kernel has it.
func encodeACL(list []aclEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// decodeACL reads the kernel's form; not ok: it is none.
func decodeACL(b []byte) (list []aclEntry, ok bool) {
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, false
	}
	for b = b[4:]; len(b) > 0; b = b[8:] {
		list = append(list, aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])})
	}
	return list, true
}

// aclMode is a mode as setting the ACL makes it: where there is a mask, it
// stands where the group's permissions do. bsdtar gives the group's own there.
func aclMode(mode uint32, list []aclEntry) uint32 {
	group := uint32(0)
	for _, e := range list {
		perm := uint32(e.perm & 7)
		switch e.tag {
		case aclUserObj:
			mode = mode&^0o700 | perm<<6
		case aclGroupObj, aclMask: // the mask comes last
			group = perm
		case aclOther:
			mode = mode&^0o007 | perm
		}
	}
	return mode&^0o070 | group<<3
}

// aclText writes an ACL in words, users and groups by number; not ok: it has
// what there are no words for.
func aclText(list []aclEntry) (text string, ok bool) {
	words := map[uint16]string{aclUserObj: "user", aclUser: "user", aclGroupObj: "group", aclGroup: "group", aclMask: "mask", aclOther: "other"}
	var b strings.Builder
	for _, e := range list {
		word, known := words[e.tag]
		if !known || e.perm > 7 {
			return "", false
		}
		id := ""
		if e.tag == aclUser || e.tag == aclGroup {
			id = strconv.FormatUint(uint64(e.id), 10)
		}
		perm := []byte("rwx")
		for i := range perm {
			if e.perm&(4>>i) == 0 {
				perm[i] = '-'
			}
		}
		fmt.Fprintf(&b, "%s:%s:%s\n", word, id, perm)
	}
	return b.String(), true
}
