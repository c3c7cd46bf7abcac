package clone

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"doppel/imaging"
)

// packages name what brings a thing, on systems of Debian's and of Red Hat's
// family.
type packages struct{ debian, redhat string }

// Check tells whether an image can be installed on a machine that starts with
// the firmware: it must bring the kernel, the loader, and the tools that make
// its file systems, since the installer has none of its own. The error, a
// *RefusedError, names all that is missing and the packages that bring it.
func Check(h imaging.Head, fw Firmware) error {
	l := &lacking{head: h}
	l.boot(fw)
	for _, fs := range fileSystemsNeeded(h, fw) {
		tool, p := formatTool(fs)
		if tool != "" && !hasTool(h.Boot, tool) {
			l.miss(tool, p)
		}
	}
	return l.refusal("installed on", fw)
}

// checkStart is Check for a machine whose file systems are there already.
func checkStart(h imaging.Head, fw Firmware) error {
	l := &lacking{head: h}
	l.boot(fw)
	return l.refusal("started by", fw)
}

// lacking is what an image lacks.
type lacking struct {
	head  imaging.Head
	lacks []string
	need  []string // packages that bring it
}

func (l *lacking) miss(what string, p packages) {
	l.lacks = append(l.lacks, what)
	name := p.debian
	if isRedHat(l.head.Facts.OSRelease) {
		name = p.redhat
	}
	for _, n := range strings.Fields(name) {
		if !slices.Contains(l.need, n) {
			l.need = append(l.need, n)
		}
	}
}

func (l *lacking) boot(fw Firmware) {
	checkKernel(l.head.Boot, l.head.Facts.Arch, l.miss)
	checkLoader(l.head.Boot, l.head.Facts.Arch, fw, l.miss)
}

func (l *lacking) refusal(how string, fw Firmware) error {
	if len(l.lacks) == 0 {
		return nil
	}
	return &RefusedError{
		What: fmt.Sprintf("the image cannot be %s a machine with %s firmware: it lacks %s", how, strings.ToUpper(string(fw)), strings.Join(l.lacks, ", ")),
		Hint: fmt.Sprintf("install %s on the head and capture it again", strings.Join(l.need, ", ")),
	}
}

func checkKernel(b imaging.Boot, arch string, miss func(string, packages)) {
	if len(b.Kernels) == 0 {
		miss("a kernel", packages{"linux-image-" + debianArch(arch), "kernel"})
		return
	}
	if !slices.ContainsFunc(b.Kernels, func(k imaging.Kernel) bool { return k.Initrd != "" }) {
		miss("an initramfs for its kernel", packages{"initramfs-tools", "dracut"})
	}
}

func checkLoader(b imaging.Boot, arch string, fw Firmware, miss func(string, packages)) {
	loader := "grub-" + string(fw)
	if !slices.Contains(b.Loaders, loader) {
		p := packages{"grub-pc-bin grub2-common", "grub2-pc grub2-tools"}
		if fw == UEFI {
			p = packages{"grub-efi-" + debianArch(arch) + "-bin grub2-common", "grub2-efi-x64 shim-x64 grub2-tools"}
			if arch == "aarch64" {
				p.redhat = "grub2-efi-aa64 shim-aa64 grub2-tools"
			}
		}
		miss("GRUB for "+strings.ToUpper(string(fw)), p)
		return
	}
	if fw == BIOS && !hasTool(b, "grub-install") && !hasTool(b, "grub2-install") {
		miss("grub-install", packages{"grub2-common", "grub2-tools"})
	}
}

// fileSystemsNeeded are the types an install of the image has to make.
func fileSystemsNeeded(h imaging.Head, fw Firmware) []string {
	var types []string
	add := func(t string) {
		if !slices.Contains(types, t) {
			types = append(types, t)
		}
	}
	if h.Layout != nil && layoutRoot(h.Layout) != nil {
		for _, p := range h.Layout.Partitions {
			if p.FS != nil {
				add(p.FS.Type)
			}
		}
	} else {
		add(rootType(h.Boot))
	}
	if fw == UEFI {
		add("vfat")
	}
	return types
}

// formatTool is the program that makes a file system, and who brings it.
func formatTool(fs string) (string, packages) {
	switch fs {
	case "ext2", "ext3", "ext4":
		return "mkfs." + fs, packages{"e2fsprogs", "e2fsprogs"}
	case "xfs":
		return "mkfs.xfs", packages{"xfsprogs", "xfsprogs"}
	case "vfat":
		return "mkfs.vfat", packages{"dosfstools", "dosfstools"}
	case "swap":
		return "mkswap", packages{"util-linux", "util-linux"}
	}
	return "", packages{}
}

// findTool is the path of an image's program, by its name; empty: none.
func findTool(b imaging.Boot, name string) string {
	for _, p := range b.Tools {
		if path.Base(p) == name {
			return p
		}
	}
	return ""
}

func hasTool(b imaging.Boot, name string) bool { return findTool(b, name) != "" }

func isRedHat(osRelease map[string]string) bool {
	for _, id := range strings.Fields(osRelease["ID"] + " " + osRelease["ID_LIKE"]) {
		switch id {
		case "rhel", "fedora", "centos", "rocky", "almalinux", "ol":
			return true
		}
	}
	return false
}

func debianArch(arch string) string {
	if arch == "aarch64" {
		return "arm64"
	}
	return "amd64"
}
