package imaging

import (
	"cmp"
	"path"
	"slices"
	"strings"
)

// bootTools are programs that an install uses from the tree itself, so that
// what they make fits the tree's kernel and loader.
var bootTools = [...]string{
	"blkid", "btrfs", "dracut", "e2fsck", "efibootmgr", "fsck.vfat", "grub-editenv", "grub-install", "grub-mkconfig", "grub-probe",
	"grub2-editenv", "grub2-install", "grub2-mkconfig", "grub2-probe", "mke2fs", "mkfs.btrfs", "mkfs.ext2", "mkfs.ext3", "mkfs.ext4",
	"mkfs.fat", "mkfs.vfat", "mkfs.xfs", "mkinitrd", "mkswap", "partprobe", "resize2fs", "sfdisk", "sgdisk", "ssh-keygen",
	"systemd-machine-id-setup", "tune2fs", "udevadm", "update-grub", "update-initramfs", "xfs_admin", "xfs_growfs",
}

// programDirs are where programs are. On a merged tree some are symbolic links
// to others, which finder sees through.
var programDirs = [...]string{"usr/sbin", "usr/bin", "sbin", "bin"}

// DetectBoot tells from the entries of a tree, in canonical order, what it
// holds to start a machine with.
func DetectBoot(list *Entries) Boot {
	f := finder{list}
	b := Boot{Kernels: f.kernels(), Loaders: []string{}, Tools: []string{}, Network: f.network()}
	if f.program("grub-install") != "" || f.program("grub2-install") != "" {
		if f.grub("i386-pc", "boot.img") {
			b.Loaders = append(b.Loaders, "grub-bios")
		}
		if f.grub("x86_64-efi") || f.grub("arm64-efi") {
			b.Loaders = append(b.Loaders, "grub-uefi")
		}
	}
	for _, name := range bootTools {
		if p := f.program(name); p != "" {
			b.Tools = append(b.Tools, p)
		}
	}
	slices.Sort(b.Tools)
	return b
}

// Lookup gives the entry that path leads to for a program in the tree: symbolic
// links are followed, and of a hard link it is the file. nil: there is none.
func (l *Entries) Lookup(path string) *Entry {
	e := finder{l}.find(path)
	if e != nil && e.Kind == HardLink {
		return l.Get(e.Target)
	}
	return e
}

// finder finds entries by their path as a program in the tree would, which
// sees through symbolic links.
type finder struct{ list *Entries }

// find gives the entry that p leads to, symbolic links followed; nil: nothing.
func (f finder) find(p string) *Entry {
	at := "."
	todo := strings.Split(p, "/")
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
		e := f.entry(joinPath(at, element))
		if e == nil {
			return nil
		}
		if e.Kind != Symlink {
			at = e.Path
			continue
		}
		if links++; links > 40 { // the kernel's own bound (path_resolution(7))
			return nil
		}
		if strings.HasPrefix(e.Target, "/") {
			at = "."
		}
		todo = append(strings.Split(e.Target, "/"), todo...)
	}
	return f.entry(at)
}

func (f finder) entry(p string) *Entry { return f.list.Get(p) }

// file gives the path of the file that p leads to; empty: there is none.
func (f finder) file(p string) string {
	if e := f.find(p); e != nil && (e.Kind == Regular || e.Kind == HardLink) {
		return e.Path
	}
	return ""
}

// directory gives the path of the directory that p leads to.
func (f finder) directory(p string) string {
	if e := f.find(p); e != nil && e.Kind == Directory {
		return e.Path
	}
	return ""
}

// program gives the path by which a program is to be called: its directory's
// own path and its name, which may be what tells the program what to be.
func (f finder) program(name string) string {
	for _, dir := range programDirs {
		if d := f.directory(dir); d != "" && f.file(joinPath(d, name)) != "" {
			return joinPath(d, name)
		}
	}
	return ""
}

// in are the entries directly in the directory that dir leads to.
func (f finder) in(dir string) []*Entry {
	dir = f.directory(dir)
	if dir == "" {
		return nil
	}
	var list []*Entry
	i, _ := f.list.Find(dir)
	for _, e := range f.list.From(i + 1) {
		if dir != "." && !strings.HasPrefix(e.Path, dir+"/") {
			break
		}
		if parentPath(e.Path) == dir {
			list = append(list, e)
		}
	}
	return list
}

