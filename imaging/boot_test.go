package imaging

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// treeOf makes entries of paths: "x/" a directory, "x -> y" a symbolic link,
// else a file. Directories above are made as need be.
func treeOf(paths ...string) *Entries {
	list := []Entry{{Path: ".", Kind: Directory}}
	seen := map[string]bool{".": true}
	var add func(e Entry)
	add = func(e Entry) {
		if seen[e.Path] {
			return
		}
		add(Entry{Path: parentPath(e.Path), Kind: Directory})
		seen[e.Path] = true
		list = append(list, e)
	}
	for _, p := range paths {
		switch name, target, ok := strings.Cut(p, " -> "); {
		case ok:
			add(Entry{Path: name, Kind: Symlink, Target: target})
		case strings.HasSuffix(p, "/"):
			add(Entry{Path: strings.TrimSuffix(p, "/"), Kind: Directory})
		default:
			add(Entry{Path: p, Kind: Regular})
		}
	}
	sortEntries(list)
	var b EntriesBuilder
	for i := range list {
		_ = b.Add(&list[i]) // what is below a file, say, is left out
	}
	entries, err := b.Done()
	if err != nil {
		panic(err)
	}
	return &entries
}

func grubFiles(dir string, bios bool) []string {
	files := []string{dir + "/kernel.img", dir + "/moddep.lst", dir + "/normal.mod"}
	if bios {
		files = append(files, dir+"/boot.img")
	}
	return files
}

func TestDetectBoot(t *testing.T) {
	for name, c := range map[string]struct {
		list *Entries
		want Boot
	}{
		"debian 12": {
			treeOf(slices.Concat([]string{
				"bin -> usr/bin", "sbin -> usr/sbin", "lib -> usr/lib",
				"boot/vmlinuz-6.1.0-9-amd64", "boot/initrd.img-6.1.0-9-amd64", "usr/lib/modules/6.1.0-9-amd64/",
				"boot/vmlinuz-6.1.0-37-amd64", "boot/initrd.img-6.1.0-37-amd64", "usr/lib/modules/6.1.0-37-amd64/",
				"boot/vmlinuz-6.1.0-37-amd64.dpkg-bak", "boot/config-6.1.0-37-amd64", "boot/grub/grub.cfg",
				"usr/sbin/grub-install", "usr/sbin/update-grub", "usr/sbin/mke2fs", "usr/sbin/mkfs.ext4 -> mke2fs", "usr/sbin/mkswap",
				"usr/sbin/ifup", "etc/network/interfaces", "usr/lib/systemd/systemd-networkd",
			}, grubFiles("usr/lib/grub/i386-pc", true), grubFiles("usr/lib/grub/x86_64-efi", false))...),
			Boot{
				Kernels: []Kernel{
					{"6.1.0-37-amd64", "boot/vmlinuz-6.1.0-37-amd64", "boot/initrd.img-6.1.0-37-amd64", "usr/lib/modules/6.1.0-37-amd64"},
					{"6.1.0-9-amd64", "boot/vmlinuz-6.1.0-9-amd64", "boot/initrd.img-6.1.0-9-amd64", "usr/lib/modules/6.1.0-9-amd64"},
				},
				Loaders: []string{"grub-bios", "grub-uefi"},
				Tools:   []string{"usr/sbin/grub-install", "usr/sbin/mke2fs", "usr/sbin/mkfs.ext4", "usr/sbin/mkswap", "usr/sbin/update-grub"},
				Network: "ifupdown",
			},
		},
		"red hat": {
			treeOf(slices.Concat([]string{
				"boot/vmlinuz-5.14.0-570.el9.x86_64", "boot/initramfs-5.14.0-570.el9.x86_64.img", "usr/lib/modules/5.14.0-570.el9.x86_64/",
				"boot/vmlinuz-0-rescue-0123", "boot/initramfs-0-rescue-0123.img", "lib -> usr/lib", "usr/sbin/grub2-install",
				"usr/sbin/NetworkManager", "etc/systemd/system/multi-user.target.wants/NetworkManager.service -> /usr/lib/systemd/system/NetworkManager.service",
			}, grubFiles("usr/lib/grub/i386-pc", true))...),
			Boot{
				Kernels: []Kernel{{"5.14.0-570.el9.x86_64", "boot/vmlinuz-5.14.0-570.el9.x86_64", "boot/initramfs-5.14.0-570.el9.x86_64.img", "usr/lib/modules/5.14.0-570.el9.x86_64"}},
				Loaders: []string{"grub-bios"}, Tools: []string{"usr/sbin/grub2-install"}, Network: "networkmanager",
			},
		},
		"suse": {
			treeOf(slices.Concat([]string{
				"boot/vmlinuz-6.4.0-150600-default -> ../usr/lib/modules/6.4.0-150600-default/vmlinuz", "usr/lib/modules/6.4.0-150600-default/vmlinuz",
				"boot/initrd-6.4.0-150600-default", "usr/sbin/grub2-install", "boot/vmlinuz -> vmlinuz-6.4.0-150600-default",
			}, grubFiles("usr/share/grub2/x86_64-efi", false))...),
			Boot{
				Kernels: []Kernel{{"6.4.0-150600-default", "usr/lib/modules/6.4.0-150600-default/vmlinuz", "boot/initrd-6.4.0-150600-default", "usr/lib/modules/6.4.0-150600-default"}},
				Loaders: []string{"grub-uefi"}, Tools: []string{"usr/sbin/grub2-install"},
			},
		},
		"not merged": {
			treeOf("boot/vmlinuz-4.19.0-27-amd64", "lib/modules/4.19.0-27-amd64/", "sbin/mkfs.xfs", "sbin/ifup"),
			Boot{
				Kernels: []Kernel{{"4.19.0-27-amd64", "boot/vmlinuz-4.19.0-27-amd64", "", "lib/modules/4.19.0-27-amd64"}},
				Loaders: []string{}, Tools: []string{"sbin/mkfs.xfs"}, Network: "ifupdown",
			},
		},
		"grub without its tool":  {treeOf(grubFiles("usr/lib/grub/i386-pc", true)...), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}}},
		"netplan":                {treeOf("etc/netplan/50-cloud.yaml", "usr/sbin/ifup"), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}, Network: "netplan"}},
		"networkd":               {treeOf("etc/systemd/network/eth.network", "usr/sbin/ifup"), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}, Network: "systemd-networkd"}},
		"networkd by default":    {treeOf("usr/lib/systemd/systemd-networkd"), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}, Network: "systemd-networkd"}},
		"network manager is off": {treeOf("usr/sbin/NetworkManager", "sbin/ifup"), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}, Network: "ifupdown"}},
		"links in a circle":      {treeOf("boot/vmlinuz-1 -> vmlinuz-2", "boot/vmlinuz-2 -> vmlinuz-1", "lib -> lib"), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}}},
		"nothing":                {treeOf(), Boot{Kernels: []Kernel{}, Loaders: []string{}, Tools: []string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := DetectBoot(c.list); !reflect.DeepEqual(got, c.want) {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestCompareReleases(t *testing.T) {
	want := []string{"4.19.0-27-amd64", "5.4", "5.14.0", "6.1.0-9-amd64", "6.1.0-37-amd64", "6.1.0-37-cloud-amd64", "6.01.1", "6.10"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareReleases)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q", got)
	}
}
