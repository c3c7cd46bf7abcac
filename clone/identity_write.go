package clone

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"strings"

	"doppel/imaging"
)

// WriteIdentity makes the tree at dir, which holds the image, the plan's node.
// It writes what the table of identity files lists, keeps what else those
// files say, and follows no link out of the tree. Doing it again comes to the
// same, but for keys that are generated.
func WriteIdentity(dir string, plan *Plan, image *imaging.Manifest) error {
	tree, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open the node's tree: %w", err)
	}
	defer tree.Close()
	w := &identity{tree: tree, plan: plan, image: image}
	for _, step := range []func() error{
		w.names, w.fstab, w.machineID, w.network, w.hostKeys, w.passwords, w.seeds, w.initiators, w.leases,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// identity writes one node's identity beneath a tree.
type identity struct {
	tree  *os.Root
	plan  *Plan
	image *imaging.Manifest
}

// fqdn is the node's name with its domain, when it has one.
func (p *Plan) fqdn() string {
	if p.Domain == "" {
		return p.Node
	}
	return p.Node + "." + p.Domain
}

func (w *identity) names() error {
	if err := w.write("etc/hostname", []byte(w.plan.Node+"\n"), 0o644); err != nil {
		return err
	}
	if w.exists("etc/mailname") {
		if err := w.write("etc/mailname", []byte(w.plan.fqdn()+"\n"), 0o644); err != nil {
			return err
		}
	}
	return w.hosts()
}

func (w *identity) hosts() error {
	hosts, err := w.read("etc/hosts")
	if err != nil {
		return err
	}
	return w.write("etc/hosts", rewriteHosts(hosts, w.image.Facts.Hostname, w.plan), 0o644)
}

// rewriteHosts takes the head's own name off the loopback addresses, where
// Debian puts it (127.0.1.1), and gives the node's own address its name. All
// other lines, those of the cluster among them, stay as they are.
func rewriteHosts(hosts []byte, head string, plan *Plan) []byte {
	var out strings.Builder
	own := plan.Addr.Addr()
	head, _, _ = strings.Cut(head, ".")
	for line := range strings.Lines(string(hosts)) {
		text, remark, hasRemark := strings.Cut(strings.TrimRight(line, "\r\n"), "#")
		f := strings.Fields(text)
		if len(f) == 0 {
			out.WriteString(strings.TrimRight(line, "\n") + "\n")
			continue
		}
		addr, err := netip.ParseAddr(f[0])
		if err == nil && addr == own {
			continue
		}
		names := make([]string, 0, len(f))
		for _, n := range f[1:] {
			short, _, _ := strings.Cut(n, ".")
			if short == plan.Node || err == nil && addr.IsLoopback() && head != "" && head != "localhost" && short == head {
				continue
			}
			names = append(names, n)
		}
		switch {
		case len(names) == len(f)-1:
			out.WriteString(strings.TrimRight(line, "\n") + "\n")
		case len(names) > 0:
			out.WriteString(f[0] + "\t" + strings.Join(names, " "))
			if hasRemark {
				out.WriteString(" #" + remark)
			}
			out.WriteByte('\n')
		}
	}
	if len(hosts) == 0 {
		out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	names := plan.Node
	if plan.Domain != "" {
		names = plan.fqdn() + " " + plan.Node
	}
	fmt.Fprintf(&out, "%s\t%s\n", own, names)
	return []byte(out.String())
}

// machineID writes a machine-id(5) that follows from the plan, so that an
// install that is continued comes to the same.
func (w *identity) machineID() error {
	sum := sha256.Sum256([]byte("doppel machine-id\x00" + w.plan.ID))
	sum[6] = sum[6]&0x0f | 0x40
	sum[8] = sum[8]&0x3f | 0x80
	id := []byte(hex.EncodeToString(sum[:16]) + "\n")
	if err := w.write("etc/machine-id", id, 0o444); err != nil {
		return err
	}
	// D-Bus has its own copy, or a link to the one above.
	fi, err := w.tree.Lstat("var/lib/dbus/machine-id")
	if errors.Is(err, fs.ErrNotExist) || err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at D-Bus's machine id: %w", err)
	}
	return w.write("var/lib/dbus/machine-id", id, 0o644)
}

// seeds replaces the random seed: two machines that start from one seed draw
// the same numbers until they have gathered enough of their own.
func (w *identity) seeds() error {
	for _, s := range []struct {
		dir, name string
		always    bool
	}{
		{"var/lib/systemd", "random-seed", true},
		{"var/lib/urandom", "random-seed", false},
		{"boot/efi/loader", "random-seed", false},
	} {
		name := path.Join(s.dir, s.name)
		if !w.exists(s.dir) || !s.always && !w.exists(name) {
			continue
		}
		if err := w.write(name, randomBytes(512), 0o600); err != nil {
			return err
		}
	}
	// systemd makes a new one when it is gone.
	return w.remove("var/lib/systemd/credential.secret")
}

// initiators gives the node storage names of its own; two machines with one
// iSCSI or NVMe name throw each other off their volumes.
func (w *identity) initiators() error {
	if w.plan.Role == roleHead {
		// A standby that takes over takes the volumes over, too.
		return nil
	}
	if w.inImage("etc/iscsi/initiatorname.iscsi") {
		name := fmt.Sprintf("InitiatorName=iqn.1993-08.org.debian:01:%s\n", hex.EncodeToString(randomBytes(6)))
		if err := w.write("etc/iscsi/initiatorname.iscsi", []byte(name), 0o600); err != nil {
			return err
		}
	}
	id := deriveUUID(w.plan.ID, "nvme host")
	if w.inImage("etc/nvme/hostid") {
		if err := w.write("etc/nvme/hostid", []byte(id+"\n"), 0o644); err != nil {
			return err
		}
	}
	if w.inImage("etc/nvme/hostnqn") {
		return w.write("etc/nvme/hostnqn", []byte("nqn.2014-08.org.nvmexpress:uuid:"+id+"\n"), 0o644)
	}
	return nil
}

// leases removes what the head remembers of the DHCP servers it met, and the
// client ids it shows them.
func (w *identity) leases() error {
	for _, dir := range []string{"var/lib/dhcp", "var/lib/dhcpcd", "var/lib/dhcpcd5", "var/lib/NetworkManager"} {
		if err := w.removeFiles(dir, func(string) bool { return true }); err != nil {
			return err
		}
	}
	return w.remove("etc/dhcpcd.duid")
}

// inImage tells whether the image has the path, readable for this node or not.
func (w *identity) inImage(name string) bool {
	_, ok := w.image.List.Find(name)
	return ok
}

func (w *identity) exists(name string) bool {
	_, err := w.tree.Lstat(name)
	return err == nil
}

// read reads a file of the tree; nil when there is none.
func (w *identity) read(name string) ([]byte, error) {
	b, err := w.tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the node: %w", name, err)
	}
	return b, nil
}

