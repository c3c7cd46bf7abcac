package bench

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Options say what is measured.
type Options struct {
	Bin   string   // directory of doppel and doppel-agent
	Work  string   // directory for trees and stores; trees are kept there for the next time
	N     int      // rounds
	Only  []string // beginnings of the names of rows; nil: all
	Small bool     // a small tree: to see that everything works, not how fast
	Out   io.Writer
	File  string // of one JSON object a row, which is appended to; "": none
}

// bench is one run.
type bench struct {
	o          Options
	work       string
	live, tree string // where the head's file system is mounted, and its root
	doppel     string
	port       int
	mounted    int // which image
	cleanup    []func() error
	rows       []Row
	peak       map[string]float64 // MiB, by the name of who ran on the large tree
}

func (b *bench) say(s string) { fmt.Fprintln(b.o.Out, s) }

// Image measures the image engine. It needs root, and the packages that the
// Makefile's bench target installs.
func Image(ctx context.Context, o Options) (rows []Row, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the bench mounts file systems and starts an sshd: run it as root")
	}
	work, err := filepath.Abs(o.Work)
	if err != nil {
		return nil, err
	}
	if o.Small {
		work += "-small"
	}
	b := &bench{o: o, work: work, peak: map[string]float64{}, live: filepath.Join(work, "live"), doppel: filepath.Join(o.Bin, "doppel")}
	b.tree = filepath.Join(b.live, "head")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		for _, undo := range slices.Backward(b.cleanup) {
			err = errors.Join(err, undo())
		}
	}()
	b.cleanup = append(b.cleanup, func() error {
		return b.must(context.WithoutCancel(ctx), fmt.Sprintf("! mountpoint -q %s || umount %s", quote(b.live), quote(b.live)))
	})
	if err := b.makeTrees(ctx); err != nil {
		return nil, err
	}
	if err := b.startSSHD(ctx); err != nil {
		return nil, err
	}
	for _, part := range []func(context.Context) error{b.first, b.unchanged, b.restores, b.verifies, b.upgrade, b.resync, b.memory, b.million} {
		if err := part(ctx); err != nil {
			return b.rows, err
		}
	}
	printRows(o.Out, b.rows)
	if o.File != "" {
		return b.rows, appendRows(o.File, b.rows)
	}
	return b.rows, nil
}

// wants tells whether any of the rows, or one that compares the same with
// another peer, is to be measured.
func (b *bench) wants(names ...string) bool {
	if len(b.o.Only) == 0 {
		return true
	}
	return slices.ContainsFunc(names, func(name string) bool {
		return slices.ContainsFunc(b.o.Only, func(only string) bool { return strings.HasPrefix(name, only) || strings.HasPrefix(only, name+"-") })
	})
}

// row adds a row.
func (b *bench) row(r Row, g goal) {
	r.finish(g)
	if b.wants(r.Name) {
		b.rows = append(b.rows, r)
	}
}

func (b *bench) dir(name string) string { return filepath.Join(b.work, name) }

// report is what a capture prints last.
type report struct {
	Unchanged bool  `json:"unchanged"`
	Added     int64 `json:"bytes_added"`
}

func parseReport(out string) (r report, err error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	err = json.Unmarshal([]byte(lines[len(lines)-1]), &r)
	return r, err
}

