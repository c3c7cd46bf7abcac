package bench

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"doppel/lab"
)

// headPackages make a head of some 60,000 files: what a cluster's head has, and
// compilers and libraries.
var headPackages = []string{
	"linux-image-cloud-amd64", "linux-headers-amd64", "openssh-server", "systemd-sysv", "build-essential", "gfortran", "git", "cmake",
	"python3-numpy", "python3-scipy", "emacs-nox", "libopenmpi-dev", "openmpi-bin", "vim", "nfs-kernel-server", "slurm-client", "slurmd",
	"munge", "environment-modules", "rsync", "chrony", "man-db", "locales", "initramfs-tools", "grub-pc-bin",
}

// upgradePackages come with the upgrade.
const upgradePackages = "nginx-light tmux strace htop jq gdb"

// sizes of the tree's large files, in bytes.
type sizes struct{ database, log, appended, disk int64 }

var (
	fullSizes  = sizes{500_000_000, 200_000_000, 2_000_000, 6 << 30}
	smallSizes = sizes{4_000_000, 2_000_000, 20_000, 256 << 20}
)

func (b *bench) sizes() sizes {
	if b.o.Small {
		return smallSizes
	}
	return fullSizes
}

// makeTrees makes the head's file system, and that after an upgrade: two images
// with the same inodes, of which one at a time is mounted. They are kept in the
// work directory for the next time.
func (b *bench) makeTrees(ctx context.Context) error {
	before, after := b.image(1), b.image(2)
	if _, err := os.Stat(after); err == nil {
		return nil
	}
	b.say("making the head's tree")
	if err := b.makeImage(ctx, before, func() error { return b.fillTree(ctx) }); err != nil {
		return err
	}
	b.say("making the upgraded tree")
	partial := after + ".new"
	if err := b.must(ctx, "cp --sparse=always "+quote(before)+" "+quote(partial)); err != nil {
		return err
	}
	if err := b.changeImage(ctx, partial, func() error { return b.upgradeTree(ctx) }); err != nil {
		return err
	}
	return os.Rename(partial, after)
}

func (b *bench) image(n int) string { return filepath.Join(b.work, fmt.Sprintf("head%d.img", n)) }

func (b *bench) makeImage(ctx context.Context, path string, fill func() error) error {
	err := b.must(ctx, fmt.Sprintf("rm -f %s; truncate -s %d %s; mkfs.ext4 -q -F -E lazy_itable_init=0 %s", quote(path), b.sizes().disk, quote(path), quote(path)))
	if err != nil {
		return err
	}
	return b.changeImage(ctx, path, fill)
}

// changeImage mounts an image for as long as change works.
func (b *bench) changeImage(ctx context.Context, path string, change func() error) error {
	if err := b.mountImage(ctx, path); err != nil {
		return err
	}
	err := change()
	// Whoever makes a mount namespace meanwhile keeps the file system mounted
	// in it, so it is not umount that sees to it that all is in the image.
	if uerr := b.must(context.WithoutCancel(ctx), fmt.Sprintf("sync -f %s; umount %s", quote(b.live), quote(b.live))); err == nil {
		err = uerr
	}
	return err
}

func (b *bench) mountImage(ctx context.Context, path string) error {
	return b.must(ctx, fmt.Sprintf("mkdir -p %s; ! mountpoint -q %s || umount %s; mount -o loop,noatime %s %s", quote(b.live), quote(b.live), quote(b.live), quote(path), quote(b.live)))
}

// useTree mounts the tree before (1) or after (2) the upgrade, and reads it all
// once, so that all find it in the page cache.
func (b *bench) useTree(ctx context.Context, n int) error {
	if b.mounted == n {
		return nil
	}
	if err := b.mountImage(ctx, b.image(n)); err != nil {
		return err
	}
	b.mounted = n
	return b.must(ctx, "tar -C "+quote(b.tree)+" -cf - . | cat >/dev/null")
}

// useCopy mounts a copy of the tree before the upgrade, which is to be changed, and
// reads it all once.
func (b *bench) useCopy(ctx context.Context) error {
	b.mounted = 0
	path := b.dir("changing.img")
	if err := b.must(ctx, fmt.Sprintf("! mountpoint -q %[1]s || umount %[1]s; cp --sparse=always %[2]s %[3]s", quote(b.live), quote(b.image(1)), quote(path))); err != nil {
		return err
	}
	if err := b.mountImage(ctx, path); err != nil {
		return err
	}
	return b.must(ctx, "tar -C "+quote(b.tree)+" -cf - . | cat >/dev/null")
}

func (b *bench) fillTree(ctx context.Context) error {
	var err error
	if b.o.Small {
		err = b.fillSmall()
	} else {
		var debian string
		debian, err = lab.DebianTreeOf(ctx, "important", headPackages, b.say)
		if err == nil {
			err = b.must(ctx, "cp -a "+quote(debian)+" "+quote(b.tree))
		}
	}
	if err != nil {
		return err
	}
	if err := writeFile(b.at("srv/data/db.bin"), b.sizes().database, database()); err != nil {
		return err
	}
	if err := writeFile(b.at("srv/log/app.log"), b.sizes().log, logLines(1)); err != nil {
		return err
	}
	return b.must(ctx, fmt.Sprintf(`cd %s
truncate -s 64M var/lib/sparse.img
head -c 4M srv/data/db.bin | dd of=var/lib/sparse.img bs=1M seek=30 conv=notrunc status=none
setfattr -n user.note -v test etc/hostname
setfacl -m u:1000:r etc/hostname
mkdir -p usr/local/bin
for i in 1 2 3 4 5; do ln srv/data/db.bin usr/local/bin/link$i; done
# What an image of a machine that starts by GRUB has, and is not run here.
mkdir -p usr/sbin etc
[ -e usr/sbin/grub-install ] || printf '#!/bin/sh\n' >usr/sbin/grub-install`, quote(b.tree)))
}

