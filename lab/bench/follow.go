package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"doppel/lab"
)

// served is a doppel serve in a network of its own, with an sshd that reaches
// the head's tree.
type served struct {
	b      *bench
	lab    *lab.Lab
	host   *lab.Host
	rig    *lab.Rig
	daemon *lab.Daemon
}

// newServed makes the network and the configuration: a [[sync]] of the head's
// tree, with more keys. The daemon is not started.
func (b *bench) newServed(ctx context.Context, state, more string) (s *served, err error) {
	s = &served{b: b}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.lab, err = lab.New(ctx, b.dir("lab")); err != nil {
		return s, err
	}
	if s.host, err = s.lab.Host(ctx, "server", followServer, nil); err != nil {
		return s, err
	}
	s.rig = &lab.Rig{Lab: s.lab, Server: s.host, Bin: b.o.Bin, Out: io.Discard, State: state, Config: filepath.Join(s.lab.Dir, "doppel.toml"), Home: filepath.Join(b.work, "ssh")}
	// In the mount namespace of this process, where the head's tree changes.
	if err := b.serveSSH(ctx, s.host); err != nil {
		return s, err
	}
	if _, err := s.doppel(ctx, "init", "--interface", "eth0"); err != nil {
		return s, err
	}
	config, err := os.OpenFile(s.rig.Config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return s, err
	}
	_, err = fmt.Fprintf(config, "[[sync]]\nimage = \"head\"\nsource = \"root@127.0.0.1:%d\"\nroot = %q\nidentity = %q\nknown_hosts = %q\n%s\n",
		b.port, b.tree, filepath.Join(b.work, "ssh", "id"), filepath.Join(b.work, "ssh", "known"), more)
	return s, errors.Join(err, config.Close())
}

