package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// CacheDir is where trees and answers are kept between runs: $DOPPEL_CACHE,
// or doppel below the user's cache directory.
func CacheDir() string {
	if d := os.Getenv("DOPPEL_CACHE"); d != "" {
		return d
	}
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "doppel")
	}
	return filepath.Join(os.TempDir(), "doppel-cache")
}

// packages make the Debian head: what starts a machine under either firmware,
// and a few hundred MB of what is found on heads.
var packages = []string{
	"systemd-sysv", "udev", "dbus", "libpam-systemd", "kmod", "procps", "sudo",
	"linux-image-cloud-amd64", "initramfs-tools", "zstd",
	"grub-pc-bin", "grub-efi-amd64-bin", "grub2-common", "dosfstools", "e2fsprogs", "xfsprogs", "fdisk",
	"openssh-server", "ifupdown", "iproute2", "iputils-ping",
	"git", "gcc", "make", "libc6-dev", "perl", "python3", "rsync", "curl", "less", "man-db", "vim-tiny", "munge", "chrony",
}

// DebianTree makes a Debian 12 tree with what a head needs, or finds it in the
// cache, and returns its path. The tree is shared: copy it before changing it.
func DebianTree(ctx context.Context, log func(string)) (string, error) {
	return DebianTreeOf(ctx, "minbase", packages, log)
}

// DebianTreeOf is DebianTree with another variant of mmdebstrap(1) and other
// packages.
func DebianTreeOf(ctx context.Context, variant string, packages []string, log func(string)) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(packages, ",")))
	dir := filepath.Join(CacheDir(), "debian-12-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(CacheDir(), 0o755); err != nil {
		return "", err
	}
	// One maker at a time; the others find the tree when they get the lock.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	main, err := aptSource(ctx, "bookworm")
	if err != nil {
		return "", err
	}
	sources := []string{"deb " + main + " bookworm main"}
	if security, err := aptSource(ctx, "bookworm-security"); err == nil {
		sources = append(sources, "deb "+security+" bookworm-security main")
	}
	log("making a Debian tree with mmdebstrap; it is kept for the next time")
	tmp := dir + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	args := append([]string{
		"--variant=" + variant, "--mode=root", "--components=main", "--quiet",
		"--aptopt=APT::Install-Recommends \"false\"",
		"--include=" + strings.Join(packages, ","), "bookworm", tmp,
	}, sources...)
	if err := run(ctx, "mmdebstrap", args...); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

// aptSource is where this machine's own apt gets a release from.
func aptSource(ctx context.Context, release string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for its sources: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if uri, r, _ := strings.Cut(strings.TrimSpace(line), " "); r == release {
			return uri, nil
		}
	}
	return "", fmt.Errorf("apt has no source for %s: this needs Debian 12, and apt-get update run once", release)
}

// Head is a Debian head: a tree, and its sshd running in it on the switch.
type Head struct {
	*Host
	Tree string // its root, as this machine sees it
	Key  string // private key file whose owner may log in as root
}

//go:embed head.sh
var headScript string

// Head makes a head at addr from the cached Debian tree and starts it. Its
// /var/log/app.log grows and its /srv/state changes until the lab ends.
func (l *Lab) Head(ctx context.Context, name string, addr netip.Prefix, log func(string)) (*Head, error) {
	cached, err := DebianTree(ctx, log)
	if err != nil {
		return nil, err
	}
	host, err := l.Host(ctx, name, addr, nil)
	if err != nil {
		return nil, err
	}
	h := &Head{Host: host, Tree: filepath.Join(l.Dir, name), Key: filepath.Join(l.Dir, name+".id")}
	if err := run(ctx, "cp", "-a", "--reflink=auto", cached, h.Tree); err != nil {
		return nil, err
	}
	if err := run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", h.Key); err != nil {
		return nil, err
	}
	if err := h.furnish(); err != nil {
		return nil, err
	}
	return h, l.startHead(ctx, h)
}

// furnish gives the tree what a head has and a fresh Debian has not.
func (h *Head) furnish() error {
	pub, err := os.ReadFile(h.Key + ".pub")
	if err != nil {
		return err
	}
	files := []struct {
		name, text string
		mode       os.FileMode
	}{
		{"etc/hostname", h.Name + "\n", 0o644},
		{"etc/hosts", fmt.Sprintf("127.0.0.1\tlocalhost\n127.0.1.1\t%s.cluster %s\n%s\tfileserver\n", h.Name, h.Name, h.Addr.Addr()), 0o644},
		{"etc/network/interfaces", fmt.Sprintf("auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n\taddress %s\n", h.Addr), 0o644},
		// Its kernel speaks on the serial port, where the lab listens.
		{"etc/default/grub", "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200\"\nGRUB_TERMINAL=\"console serial\"\n", 0o644},
		{"etc/machine-id", "0123456789abcdef0123456789abcdef\n", 0o444},
		{"root/.ssh/authorized_keys", string(pub), 0o600},
		{"etc/ssl/private/head.key", "-----BEGIN PRIVATE KEY-----\nonly for heads\n-----END PRIVATE KEY-----\n", 0o600},
		{"srv/state", "0\n", 0o644},
		{"var/log/app.log", "", 0o644},
	}
	for _, f := range files {
		p := filepath.Join(h.Tree, f.name)
		dirMode := os.FileMode(0o755)
		if strings.HasPrefix(f.name, "root/.ssh/") {
			dirMode = 0o700
		}
		if err := os.MkdirAll(filepath.Dir(p), dirMode); err != nil {
			return err
		}
		if err := errors.Join(os.RemoveAll(p), os.WriteFile(p, []byte(f.text), f.mode)); err != nil {
			return err
		}
	}
	// A sparse database, a capability, an ACL, a hard link: as real heads have.
	db := filepath.Join(h.Tree, "srv/db.img")
	f, err := os.Create(db)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("doppel"), 32<<20)
	if err := errors.Join(err, f.Truncate(64<<20), f.Close()); err != nil {
		return err
	}
	return errors.Join(
		os.Link(filepath.Join(h.Tree, "usr/bin/git"), filepath.Join(h.Tree, "usr/local/bin/git")),
		run(context.Background(), "setfacl", "-m", "u:1000:r", filepath.Join(h.Tree, "etc/fstab")),
		run(context.Background(), "setcap", "cap_net_raw+ep", filepath.Join(h.Tree, "usr/bin/ping")),
		run(context.Background(), "setfattr", "-n", "user.origin", "-v", "lab", filepath.Join(h.Tree, "srv/state")),
	)
}

// startHead runs head.sh in namespaces of its own and waits until its sshd
// listens.
func (l *Lab) startHead(ctx context.Context, h *Head) error {
	cmd := h.Command(context.WithoutCancel(ctx), "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private",
		"sh", "-euc", headScript, "head.sh", h.Tree, h.Name)
	logFile, err := os.Create(filepath.Join(l.Dir, h.Name+".sshd"))
	if err != nil {
		return err
	}
	defer logFile.Close()
	ready, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd.Stdout, cmd.Stderr = w, logFile
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting the head: %w", err), w.Close())
	}
	w.Close()
	l.onClose(func() error {
		_ = cmd.Process.Kill() // unshare, whose child goes with it
		_ = cmd.Wait()
		return nil
	})
	// The script says one line when sshd listens; the end of the pipe before
	// that means that it failed.
	line := make([]byte, 64)
	if n, err := ready.Read(line); err != nil || n == 0 {
		text, _ := os.ReadFile(logFile.Name())
		return fmt.Errorf("the head's sshd did not start:\n%s", text)
	}
	return nil
}