// grub tells whether GRUB's files for a platform are there: what grub-install
// makes its image of, and further files.
func (f finder) grub(platform string, further ...string) bool {
	for _, dir := range []string{"usr/lib/grub/", "usr/share/grub2/", "usr/lib/grub2/"} {
		ok := true
		for _, name := range append(further, "kernel.img", "moddep.lst", "normal.mod") {
			ok = ok && f.file(dir+platform+"/"+name) != ""
		}
		if ok {
			return true
		}
	}
	return false
}

// kernels lists the kernels in /boot, the newest first. Debian and Red Hat call
// them vmlinuz-RELEASE; SUSE too, as a symbolic link into /usr/lib/modules, and
// on arm64 Image-RELEASE. Red Hat's vmlinuz-0-rescue-… is no release: it has no
// modules, and its initramfs is another machine's.
func (f finder) kernels() []Kernel {
	list := []Kernel{}
	for _, e := range f.in("boot") {
		name := path.Base(e.Path)
		release, ok := strings.CutPrefix(name, "vmlinuz-")
		if !ok {
			release, ok = strings.CutPrefix(name, "Image-")
		}
		if !ok || !isRelease(release) || strings.HasPrefix(release, "0-rescue-") {
			continue
		}
		k := Kernel{Release: release, Path: f.file(e.Path)}
		if k.Path == "" {
			continue
		}
		for _, initrd := range []string{"initrd.img-" + release, "initramfs-" + release + ".img", "initrd-" + release} {
			if k.Initrd = f.file(joinPath(parentPath(e.Path), initrd)); k.Initrd != "" {
				break
			}
		}
		for _, modules := range []string{"usr/lib/modules/", "lib/modules/"} {
			if k.Modules = f.directory(modules + release); k.Modules != "" {
				break
			}
		}
		list = append(list, k)
	}
	slices.SortStableFunc(list, func(a, b Kernel) int { return compareReleases(b.Release, a.Release) })
	return list
}

// isRelease tells whether s can be what uname -r says. Debian keeps
// vmlinuz-RELEASE.dpkg-bak and its like beside the real ones.
func isRelease(s string) bool {
	if s == "" || s[0] < '0' || s[0] > '9' {
		return false
	}
	for _, suffix := range []string{".old", ".bak", ".dpkg-bak", ".dpkg-new", ".dpkg-tmp", ".rpmsave", ".rpmnew", ".hmac"} {
		if strings.HasSuffix(s, suffix) {
			return false
		}
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._+~-", r))
	}) < 0
}

// compareReleases orders kernel releases: runs of digits as numbers, the rest
// as bytes.
func compareReleases(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x > 0 && y > 0 {
			m, n := strings.TrimLeft(a[:x], "0"), strings.TrimLeft(b[:y], "0")
			if c := cmp.Or(cmp.Compare(len(m), len(n)), cmp.Compare(m, n)); c != 0 {
				return c
			}
			a, b = a[x:], b[y:]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits tells how many digits s begins with.
func digits(s string) int {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return i
		}
	}
	return len(s)
}

// network tells with what the tree sets up its network. What is enabled counts
// before what is merely there.
func (f finder) network() string {
	if f.anyIn("etc/netplan", ".yaml") {
		return "netplan"
	}
	if f.program("NetworkManager") != "" && f.enabled("NetworkManager.service") {
		return "networkmanager"
	}
	if f.enabled("systemd-networkd.service") || f.anyIn("etc/systemd/network", ".network") {
		return "systemd-networkd"
	}
	if f.program("ifup") != "" {
		return "ifupdown"
	}
	if f.file("usr/lib/systemd/systemd-networkd") != "" || f.file("lib/systemd/systemd-networkd") != "" {
		return "systemd-networkd"
	}
	return ""
}

// anyIn tells whether a directory holds a file with the suffix.
func (f finder) anyIn(dir, suffix string) bool {
	return slices.ContainsFunc(f.in(dir), func(e *Entry) bool { return strings.HasSuffix(e.Path, suffix) })
}

// enabled tells whether systemd starts the unit: some target wants it. The
// link is not followed, since it leads to where the unit was at the time.
func (f finder) enabled(unit string) bool {
	for _, target := range []string{"multi-user", "network-online", "network", "sysinit"} {
		if f.entry("etc/systemd/system/"+target+".target.wants/"+unit) != nil {
			return true
		}
	}
	return false
}