// doppel runs a command that talks to the daemon.
func (s *served) doppel(ctx context.Context, args ...string) (string, error) {
	out, err := s.rig.Doppel(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("doppel %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

func (s *served) close() error {
	if s.daemon != nil {
		s.daemon.Kill()
	}
	if s.lab == nil {
		return nil
	}
	return s.lab.Close()
}

// following is a daemon that keeps a standby equal to the head: a real doppel
// serve with a [[sync]], and a real doppel-agent node whose / is a copy of the
// head's tree. Both are in a network of their own, on this machine.
type following struct {
	*served
	standby *lab.Double
	disk    string // where the file system of both copies is mounted
	base    string // the daemon's state when the standby is equal to the first version
}

var (
	followServer  = netip.MustParsePrefix("10.77.0.2/24")
	followStandby = netip.MustParsePrefix("10.77.0.12/24")
)

// resync is a round of a sync, from when it is asked for until the standby has
// become the new version, or it is known that nothing has changed, beside one
// rsync from the head to a copy of its tree. Both count until all is on the
// disk, and begin with a copy that is equal to the tree before. The daemon's
// connection to the head stands, as it does when rounds are a minute apart or
// less; for the upgrade, the head is watched, too. What is a standby's own (clone.Identity) stays as it is; rsync's copy is
// given all.
func (b *bench) resync(ctx context.Context) (err error) {
	if !b.wants("sync-unchanged-time", "sync-upgrade-time", "sync-upgrade-sent") {
		return nil
	}
	if err := b.useTree(ctx, 1); err != nil {
		return err
	}
	if err := b.must(ctx, b.copied(b.dir("state.first"), b.dir("state"))); err != nil {
		return err
	}
	f := &following{disk: b.dir("copies"), base: b.dir("state.following")}
	// No round begins by itself while something is measured.
	f.served, err = b.newServed(ctx, b.dir("state"), fmt.Sprintf("nodes = [\"standby\"]\ninterval = \"1m\"\nwindows = [\"%s 03:00-03:01\"]", time.Now().AddDate(0, 0, 3).Format("Mon")))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.open(ctx); err != nil {
		return err
	}
	copied := filepath.Join(f.disk, "copy")
	own := side{name: "doppel", script: "doppel sync now, until the standby has become the version"}
	peer := side{name: "rsync", title: "rsync -aHAX --delete, synced", script: b.rsync(copied), synced: f.disk}
	equal := fmt.Sprintf("rsync -aHAX --delete %s/ %s/", quote(b.dir("copy.base")), quote(copied))
	for _, c := range []struct {
		say     string
		tree    int
		figures []figure
	}{
		{"a round of a sync, nothing changed", 1, []figure{{name: "sync-unchanged-time", unit: "s", goal: goal{figure: "ratio", most: 0.7}, of: seconds}}},
		{"a round of a sync after an upgrade, of a head that is watched", 2, []figure{
			{name: "sync-upgrade-time", unit: "s", goal: goal{figure: "ratio", most: 0.5}, of: seconds},
			{name: "sync-upgrade-sent", unit: "MB", goal: goal{figure: "ratio", most: 1}, of: func(_ side, own, peer measured) ([2]float64, error) {
				return [2]float64{own.wire, peer.wire}, nil
			}},
		}},
	} {
		if c.tree == 2 {
			if err := f.watch(); err != nil {
				return err
			}
			own.script = "doppel sync now, of a head that is watched, until the standby has become the version"
		}
		own.do = func(ctx context.Context) (measured, error) { return f.round(ctx, c.tree) }
		peer.do = func(ctx context.Context) (measured, error) {
			if err := errors.Join(b.must(ctx, equal), b.useTree(ctx, c.tree), b.must(ctx, "sync")); err != nil {
				return measured{}, err
			}
			return b.run(ctx, peer.script, peer.synced)
		}
		b.say(c.say)
		if err := b.compare(ctx, own, []side{peer}, c.figures...); err != nil {
			return err
		}
	}
	return nil
}

// open makes the copies and what the daemon begins with.
func (f *following) open(ctx context.Context) error {
	b := f.b
	image := b.dir("copies.img")
	err := b.must(ctx, fmt.Sprintf(`mkdir -p %[1]s %[5]s; ! mountpoint -q %[1]s || umount %[1]s; rm -f %[2]s; truncate -s %[3]d %[2]s
mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 %[2]s; mount -o loop,noatime %[2]s %[1]s; mkdir %[1]s/standby %[1]s/copy
%[4]s`, quote(f.disk), quote(image), 2*b.sizes().disk, b.rsync(b.dir("copy.base")), quote(b.dir("copy.base"))))
	if err != nil {
		return err
	}
	if f.daemon, err = f.rig.StartDaemon(ctx); err != nil {
		return err
	}
	f.standby = &lab.Double{Name: "standby", Role: "head", Addr: followStandby, MAC: "52:54:00:00:00:12", Runs: "head@1", UUID: "5f6bc4b2-7f3e-4b6d-9a52-0c8a6c3a7f01",
		Root: filepath.Join(f.disk, "standby"), Mount: filepath.Join(f.lab.Dir, "mount"), Host: f.host}
	inventory, err := f.standby.Enrol(f.standby.Root, filepath.Join(b.o.Bin, "doppel-agent"), f.rig.State, "https://"+followServer.Addr().String()+":8443")
	nodes := filepath.Join(f.lab.Dir, "nodes.json")
	if err := errors.Join(err, os.WriteFile(nodes, inventory, 0o600), os.Mkdir(f.standby.Mount, 0o700)); err != nil {
		return err
	}
	if _, err := f.doppel(ctx, "node", "import", nodes); err != nil {
		return err
	}
	f.daemon.Kill()
	return b.must(ctx, b.copied(f.rig.State, f.base))
}

// watch has the head watched from the next start of the daemon on.
func (f *following) watch() error {
	config, err := os.OpenFile(f.rig.Config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.WriteString(config, "watch = true\nrescan_every = \"24h\"\nkeep_last = 100\n")
	return errors.Join(err, config.Close())
}

// upgrade makes the mounted tree, a copy of the first one, the second one, in
// place.
func (f *following) upgrade(ctx context.Context) error {
	after := f.b.dir("after")
	return f.b.must(ctx, fmt.Sprintf(`mkdir -p %[1]s; mount -o loop,ro,noatime %[2]s %[1]s
status=0; rsync -aHAX --delete --inplace --no-whole-file %[1]s/head/ %[3]s/ || status=$?
umount %[1]s; sync; exit $status`, quote(after), quote(f.b.image(2)), quote(f.b.tree)))
}

func (f *following) stop() {
	if f.standby != nil {
		f.standby.Kill()
	}
	if f.daemon != nil {
		f.daemon.Kill()
	}
}

func (f *following) close() error {
	f.stop()
	return errors.Join(f.served.close(), f.b.must(context.Background(), fmt.Sprintf("! mountpoint -q %[1]s || umount %[1]s; rm -f %[2]s %[3]s", quote(f.disk), quote(f.b.dir("copies.img")), quote(f.b.dir("changing.img")))))
}

// round measures one round, of a tree, with a standby that is equal to the
// first one.
func (f *following) round(ctx context.Context, tree int) (m measured, err error) {
	b := f.b
	f.stop()
	// What an install has put there stays.
	equal := fmt.Sprintf("rsync -aHAX --delete --exclude=/etc/doppel --exclude=/usr/lib/doppel %s/ %s/", quote(b.dir("copy.base")), quote(f.standby.Root))
	begin := func() error { return b.useTree(ctx, 1) }
	if tree == 2 {
		begin = func() error { return b.useCopy(ctx) }
	}
	if err := errors.Join(begin(), b.must(ctx, b.copied(f.base, f.rig.State)), b.must(ctx, equal)); err != nil {
		return m, err
	}
	peak := watchPeak(ctx)
	defer func() { m.peak = peak() }()
	if f.daemon, err = f.rig.StartDaemon(ctx); err != nil {
		return m, err
	}
	if err := f.standby.Start(ctx); err != nil {
		return m, err
	}
	if err := f.standby.Console.Await(ctx, 0, regexp.MustCompile(`this node is up`)); err != nil {
		return m, err
	}
	if out, err := f.doppel(ctx, "sync", "now"); err != nil || !strings.Contains(out, "nothing had changed") {
		return m, fmt.Errorf("before anything has changed: %s: %w", out, err)
	}
	if tree == 2 {
		if err := f.upgrade(ctx); err != nil {
			return m, err
		}
	}
	from := f.standby.Console.Len()
	before, err := f.wire(ctx)
	if err != nil {
		return m, err
	}
	start := time.Now()
	out, err := f.doppel(ctx, "sync", "now")
	if err != nil {
		return m, err
	}
	if new := strings.Contains(out, "new version"); new != (tree == 2) || strings.Contains(out, "everything was looked at") {
		return m, fmt.Errorf("a round of tree %d came to: %s", tree, out)
	}
	if tree == 2 {
		if err := f.standby.Console.Await(ctx, from, regexp.MustCompile(`msg=(updated|"the update failed").*\n`)); err != nil {
			return m, err
		}
	}
	if err := b.must(ctx, fmt.Sprintf("sync -f %s; sync -f %s", quote(f.disk), quote(f.rig.State))); err != nil {
		return m, err
	}
	m.seconds = time.Since(start).Seconds()
	after, err := f.wire(ctx)
	m.wire = float64(after-before) / 1e6
	if said := f.standby.Console.Tail(10_000); err == nil && strings.Contains(said, "the update failed") {
		err = fmt.Errorf("the update failed: %s", said)
	}
	return m, err
}

// wire is how much was ever sent in the daemon's network, all of whose traffic
// goes by loopback.
func (f *following) wire(ctx context.Context) (int64, error) {
	out, err := f.host.Command(ctx, "cat", "/proc/net/dev").Output()
	if err != nil {
		return 0, err
	}
	return loopbackOf(string(out))
}
