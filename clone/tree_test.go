package clone

import (
	"context"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// memoryImage is an image in memory, made by hand.
type memoryImage struct {
	imaging.Manifest
	refs   []store.Ref // by number
	chunks map[store.Ref][]byte
	broken store.ID // chunk that the store has damaged
}

func (m *memoryImage) Find(ref store.Ref) (uint32, bool) {
	i := slices.Index(m.refs, ref)
	return uint32(i), i >= 0
}

// StreamNumbers gives what a compute node may read.
func (m *memoryImage) StreamNumbers(ctx context.Context, numbers []uint32, _ int, fn func(uint32, []byte) error) error {
	for _, number := range numbers {
		r := m.refs[number]
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if r.ID == m.broken {
			return &store.CorruptError{What: "chunk", ID: r.ID, Detail: "its bytes have another digest"}
		}
		b, ok := m.chunks[r]
		if !ok {
			return &store.MissingError{What: "chunk", ID: r.ID}
		}
		if err := fn(number, b); err != nil {
			return err
		}
	}
	return nil
}

// newImage makes an image of files: a path that ends in a slash is a
// directory, a content that begins with "-> " a link. Directories on the way
// are made.
func newImage(head imaging.Head, files map[string]string) *memoryImage {
	m := &memoryImage{Manifest: imaging.Manifest{Head: head}, chunks: make(map[store.Ref][]byte)}
	seen := map[string]bool{}
	var list []imaging.Entry
	var add func(name, content string)
	add = func(name, content string) {
		dir := strings.HasSuffix(name, "/")
		name = path.Clean(name)
		if seen[name] {
			return
		}
		seen[name] = true
		if name != "." {
			add(path.Dir(name)+"/", "")
		}
		e := imaging.Entry{Path: name, Kind: imaging.Regular, Mode: 0o644, MTime: imaging.Time{Sec: 1_700_000_000}}
		target, link := strings.CutPrefix(content, "-> ")
		switch {
		case dir:
			e.Kind, e.Mode = imaging.Directory, 0o755
		case link:
			e.Kind, e.Mode, e.Target = imaging.Symlink, 0o777, target
		default:
			if strings.HasPrefix(path.Base(name), "ssh_host_") && !strings.HasSuffix(name, ".pub") {
				e.Mode, e.Class = 0o600, imaging.ClassNode
			}
			e.Size = int64(len(content))
			if len(content) > 0 {
				ref := store.Ref{Audience: e.Class.Audience(), ID: store.Sum([]byte(content))}
				if m.chunks[ref] == nil {
					m.refs = append(m.refs, ref)
				}
				m.chunks[ref] = []byte(content)
				e.Chunks = []store.Chunk{{ID: ref.ID, Size: uint32(len(content))}}
			}
		}
		list = append(list, e)
	}
	add("./", "")
	for name, content := range files {
		add(name, content)
	}
	slices.SortFunc(list, func(a, b imaging.Entry) int { return imaging.ComparePath(a.Path, b.Path) })
	m.List = entriesOf(list...)
	m.Entries, m.Bytes = int64(m.List.Len()), m.List.Bytes()
	return m
}

// entriesOf makes entries that can be.
func entriesOf(list ...imaging.Entry) imaging.Entries {
	entries, err := imaging.NewEntries(list...)
	if err != nil {
		panic(err)
	}
	return entries
}

// debianFiles is a tree that has what an install looks for.
func debianFiles() map[string]string {
	return map[string]string{
		"boot/vmlinuz-6.1.0-1-amd64":           "kernel",
		"boot/initrd.img-6.1.0-1-amd64":        "initramfs",
		"boot/grub/":                           "",
		"dev/":                                 "",
		"etc/debian_version":                   "12.7\n",
		"etc/fstab":                            "",
		"etc/hostname":                         "head\n",
		"etc/hosts":                            "127.0.0.1 localhost\n127.0.1.1 head.cluster head\n10.77.0.1 head.cluster head\n",
		"etc/machine-id":                       "0123456789abcdef0123456789abcdef\n",
		"etc/network/interfaces":               "auto ens3\niface ens3 inet static\n address 10.77.0.1/24\n",
		"etc/ssh/sshd_config":                  "UsePAM yes\n",
		"etc/ssh/ssh_host_ed25519_key":         "the head's\n",
		"etc/ssh/ssh_host_ed25519_key.pub":     "the head's\n",
		"etc/shadow":                           "root:$y$hash:19000:0:99999:7:::\n",
		"etc/systemd/system/":                  "",
		"home/user/notes":                      "text",
		"proc/":                                "",
		"run/":                                 "",
		"sys/":                                 "",
		"sbin":                                 "-> usr/sbin",
		"usr/lib/grub/x86_64-efi/modinfo.sh":   "#",
		"usr/sbin/grub-install":                "#!",
		"usr/sbin/grub-mkconfig":               "#!",
		"usr/sbin/mkfs.ext4":                   "-> mke2fs",
		"usr/sbin/mke2fs":                      "#! mke2fs",
		"usr/sbin/mkfs.fat":                    "#! mkfs.fat",
		"usr/sbin/mkfs.vfat":                   "-> mkfs.fat",
		"usr/sbin/mkfs.xfs":                    "#! finobt\x00reflink\x00bigtime\x00",
		"usr/sbin/mkswap":                      "#! mkswap",
		"var/lib/dbus/machine-id":              "-> /etc/machine-id",
		"var/lib/dhcp/dhclient.leases":         "lease {}",
		"var/lib/systemd/random-seed":          "seed",
		"var/log/syslog":                       "words",
		"etc/network/interfaces.d/eth1":        "iface eth1 inet dhcp\n",
		"etc/default/grub":                     "GRUB_TIMEOUT=0\n",
		"usr/lib/modules/6.1.0-1-amd64/kernel": "module",
	}
}

func mustPlan(t *testing.T, tg Target, hw Hardware) *Plan {
	t.Helper()
	p, err := MakePlan(tg, hw)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// needRoot stops a test that makes owners, devices and mounts.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes owners, devices and mounts: run it as root")
	}
}
