package imaging

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Mounts says what is mounted below the root of a tree, so that a walk can
// tell what is the host's own from what is lent to it, and sees every
// directory once though it may be mounted in several places.
type Mounts struct {
	root     string // of the tree, absolute
	list     []mount
	children map[int][]int // mount id → indices into list
	ids      map[int]bool  // all mount ids
	base     int           // the mount that the tree's root is in
}

// mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	id, parent int
	dev        string // major:minor
	root       string // the directory of the file system that is mounted
	dir        string // where
	fs         string // type
	source     string
	readOnly   bool // the file system, wherever it is mounted
}

// left says why the contents of a directory are not part of the tree.
type left struct {
	reason string
	remote bool // even to look at the directory may take forever
	id     int  // of the mount, where it is one
}

// ReadMounts reads a /proc/self/mountinfo for a tree whose root is at the
// absolute path root, symbolic links resolved.
func ReadMounts(r io.Reader, root string) (*Mounts, error) {
	if !path.IsAbs(root) || path.Clean(root) != root {
		return nil, fmt.Errorf("read mounts: %q is no clean absolute path", root)
	}
	m := &Mounts{root: root, children: make(map[int][]int), ids: make(map[int]bool)}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // overlay's options name every layer
	for lines.Scan() {
		if err := m.add(lines.Text()); err != nil {
			return nil, fmt.Errorf("read mounts: %w", err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	m.base = m.at(root)
	return m, nil
}

// Points are the paths, from the tree's root, at which anything is mounted
// below it.
func (m *Mounts) Points() []string {
	var points []string
	for _, e := range m.list {
		if p, ok := within(m.root, e.dir); ok && p != "" && !slices.Contains(points, p) {
			points = append(points, p)
		}
	}
	return points
}

func (m *Mounts) add(line string) error {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 1 {
		return fmt.Errorf("a line of mountinfo is cut short: %.200q", line)
	}
	id, err := strconv.Atoi(f[0])
	if err != nil {
		return fmt.Errorf("a line of mountinfo begins with no number: %.200q", line)
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return fmt.Errorf("a line of mountinfo has no parent: %.200q", line)
	}
	e := mount{id: id, parent: parent, dev: f[2], root: unescapeOctal(f[3]), dir: unescapeOctal(f[4]), fs: g[0]}
	if len(g) > 1 {
		e.source = unescapeOctal(g[1])
	}
	if len(g) > 2 {
		first, _, _ := strings.Cut(g[2], ",")
		e.readOnly = first == "ro"
	}
	if parent != id {
		m.children[parent] = append(m.children[parent], len(m.list))
	}
	m.ids[id] = true
	m.list = append(m.list, e)
	return nil
}

// within tells whether p is dir or below it, and what of p is below.
func within(dir, p string) (rest string, ok bool) {
	if dir == "/" {
		return strings.TrimPrefix(p, "/"), strings.HasPrefix(p, "/")
	}
	rest, ok = strings.CutPrefix(p, dir)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// at finds the mount that one comes into who looks up the absolute path p as
// the kernel does: from the root down, at every directory into what is mounted
// there last. -1: none, the table says nothing of it.
func (m *Mounts) at(p string) int {
	cur := -1
	for i, e := range m.list {
		if _, ok := within(e.dir, p); ok && (!m.ids[e.parent] || e.parent == e.id) && (cur < 0 || len(e.dir) > len(m.list[cur].dir)) {
			cur = i
		}
	}
	for range m.list {
		next := -1
		if cur < 0 {
			break
		}
		for _, c := range m.children[m.list[cur].id] {
			_, ok := within(m.list[c].dir, p)
			// Of two children, the one nearer to the root is come upon first
			// and hides the other; of two in one place, the later is on top.
			if ok && c != cur && (next < 0 || len(m.list[c].dir) <= len(m.list[next].dir)) {
				next = c
			}
		}
		if next < 0 {
			break
		}
		cur = next
	}
	return cur
}

// place is a mount that is part of the tree.
type place struct {
	index int
	path  string // below the tree's root; "." is the root
	root  string // the directory of the file system that is there
}

// left tells of which directories the contents are to be left out: network
// and virtual file systems, and what is in the tree elsewhere already.
// excluded tells whether the contents at a path are left out for other
// reasons, so that a second way there is the only one.
func (m *Mounts) left(excluded func(path string) bool) map[string]left {
	_, out := m.survey(excluded)
	return out
}

// survey tells of left, and which mounts are part of the tree, that of its root
// first.
func (m *Mounts) survey(excluded func(path string) bool) (places []place, out map[string]left) {
	out = make(map[string]left)
	if m.base < 0 {
		return nil, out
	}
	base := m.list[m.base]
	rest, _ := within(base.dir, m.root)
	places = []place{{m.base, ".", path.Join(base.root, rest)}}
	for i, e := range m.list {
		rel, ok := within(m.root, e.dir)
		if !ok || rel == "" || m.at(e.dir) != i {
			continue // not in the tree, or hidden by another mount
		}
		if why := foreign(e.fs, e.source); why.reason != "" {
			why.id = e.id
			out[rel] = why
			continue
		}
		p := place{i, rel, e.root}
		if other, ok := m.again(p, places, excluded); ok {
			out[rel] = left{reason: "it is " + other + " mounted a second time"}
			continue
		}
		m.inner(p, places, out)
		places = append(places, p)
	}
	return places, out
}

// again finds where what is mounted at p is in the tree already.
func (m *Mounts) again(p place, places []place, excluded func(string) bool) (string, bool) {
	for _, q := range places {
		rest, ok := within(q.root, p.root)
		if !ok || m.list[q.index].dev != m.list[p.index].dev {
			continue
		}
		there := path.Join(q.path, rest)
		if m.at(path.Join(m.root, there)) == q.index && !excluded(there) {
			return there, true
		}
	}
	return "", false
}

// inner finds the directories within p that are in the tree elsewhere, as the
// root subvolume of btrfs is in the whole file system mounted at /mnt.
func (m *Mounts) inner(p place, places []place, out map[string]left) {
	for _, q := range places {
		rest, ok := within(p.root, q.root)
		if !ok || rest == "" || m.list[q.index].dev != m.list[p.index].dev {
			continue
		}
		there := path.Join(p.path, rest)
		if m.at(path.Join(m.root, there)) == p.index {
			out[there] = left{reason: "it is " + q.path + " seen a second time"}
		}
	}
}

// mounted tells whether something is mounted at the path below the tree's root.
func (m *Mounts) mounted(rel string) bool {
	for _, e := range m.list {
		if r, ok := within(m.root, e.dir); ok && r == rel && rel != "" {
			return true
		}
	}
	return false
}

// foreign tells why a file system is not the host's own disk. One whose type
// is not known is, when it comes from a device.
func foreign(fs, source string) left {
	switch fs {
	case "ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "msdos", "exfat", "f2fs", "jfs", "reiserfs", "nilfs2", "bcachefs", "zfs", "ntfs3", "ufs", "hfsplus":
		return left{}
	case "nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "beegfs_nodev", "9p", "afs", "coda", "glusterfs", "orangefs", "pvfs2", "panfs", "ncpfs", "ocfs2", "gfs2", "wekafs", "autofs", "virtiofs":
		return left{reason: "a " + fs + " file system is mounted there", remote: true}
	case "proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "ramfs", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "pstore", "bpf", "configfs", "fusectl", "hugetlbfs", "mqueue", "efivarfs", "binfmt_misc", "rpc_pipefs", "nfsd", "selinuxfs", "resctrl", "binder", "nsfs", "overlay", "aufs", "squashfs", "iso9660", "udf", "erofs", "cramfs":
		return left{reason: "a " + fs + " file system is mounted there"}
	}
	if strings.HasPrefix(fs, "fuse") {
		return left{reason: "a " + fs + " file system is mounted there", remote: true}
	}
	if strings.HasPrefix(source, "/dev/") {
		return left{}
	}
	return left{reason: "a " + fs + " file system is mounted there", remote: true}
}
