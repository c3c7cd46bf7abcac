package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
)

// runEnlist makes the machine it runs on a node, as doppel node enlist asks on
// its standard input, or undoes that. With --unlink it first removes its own
// binary and the directory that was made for it.
func runEnlist(ctx context.Context, args []string) error {
	unlink := false
	for _, a := range args {
		if a != "--unlink" {
			return fmt.Errorf("enlist: no option %q", a)
		}
		unlink = true
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("enlist: reading the agent itself: %w", err)
	}
	if unlink {
		if err := removeSelf(); err != nil {
			return fmt.Errorf("enlist: remove the agent's own file: %w", err)
		}
	}
	e := &enlister{root: "/", self: self, sys: "/sys"}
	return e.serve(ctx, os.Stdin, os.Stdout)
}

// enlister is one enlistment at work.
type enlister struct {
	root string
	self []byte // the agent's binary
	sys  sysfs
	key  *ecdsa.PrivateKey
}

// maxEnlistment bounds what is read of the orders.
const maxEnlistment = 4 << 20

// serve says what it found, carries out the orders that follow, if any, and says
// what came of it.
func (e *enlister) serve(ctx context.Context, in io.Reader, out io.Writer) error {
	found, err := e.find(ctx)
	if err != nil {
		return json.NewEncoder(out).Encode(clone.Done{Failed: err.Error()})
	}
	if err := json.NewEncoder(out).Encode(found); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(in, maxEnlistment)).ReadBytes('\n')
	if errors.Is(err, io.EOF) && len(line) == 0 {
		return nil // nothing is wanted
	}
	var orders clone.Enlistment
	if err == nil {
		err = json.Unmarshal(line, &orders)
	}
	var done clone.Done
	if err == nil {
		done, err = e.carryOut(ctx, orders, found.Systemd)
	}
	if err != nil {
		done.Failed = err.Error()
	}
	return json.NewEncoder(out).Encode(done)
}

func (e *enlister) carryOut(ctx context.Context, o clone.Enlistment, systemd bool) (done clone.Done, err error) {
	switch {
	case o.Remove:
		if systemd {
			// A unit that is not there is none that runs.
			_ = systemctl(ctx, "disable", "--now", unitName)
		}
		if done.Left, err = clone.Delist(e.root); err != nil {
			return done, err
		}
		done.Started = systemd
		if systemd {
			err = systemctl(ctx, "daemon-reload")
		}
		return done, err
	case o.Plan != nil:
		der, err := x509.MarshalPKCS8PrivateKey(e.key)
		if err != nil {
			return done, err
		}
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if done.Wrote, err = clone.Enlist(e.root, e.self, key, o); err != nil {
			return done, err
		}
		if !systemd {
			return done, nil
		}
		if err := errors.Join(systemctl(ctx, "daemon-reload"), systemctl(ctx, "restart", unitName)); err != nil {
			return done, err
		}
		done.Started = true
	}
	return done, nil
}

const unitName = "doppel-agent.service"

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// find says what this machine is.
func (e *enlister) find(ctx context.Context) (f clone.Found, err error) {
	if os.Geteuid() != 0 {
		return f, errors.New("only root can make a machine a node")
	}
	facts, layout, err := imaging.DescribeLocal(ctx, e.root)
	if err != nil {
		return f, err
	}
	f.Hostname, f.System, f.Layout, f.Note, f.Root = facts.Hostname, facts.OSRelease["PRETTY_NAME"], layout, facts.LayoutNote, rootArgument(facts.Cmdline)
	if f.Hardware, err = e.sys.hardware(gptGUID(ctx, clone.NewLinux())); err != nil {
		return f, err
	}
	if f.NICs, err = nics(); err != nil {
		return f, err
	}
	if f.Trees, err = foundTrees(e.root); err != nil {
		return f, err
	}
	if e.key, f.CSR, err = newKey(); err != nil {
		return f, err
	}
	_, err = os.Stat(filepath.Join(e.root, "run/systemd/system"))
	f.Systemd = err == nil && e.root == "/"
	return f, e.already(&f)
}

// already says whose node this machine is, and whose agent lies there.
func (e *enlister) already(f *clone.Found) error {
	dir := filepath.Join(e.root, nodeDir)
	text, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		config, err := clone.DecodeNodeConfig(text)
		if err != nil {
			return err
		}
		f.Node = &config
		if f.CA, err = os.ReadFile(filepath.Join(dir, "ca.crt")); err != nil {
			return err
		}
	}
	there, err := os.ReadFile(filepath.Join(e.root, "usr/lib/doppel/doppel-agent"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if have, own := sha256.Sum256(there), sha256.Sum256(e.self); have != own {
		f.Agent = hex.EncodeToString(have[:])
	}
	return nil
}

// rootArgument is what the kernel was told of the root file system.
func rootArgument(cmdline string) string {
	for _, word := range strings.Fields(cmdline) {
		if v, ok := strings.CutPrefix(word, "root="); ok {
			return v
		}
	}
	return ""
}

// nics are the interfaces that have an IPv4 address and a MAC.
func nics() ([]clone.NIC, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []clone.NIC
	for _, i := range list {
		if len(i.HardwareAddr) != 6 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		n := clone.NIC{Name: i.Name, MAC: i.HardwareAddr.String()}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				n.Addrs = append(n.Addrs, p)
			}
		}
		if len(n.Addrs) > 0 {
			out = append(out, n)
		}
	}
	return out, nil
}

// onDisks are file systems that a system is kept on.
var onDisks = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "f2fs", "jfs", "bcachefs", "zfs"}

// foundTrees are the file systems of disks that are mounted at and below root,
// which is where a capture goes too.
func foundTrees(root string) ([]clone.FoundTree, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	byUUID := uuids()
	var out []clone.FoundTree
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 2 || !slices.Contains(onDisks, g[0]) || f[3] != "/" && g[0] != "btrfs" {
			continue
		}
		dir, ok := mountBelow(root, f[4])
		if !ok {
			continue
		}
		tree := clone.FoundTree{Mount: dir, Type: g[0]}
		var st unix.Stat_t
		if unix.Stat(g[1], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			if tree.UUID = byUUID[st.Rdev]; tree.UUID == "" {
				tree.UUID = probeUUID(g[1])
			}
		}
		// What is mounted over another is what is seen.
		out = slices.DeleteFunc(out, func(t clone.FoundTree) bool { return t.Mount == dir })
		out = append(out, tree)
	}
	return out, nil
}

// mountBelow is where a mount point is, seen from root. Blanks in it are
// escaped (proc_pid_mountinfo(5)), and no system is kept at such.
func mountBelow(root, at string) (string, bool) {
	if strings.Contains(at, `\`) {
		return "", false
	}
	if root == "/" {
		return at, true
	}
	if at == root {
		return "/", true
	}
	below, ok := strings.CutPrefix(at, root+"/")
	return "/" + below, ok
}

// uuids are those that udev has found, by device.
func uuids() map[uint64]string {
	out := map[uint64]string{}
	links, _ := filepath.Glob("/dev/disk/by-uuid/*")
	for _, l := range links {
		var st unix.Stat_t
		if unix.Stat(l, &st) == nil {
			out[st.Rdev] = filepath.Base(l)
		}
	}
	return out
}

func probeUUID(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close() // it was only read
	if fs, _, err := imaging.ProbeFileSystem(f); err == nil && fs != nil {
		return fs.UUID
	}
	return ""
}