// size is how many bytes the files below a path have.
func size(path string) (total int64, err error) {
	err = filepath.WalkDir(path, func(_ string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

const tarOptions = "--one-file-system -S --xattrs --acls --numeric-owner"

// first is the first capture beside tar and zstd, and beside the archivers.
func (b *bench) first(ctx context.Context) error {
	if err := b.useTree(ctx, 1); err != nil {
		return err
	}
	state, archive := b.dir("state"), b.dir("tree.tar.zst")
	own := side{name: "doppel", prepare: "rm -rf " + quote(state), script: b.capture(state, "")}
	peers := []side{{
		name: "tar", title: "ssh tar | zstd -3 -T0", prepare: "rm -f " + quote(archive), stored: archive,
		script: fmt.Sprintf("%s head %s | zstd -q -3 -T0 -o %s", b.ssh(), quote("tar -C "+b.tree+" "+tarOptions+" -cf - ."), quote(archive)),
	}}
	for _, a := range b.archivers() {
		peers = append(peers, side{name: a.name, title: a.title, prepare: a.init, script: a.create("first"), stored: a.repository})
	}
	b.say("first capture")
	if !b.wants("capture-first-time", "capture-first-size", "capture-unchanged-time", "restore-time", "apply-unchanged-time", "verify-speed", "upgrade-time", "upgrade-sent", "upgrade-added") {
		// What comes next needs doppel's alone.
		if err := b.must(ctx, own.prepare+"\n"+own.script); err != nil {
			return err
		}
		return b.must(ctx, fmt.Sprintf("rm -rf %s && %s", quote(b.dir("copy")), b.copied(state, b.dir("state.first"))))
	}
	err := b.compare(ctx, own, peers,
		figure{name: "capture-first-time", unit: "s", goal: goal{figure: "ratio", most: 0.75}, of: seconds},
		figure{name: "capture-first-size", unit: "MB", goal: goal{figure: "ratio", most: 1}, of: func(p side, _, _ measured) ([2]float64, error) {
			ours, err := size(filepath.Join(state, "store"))
			if err != nil {
				return [2]float64{}, err
			}
			theirs, err := size(p.stored)
			return [2]float64{float64(ours) / 1e6, float64(theirs) / 1e6}, err
		}})
	if err != nil {
		return err
	}
	// What comes next starts from one capture that is old enough for the
	// files' times to be trusted.
	if err := b.must(ctx, fmt.Sprintf("rm -rf %s && %s", quote(b.dir("copy")), b.copied(state, b.dir("state.first")))); err != nil {
		return err
	}
	for _, a := range b.archivers() {
		if err := b.must(ctx, b.copied(a.dir, a.first)); err != nil {
			return err
		}
	}
	return nil
}

// copied is the command that makes one directory a copy of another.
func (b *bench) copied(from, to string) string {
	return fmt.Sprintf("rm -rf %[2]s && cp -a %[1]s %[2]s", quote(from), quote(to))
}

// rsync is the command that makes a copy equal to the head's tree.
func (b *bench) rsync(to string) string {
	return fmt.Sprintf("rsync -aHAX --numeric-ids --delete -e %s head:%s/ %s/", quote(b.ssh()), b.tree, quote(to))
}

// unchanged is a second capture of the same tree beside a second rsync, and the
// archivers' second one.
func (b *bench) unchanged(ctx context.Context) error {
	if !b.wants("capture-unchanged-time") {
		return nil
	}
	copied := b.dir("copy")
	if err := b.must(ctx, "mkdir -p "+quote(copied)+" && "+b.rsync(copied)); err != nil {
		return err
	}
	own := side{name: "doppel", script: b.capture(b.dir("state.first"), "")}
	peers := []side{{name: "rsync", title: "rsync -aHAX, nothing changed", script: b.rsync(copied)}}
	for _, a := range b.archivers() {
		peers = append(peers, side{name: a.name, title: a.title, prepare: b.copied(a.first, a.dir), script: a.create("again")})
	}
	b.say("second capture, nothing changed")
	return b.compare(ctx, own, peers,
		figure{name: "capture-unchanged-time", unit: "s", goal: goal{figure: "ratio", most: 0.35}, of: func(p side, own, peer measured) ([2]float64, error) {
			report, err := parseReport(own.output)
			if err == nil && !report.Unchanged {
				err = errors.New("a tree that did not change made a new version")
			}
			return [2]float64{own.seconds, peer.seconds}, err
		}})
}

// restores is a restore to an empty file system beside tar and the archivers,
// and one that has nothing to do beside rsync.
func (b *bench) restores(ctx context.Context) error {
	if !b.wants("restore-time", "apply-unchanged-time") {
		return nil
	}
	target, disk := b.dir("target"), b.dir("target.img")
	b.cleanup = append(b.cleanup, func() error {
		return b.must(context.WithoutCancel(ctx), fmt.Sprintf("! mountpoint -q %s || umount %s; rm -f %s", quote(target), quote(target), quote(disk)))
	})
	empty := fmt.Sprintf(`mkdir -p %[1]s; ! mountpoint -q %[1]s || umount %[1]s; rm -f %[2]s; truncate -s %[3]d %[2]s
mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 %[2]s; mount -o loop,noatime %[2]s %[1]s; mkdir %[1]s/copy`, quote(target), quote(disk), b.sizes().disk)
	into := filepath.Join(target, "copy")
	own := side{name: "doppel", prepare: empty, script: b.command(b.dir("state.first"), "image restore head "+quote(into)), synced: target}
	peers := []side{{
		name: "tar", title: "zstd -d | tar -x, synced", prepare: empty, synced: target,
		script: fmt.Sprintf("zstd -q -d -c %s | tar -C %s --xattrs --xattrs-include='*' --acls --numeric-owner -xpf -", quote(b.dir("tree.tar.zst")), quote(into)),
	}}
	for _, a := range b.archivers() {
		peers = append(peers, side{name: a.name, title: a.title, prepare: empty + "\n" + b.copied(a.first, a.dir), script: a.restore(into), synced: target})
	}
	b.say("restore to an empty file system")
	if err := b.compare(ctx, own, peers, figure{name: "restore-time", unit: "s", goal: goal{figure: "ratio", most: 0.9}, of: seconds}); err != nil {
		return err
	}

	restore := b.command(b.dir("state.first"), "image restore head "+quote(into)+" --delete --yes")
	if err := b.must(ctx, empty+"\n"+restore); err != nil {
		return err
	}
	b.say("restore where nothing differs")
	return b.compare(ctx, side{name: "doppel", script: restore}, []side{{name: "rsync", title: "rsync -aHAX, nothing changed", script: b.rsync(into)}},
		figure{name: "apply-unchanged-time", unit: "s", goal: goal{figure: "ratio", most: 0.35}, of: seconds})
}

// verifies is the speed of a full verification, a core, beside that of one core
// that hashes the same packs in memory.
func (b *bench) verifies(ctx context.Context) error {
	if !b.wants("verify-speed") {
		return nil
	}
	state := b.dir("state.first")
	files, err := filepath.Glob(filepath.Join(state, "store", "packs", "[^.]*"))
	if err != nil {
		return err
	}
	r := Row{Name: "verify-speed", Unit: "MB/s a core", PeerName: "SHA-256 of the packs, one core", PeerCommand: "crypto/sha256"}
	b.say("verification")
	for range b.o.N {
		var bytes int64
		var hashing time.Duration
		for _, name := range files {
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			start := time.Now()
			sha256.Sum256(data)
			hashing += time.Since(start)
			bytes += int64(len(data))
		}
		m, err := b.run(ctx, b.command(state, "image verify --all --read-data"), "")
		if err != nil {
			return err
		}
		b.peak["doppel"] = max(b.peak["doppel"], m.peak)
		mb := float64(bytes) / 1e6
		r.Samples = append(r.Samples, [2]float64{mb / m.seconds / float64(runtime.NumCPU()), mb / hashing.Seconds()})
	}
	b.row(r, goal{figure: "ratio", least: 0.7})
	return nil
}

// upgrade is a capture after packages were installed and large files changed in
// part.
func (b *bench) upgrade(ctx context.Context) error {
	if !b.wants("upgrade-time", "upgrade-sent", "upgrade-added") {
		return nil
	}
	if err := b.useTree(ctx, 1); err != nil {
		return err
	}
	base, copied := b.dir("copy.base"), b.dir("copy")
	if err := b.must(ctx, fmt.Sprintf("mkdir -p %s && %s", quote(base), b.rsync(base))); err != nil {
		return err
	}
	if err := b.useTree(ctx, 2); err != nil {
		return err
	}
	changed, err := b.changed(ctx, base)
	if err != nil {
		return err
	}
	own := side{name: "doppel", prepare: b.copied(b.dir("state.first"), b.dir("state")), script: b.capture(b.dir("state"), "")}
	peers := []side{{name: "rsync", title: "rsync -aHAX", prepare: fmt.Sprintf("rsync -aHAX --delete %s/ %s/", quote(base), quote(copied)), script: b.rsync(copied)}}
	for _, a := range b.archivers() {
		peers = append(peers, side{name: a.name, title: a.title, prepare: b.copied(a.first, a.dir), script: a.create("upgraded"), stored: a.repository, before: a.before})
	}
	b.say("capture after an upgrade")
	return b.compare(ctx, own, peers,
		figure{name: "upgrade-time", unit: "s", goal: goal{figure: "ratio", most: 0.25}, of: seconds},
		figure{
			name: "upgrade-sent", unit: "MB", goal: goal{figure: "ratio", most: 1.2}, alone: true,
			peerName: "what changed, by zstd -3", peerCommand: "tar of the changed files, and what was appended | zstd -3",
			of: func(_ side, own, _ measured) ([2]float64, error) { return [2]float64{own.wire, changed}, nil },
		},
		figure{name: "upgrade-added", unit: "MB", goal: goal{figure: "doppel", most: 14}, peerName: "sent by rsync", of: func(p side, own, peer measured) ([2]float64, error) {
			report, err := parseReport(own.output)
			if err != nil || p.stored == "" {
				return [2]float64{float64(report.Added) / 1e6, peer.wire}, err
			}
			before, err := size(p.before)
			if err != nil {
				return [2]float64{}, err
			}
			after, err := size(p.stored)
			return [2]float64{float64(report.Added) / 1e6, float64(after-before) / 1e6}, err
		}})
}

// changed is how many MB the changed files are when they are compressed, with
// those parts of the two large ones that changed.
func (b *bench) changed(ctx context.Context, base string) (float64, error) {
	out := b.dir("changed.zst")
	err := b.must(ctx, fmt.Sprintf(`cd %s
rsync -aHAXn --out-format=%%n --exclude=/srv/data/db.bin --exclude=/usr/local/bin/link* --exclude=/srv/log/app.log ./ %s/ | grep -v '/$' >%s || true
{ tar -cf - --no-recursion -T %s; tail -c %d srv/log/app.log; } | zstd -q -3 -f -o %s`,
		quote(b.tree), quote(base), quote(out+".list"), quote(out+".list"), b.sizes().appended, quote(out)))
	if err != nil {
		return 0, err
	}
	n, err := size(out)
	return float64(n) / 1e6, err
}

// memory is the most that any process took in what was run before.
func (b *bench) memory(context.Context) error {
	for _, peer := range append([]string{"rsync"}, archiverNames...) {
		r := Row{Name: "peak-memory", Unit: "MiB", PeerName: peer, PeerCommand: peer}
		g := goal{figure: "doppel", most: 128}
		if peer != "rsync" {
			r.Name += "-" + peer
			g = atLeastAsGood
		}
		if b.peak["doppel"] > 0 && b.peak[peer] > 0 {
			r.Samples = [][2]float64{{b.peak["doppel"], b.peak[peer]}}
		}
		b.row(r, g)
	}
	return nil
}

// million is what a tree of a million entries takes: memory, and what it costs to
// watch it.
func (b *bench) million(ctx context.Context) error {
	if !b.wants("peak-memory-million", "watch-quiet-time", "watch-change-time", "watch-idle-cpu", "watch-peak-memory") {
		return nil
	}
	entries, room := 1_000_000, int64(8<<30)
	if b.o.Small {
		entries, room = 2_000, 64<<20
	}
	disk, live, tree := b.dir("million.img"), b.live, b.tree
	defer func() { b.live, b.tree = live, tree }()
	b.live = b.dir("million")
	b.tree = filepath.Join(b.live, "head")
	b.cleanup = append(b.cleanup, func() error {
		return b.must(context.WithoutCancel(ctx), fmt.Sprintf("! mountpoint -q %s || umount %s", quote(b.dir("million")), quote(b.dir("million"))))
	})
	b.say(fmt.Sprintf("a tree of %d entries", entries))
	if _, err := os.Stat(disk); err != nil {
		err := b.must(ctx, fmt.Sprintf("rm -f %[1]s.new; truncate -s %[3]d %[1]s.new; mkfs.ext4 -q -F -N %[2]d -E lazy_itable_init=1 %[1]s.new", quote(disk), entries*5/4+1000, room))
		if err != nil {
			return err
		}
		if err := b.changeImage(ctx, disk+".new", func() error { return b.fillMillion(entries) }); err != nil {
			return err
		}
		if err := os.Rename(disk+".new", disk); err != nil {
			return err
		}
	}
	if err := b.mountImage(ctx, disk); err != nil {
		return err
	}
	state, copied := b.dir("state.million"), b.dir("copy.million")
	clean := fmt.Sprintf("rm -rf %s %s", quote(state), quote(copied))
	if err := b.must(ctx, clean); err != nil {
		return err
	}
	if b.wants("peak-memory-million") {
		if err := b.millionMemory(ctx, state, copied); err != nil {
			return err
		}
	}
	if b.wants("watch-quiet-time", "watch-change-time", "watch-idle-cpu", "watch-peak-memory") {
		if err := b.watched(ctx, state, copied); err != nil {
			return err
		}
	}
	return b.must(ctx, clean)
}

// millionMemory is the memory that a tree of a million entries takes.
func (b *bench) millionMemory(ctx context.Context, state, copied string) error {
	restore := b.command(state, "image restore head "+quote(copied)+" --delete --yes")
	r := Row{Name: "peak-memory-million", Unit: "MiB", PeerName: "rsync", PeerCommand: b.rsync(copied)}
	var own float64
	for _, step := range []struct{ name, script string }{
		{"capture", b.capture(state, "")},
		{"capture again", b.capture(state, "")},
		{"restore", restore},
		{"restore again", restore},
		{"verify", b.command(state, "image verify --all --read-data")},
		{"prune", b.command(state, "image prune --yes")},
	} {
		m, err := b.run(ctx, step.script, "")
		if err != nil {
			return err
		}
		b.say(fmt.Sprintf("  %s: %.0f MiB, %.1f s", step.name, m.peak, m.seconds))
		own = max(own, m.peak)
	}
	m, err := b.run(ctx, b.rsync(copied), "")
	if err != nil {
		r.Error = err.Error()
	}
	r.Samples = [][2]float64{{own, m.peak}}
	b.row(r, goal{figure: "doppel", most: 400})
	return nil
}

// fillMillion makes many small files, a hundred to a directory, of which some
// are alike, with links among them.
func (b *bench) fillMillion(entries int) error {
	text := make([]byte, 0, 256)
	for i := 0; i < entries; i++ {
		dir := b.at(fmt.Sprintf("data/%03d/%04d", i/100_000, i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		name := filepath.Join(dir, fmt.Sprintf("some-file-name-%07d.dat", i))
		var err error
		switch {
		case i%50 == 49:
			err = os.Symlink(fmt.Sprintf("../%04d", i/100), name)
		default:
			text = fmt.Appendf(text[:0], "the content of file %d\n", i-i%3)
			err = os.WriteFile(name, text, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