func (w *identity) remove(name string) error {
	if err := w.tree.RemoveAll(name); err != nil {
		return fmt.Errorf("remove %s of the node: %w", name, err)
	}
	return nil
}

// removeFiles removes what is directly in dir and meant by the name.
func (w *identity) removeFiles(dir string, meant func(name string) bool) error {
	fi, err := w.tree.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s of the node: %w", dir, err)
	}
	f, err := w.tree.Open(dir)
	if err != nil {
		return fmt.Errorf("list %s of the node: %w", dir, err)
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return fmt.Errorf("list %s of the node: %w", dir, err)
	}
	for _, n := range names {
		if !meant(n) {
			continue
		}
		if err := w.remove(path.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

func (w *identity) write(name string, content []byte, mode fs.FileMode) error {
	return writeBeneath(w.tree, name, content, mode)
}

// writeBeneath replaces a file of a tree as a whole. A regular file that is
// there keeps its mode and owner, but for what mode takes away from others; a
// link is replaced, never followed.
func writeBeneath(tree *os.Root, name string, content []byte, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s of the node: %w", name, err)
		}
	}()
	if err := mkdirBeneath(tree, path.Dir(name), 0o755); err != nil {
		return err
	}
	uid, gid := 0, 0
	if fi, err := tree.Lstat(name); err == nil && fi.Mode().IsRegular() {
		if mode&0o077 != 0 {
			mode = fi.Mode().Perm()
		}
		uid, gid = owner(fi)
	}
	temp := path.Join(path.Dir(name), ".doppel-"+hex.EncodeToString(randomBytes(6)))
	f, err := tree.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tree.Remove(temp))
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chown(uid, gid), f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return tree.Rename(temp, name)
}

// mkdirBeneath makes the directories that lead to dir, with a mode that the
// umask does not change.
func mkdirBeneath(tree *os.Root, dir string, mode fs.FileMode) error {
	if dir == "." {
		return nil
	}
	if fi, err := tree.Stat(dir); err == nil {
		if !fi.IsDir() {
			return fmt.Errorf("%s is not a directory", dir)
		}
		return nil
	}
	if err := mkdirBeneath(tree, path.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := tree.Mkdir(dir, mode); err != nil {
		return err
	}
	return tree.Chmod(dir, mode)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}
