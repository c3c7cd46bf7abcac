package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"doppel/clone"
)

const (
	nodeDir = "/etc/doppel/node"
	// upEvery is how often a node says again that it is up, once it was heard.
	upEvery = 5 * time.Minute
)

// runNode is doppel-agent node, the service on an installed node: it tells the
// head that the node runs from its own disk, and does what the head asks for.
func runNode(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("node takes no arguments, got %q", args)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	n, err := openNode(nodeDir, func(format string, args ...any) { log.Info(fmt.Sprintf(format, args...)) })
	if err != nil {
		return err
	}
	if err := notify("READY=1"); err != nil {
		log.Warn("systemd was not told", "err", err)
	}
	var both sync.WaitGroup
	both.Go(func() { n.stayUp(ctx, log) })
	both.Go(func() { n.obey(ctx, log) })
	both.Wait()
	return nil
}

// node is an installed node with its credentials.
type node struct {
	dir     string // of what this node knows of itself
	root    string // of its tree
	work    string // a directory in memory
	self    string // this program's file
	config  clone.NodeConfig
	head    *head
	every   time.Duration
	rest    func(context.Context, time.Duration) // before it asks again when it was refused
	up      func(ctx context.Context) (clone.Up, error)
	machine clone.Machine
	disk    func() (string, error)  // that it runs from
	become  func(path string) error // replaces this process by that program, as the same service
}

func openNode(dir string, say func(string, ...any)) (*node, error) {
	n := &node{
		dir: dir, root: "/", work: workDir, self: "/proc/self/exe", every: upEvery, rest: sleep, up: describeUp, machine: clone.NewLinux(),
		disk:   func() (string, error) { return rootDisk("/", sysfs("/sys")) },
		become: becomeService,
	}
	text, err := os.ReadFile(filepath.Join(dir, "node.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: this machine was not installed by doppel", err)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &n.config); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, "node.json"), err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	if n.head, err = newHead(n.config.Server, ca, time.Now, say); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
	if err != nil {
		return nil, fmt.Errorf("reading this node's credentials: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("reading this node's credentials: %s is not an ECDSA key", filepath.Join(dir, "node.key"))
	}
	return n, n.head.wear(pair.Certificate[0], key)
}

// tables is where the tables of packs are kept between updates; empty: nowhere, as
// there is no /var/lib, and one that appeared would be in no image.
func (n *node) tables() string {
	dir := filepath.Join(n.root, clone.TablesPath)
	lib := filepath.Dir(filepath.Dir(dir))
	if info, err := os.Lstat(lib); err != nil || !info.IsDir() {
		return ""
	}
	return dir
}

// becomeService goes on as another agent: the same process, for systemd the same
// service, which says once more that it is ready.
func becomeService(path string) error { return unix.Exec(path, []string{path, "node"}, os.Environ()) }

// stayUp reports until ctx is done. A head that refuses may change its mind
// (the node may be taken back into its inventory), so that is no end either.
func (n *node) stayUp(ctx context.Context, log *slog.Logger) {
	var last string
	for {
		err := n.reportUp(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil && last != "ok":
			log.Info("the head knows that this node is up", "node", n.config.Node, "head", n.config.Server)
			last = "ok"
		case err != nil && last != err.Error():
			log.Error("the head does not take this node's word", "err", err)
			last = err.Error()
		}
		sleep(ctx, n.every)
	}
}

func (n *node) reportUp(ctx context.Context) error {
	up, err := n.up(ctx)
	if err != nil {
		return err
	}
	_, err = n.head.ask(ctx, "/v1/up", up, nil)
	return err
}

// describeUp says what runs here.
func describeUp(ctx context.Context) (clone.Up, error) {
	host, err := os.Hostname()
	if err != nil {
		return clone.Up{}, fmt.Errorf("asking for the host name: %w", err)
	}
	// A host name may be set with its domain; nodes are known without.
	host, _, _ = strings.Cut(host, ".")
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return clone.Up{}, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return clone.Up{}, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	up := clone.Up{Hostname: host, BootID: strings.TrimSpace(string(boot)), Kernel: unix.ByteSliceToString(u.Release[:])}
	disk, err := rootDisk("/", sysfs("/sys"))
	if err != nil {
		return clone.Up{}, err
	}
	up.DiskGUID = gptGUID(ctx, clone.NewLinux())(disk)
	return up, nil
}

// rootDisk finds the disk that a directory's file system is on, also beneath
// device mapper and RAID, where it is the first of several.
func rootDisk(dir string, sys sysfs) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("looking for the disk of %s: %w", dir, err)
	}
	dev, err := filepath.EvalSymlinks(sys.path("dev/block", fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))))
	if err != nil {
		return "", fmt.Errorf("looking for the disk of %s: %w", dir, err)
	}
	// Ten layers are more than anybody builds.
	for range 10 {
		if lower, _ := filepath.Glob(filepath.Join(dev, "slaves", "*")); len(lower) > 0 {
			if dev, err = filepath.EvalSymlinks(lower[0]); err != nil {
				return "", fmt.Errorf("looking for the disk of %s: %w", dir, err)
			}
			continue
		}
		if _, err := os.Stat(filepath.Join(dev, "partition")); err == nil {
			dev = filepath.Dir(dev)
			continue
		}
		return "/dev/" + strings.ReplaceAll(filepath.Base(dev), "!", "/"), nil
	}
	return "", fmt.Errorf("looking for the disk of %s: %s is built of too many layers", dir, dev)
}

// notify tells systemd, if it asked (sd_notify(3)).
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if bytes.HasPrefix([]byte(name), []byte("@")) {
		name = "\x00" + name[1:] // the abstract namespace
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}
