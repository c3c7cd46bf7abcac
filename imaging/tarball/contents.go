package tarball

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"doppel/imaging"
	"doppel/imaging/store"
)

// contents reads files of the tree again, as a program in it would.
type contents struct {
	tree *tree
	back imaging.Recaller
	ids  [2]map[string]uint32 // of users and groups, by etc/passwd and etc/group; nil: not read yet
}

// find gives the inode that path leads to, symbolic links followed; nil:
// nothing.
func (c *contents) find(path string) *inode {
	at := "."
	todo := strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		element := todo[0]
		todo = todo[1:]
		switch element {
		case "", ".":
			continue
		case "..":
			at = parentPath(at)
			continue
		}
		next := element
		if at != "." {
			next = at + "/" + element
		}
		ino := c.tree.names[next]
		if ino == nil {
			return nil
		}
		if ino.entry.Kind != imaging.Symlink {
			at = next
			continue
		}
		if links++; links > 40 { // the kernel's own bound (path_resolution(7))
			return nil
		}
		if strings.HasPrefix(ino.entry.Target, "/") {
			at = "."
		}
		todo = append(strings.Split(ino.entry.Target, "/"), todo...)
	}
	return c.tree.names[at]
}

// beginning reads up to limit bytes of a file from its beginning, in whole
// chunks, and nothing of one with holes.
func (c *contents) beginning(ctx context.Context, path string, limit int) ([]byte, error) {
	ino := c.find(path)
	if ino == nil || ino.entry.Kind != imaging.Regular || ino.entry.Extents != nil {
		return nil, nil
	}
	var b []byte
	for i, chunk := range ino.entry.Chunks {
		if len(b) >= limit {
			break
		}
		part, err := c.back.Recall(ctx, store.Ref{Audience: ino.audience(i), ID: chunk.ID})
		if err != nil {
			return nil, fmt.Errorf("read %s of the archive: %w", path, err)
		}
		b = append(b, part...)
	}
	return b, nil
}

// facts are what files of the tree say about its host, as
// imaging.DescribeLocal finds it.
func (c *contents) facts(ctx context.Context) (imaging.Facts, error) {
	f := imaging.Facts{OSRelease: map[string]string{}, LayoutNote: "it comes from an archive, which says nothing about disks"}
	b, err := c.beginning(ctx, "etc/hostname", 4<<10)
	if err != nil {
		return f, err
	}
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			f.Hostname = line
			break
		}
	}
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		if b, err = c.beginning(ctx, name, 64<<10); err != nil {
			return f, err
		}
		if b != nil {
			f.OSRelease = imaging.ParseOSRelease(b)
			break
		}
	}
	// An archive tells of no machine; its programs are for one.
	for _, name := range []string{"bin/sh", "usr/bin/env", "sbin/init", "bin/ls", "usr/lib/systemd/systemd", "bin/busybox"} {
		if b, err = c.beginning(ctx, name, 20); err != nil {
			return f, err
		}
		if f.Arch = machine(b); f.Arch != "" {
			break
		}
	}
	return f, nil
}

// machine is what uname -m says on a machine that an ELF file is for (elf(5));
// empty: it is none, or for a machine that is not known.
func machine(b []byte) string {
	if len(b) < 20 || !bytes.HasPrefix(b, []byte("\x7fELF")) {
		return ""
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if b[5] == 2 {
		order = binary.BigEndian
	}
	switch order.Uint16(b[18:]) {
	case 3:
		return "i686"
	case 21:
		if b[5] == 1 {
			return "ppc64le"
		}
		return "ppc64"
	case 22:
		return "s390x"
	case 40:
		return "armv7l"
	case 62:
		return "x86_64"
	case 183:
		return "aarch64"
	case 243:
		return "riscv64"
	}
	return ""
}

// id finds the id of a user or group as the tree's own etc/passwd and etc/group
// have it, or else, as tar does, as this machine does.
func (c *contents) id(ctx context.Context, group bool, name string) (id uint32, ok bool, err error) {
	which, path := 0, "etc/passwd"
	if group {
		which, path = 1, "etc/group"
	}
	if c.ids[which] == nil {
		b, err := c.beginning(ctx, path, 16<<20)
		if err != nil {
			return 0, false, err
		}
		c.ids[which] = parseIDs(b)
	}
	if id, ok = c.ids[which][name]; ok {
		return id, true, nil
	}
	number := ""
	if group {
		if g, err := user.LookupGroup(name); err == nil {
			number = g.Gid
		}
	} else if u, err := user.Lookup(name); err == nil {
		number = u.Uid
	}
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), err == nil, nil
}

// parseIDs reads names and numbers of passwd(5) and group(5), which have both
// in the same place.
func parseIDs(b []byte) map[string]uint32 {
	ids := make(map[string]uint32)
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		if n, err := strconv.ParseUint(f[2], 10, 32); err == nil && n <= maxOwner {
			ids[f[0]] = uint32(n)
		}
	}
	return ids
}

func hasXattr(list []imaging.Xattr, name string) bool {
	_, ok := slices.BinarySearchFunc(list, name, func(x imaging.Xattr, name string) int { return strings.Compare(x.Name, name) })
	return ok
}

// addSorted adds an extended attribute that is not in the list yet.
func addSorted(list []imaging.Xattr, x imaging.Xattr) []imaging.Xattr {
	i, _ := slices.BinarySearchFunc(list, x.Name, func(x imaging.Xattr, name string) int { return strings.Compare(x.Name, name) })
	return slices.Insert(list, i, x)
}