func (b *bench) at(path string) string { return filepath.Join(b.tree, path) }

// fillSmall makes some 2,000 files without any packages.
func (b *bench) fillSmall() error {
	lines := bufio.NewReader(logLines(2))
	for i := range 2000 {
		if err := writeFile(b.at(fmt.Sprintf("usr/lib/d%02d/file%04d", i%40, i)), int64(i*7%9000), lines); err != nil {
			return err
		}
	}
	// These are what an image of a machine that starts has.
	for _, name := range []string{"etc/hostname", "var/lib/state", "etc/os-release", "boot/vmlinuz-6.1.0-1-amd64", "boot/initrd.img-6.1.0-1-amd64", "usr/lib/modules/6.1.0-1-amd64/modules.dep",
		"usr/sbin/grub-mkconfig", "usr/lib/grub/i386-pc/kernel.img", "usr/lib/grub/i386-pc/moddep.lst", "usr/lib/grub/i386-pc/normal.mod", "usr/lib/grub/i386-pc/boot.img"} {
		if err := writeFile(b.at(name), 10, lines); err != nil {
			return err
		}
	}
	return nil
}

// upgradeTree installs packages, edits configuration, appends to the log and
// changes eight bytes in the middle of the database.
func (b *bench) upgradeTree(ctx context.Context) error {
	if b.o.Small {
		for i := range 60 {
			if err := writeFile(b.at(fmt.Sprintf("usr/lib/d%02d/file%04d", i%40, 37*i)), 5000, logLines(uint64(100+i))); err != nil {
				return err
			}
		}
	} else if err := b.installPackages(ctx); err != nil {
		return err
	}
	f, err := os.OpenFile(b.at("srv/log/app.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, logLines(3), b.sizes().appended)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return b.must(ctx, fmt.Sprintf("printf CHANGED! | dd of=%s bs=1 seek=%d conv=notrunc status=none", quote(b.at("srv/data/db.bin")), b.sizes().database/2))
}

func (b *bench) installPackages(ctx context.Context) error {
	return b.must(ctx, fmt.Sprintf(`R=%s
for f in etc/resolv.conf etc/hosts; do [ ! -e $R/$f ] || mv $R/$f $R/$f.saved; cp /$f $R/$f; done
printf '#!/bin/sh\nexit 101\n' >$R/usr/sbin/policy-rc.d; chmod 755 $R/usr/sbin/policy-rc.d
mount -t proc proc $R/proc
status=0
DEBIAN_FRONTEND=noninteractive chroot $R sh -c 'apt-get update -q && apt-get install -y --no-install-recommends %s && apt-get clean && rm -rf /var/lib/apt/lists/*' || status=$?
umount $R/proc
rm $R/usr/sbin/policy-rc.d
for f in etc/resolv.conf etc/hosts; do rm $R/$f; [ ! -e $R/$f.saved ] || mv $R/$f.saved $R/$f; done
find $R/etc -type f -name '*.conf' -size -40k | sort | head -20 | while read -r f; do echo '# edited' >>"$f"; done
exit $status`, quote(b.tree), upgradePackages))
}

func writeFile(path string, size int64, from io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = io.CopyN(w, from, size)
	if ferr := w.Flush(); err == nil {
		err = ferr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// database is endless text that compresses to three quarters and repeats
// nothing, as a database of encoded values does.
func database() io.Reader {
	block, err := aes.NewCipher([]byte("a fixed key 0123"))
	if err != nil {
		panic(err) // the key is as long as it must be
	}
	random := cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, aes.BlockSize)), R: zeros{}}
	plain := make([]byte, 90)
	return &generated{next: func(b []byte, _ int) []byte {
		_, _ = io.ReadFull(random, plain) // never fails
		return append(base64.StdEncoding.AppendEncode(b, plain), '\n')
	}}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// logLines are endless lines of a log.
func logLines(seed uint64) io.Reader {
	r := rand.New(rand.NewPCG(seed, 0))
	says := []string{"accepted", "closed", "timeout", "retry", "job started", "job done", "checkpoint written", "lease renewed"}
	return &generated{next: func(b []byte, n int) []byte {
		return fmt.Appendf(b, "%d node%03d slurmd[%d]: %s id=%08x user=u%04d addr=10.1.%d.%d bytes=%d\n", 1_700_000_000+n, 1+r.IntN(512),
			400+r.IntN(31600), says[r.IntN(len(says))], r.Uint32(), 1+r.IntN(3000), r.IntN(256), r.IntN(256), r.IntN(1<<24))
	}}
}

// generated reads what next appends, piece by piece.
type generated struct {
	next func(b []byte, n int) []byte
	n    int
	buf  []byte
	left []byte
}

func (g *generated) Read(b []byte) (int, error) {
	if len(g.left) == 0 {
		g.buf = g.next(g.buf[:0], g.n)
		g.left = g.buf
		g.n++
	}
	n := copy(b, g.left)
	g.left = g.left[n:]
	return n, nil
}
