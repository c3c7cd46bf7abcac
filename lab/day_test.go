package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// day is a standby that follows a source through bad days: the daemon and the
// agent are processes of their own, the standby's disk is an ext4.
type day struct {
	*Rig
	t      *testing.T
	ctx    context.Context
	source string // the tree that is captured
	double *Double
	daemon *Daemon // nil: it was killed
}

var (
	dayServer  = netip.MustParsePrefix("10.77.0.2/24")
	dayStandby = netip.MustParsePrefix("10.77.0.12/24")
)

// newDay makes a standby whose tree is that of generation 1, and a daemon by
// whose configuration it follows, which also says where the source is.
func newDay(t *testing.T, limit time.Duration, config string) *day {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root, for name spaces and mounts: run it with sudo, as make test does")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("the test took longer than %v", limit))
	t.Cleanup(cancel)
	l, err := New(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := &day{t: t, ctx: ctx, source: filepath.Join(l.Dir, "source"), Rig: &Rig{Lab: l, Bin: binDir, Out: &logWriter{t: t},
		State: filepath.Join(l.Dir, "state"), Config: filepath.Join(l.Dir, "doppel.toml"), Home: filepath.Join(l.Dir, "home")}}
	t.Cleanup(func() {
		if t.Failed() {
			d.logs()
		}
		if d.double != nil {
			d.double.Kill()
		}
		d.killDaemon()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	d.Server, err = l.Host(ctx, "server", dayServer, map[string]netip.Addr{"head": rigHead.Addr()})
	d.check(err)
	host, err := l.Host(ctx, "standby", dayStandby, nil)
	d.check(err)
	d.write(1)
	d.doppel("init", "--interface", "eth0")
	f, err := os.OpenFile(d.Config, os.O_APPEND|os.O_WRONLY, 0)
	d.check(err)
	if strings.Contains(config, "root@") {
		d.startSSHD()
	}
	_, err = f.WriteString(strings.NewReplacer("SOURCE", d.source, "HOME", d.Home).Replace(config))
	d.check(errors.Join(err, f.Close()))
	d.serve()

	d.double = &Double{Name: "standby", Role: "head", Addr: dayStandby, MAC: "52:54:00:00:00:12", Runs: "head@1", UUID: dayUUID, Mount: filepath.Join(l.Dir, "mount"), Host: host}
	d.check(os.Mkdir(d.double.Mount, 0o700))
	first := filepath.Join(l.Dir, "first")
	d.check(run(ctx, "cp", "-a", d.source, first))
	inventory, err := d.double.Enrol(first, filepath.Join(binDir, "doppel-agent"), d.State, "https://"+dayServer.Addr().String()+":8443")
	d.check(err)
	d.double.Root = makeDisk(t, ctx, filepath.Join(l.Dir, "disk"), first, dayDisk)
	nodes := filepath.Join(l.Dir, "nodes.json")
	d.check(os.WriteFile(nodes, inventory, 0o600))
	d.check(os.RemoveAll(first))
	d.doppel("sync", "now", "head")
	d.doppel("node", "import", nodes)
	d.check(d.double.Start(ctx))
	return d
}

const (
	dayUUID = "5f6bc4b2-7f3e-4b6d-9a52-0c8a6c3a7f01"
	dayDisk = 400 << 20
)

// makeDisk makes a disk of a file, with an ext4 that holds a tree, and gives its
// block device.
func makeDisk(t *testing.T, ctx context.Context, file, tree string, size int64) string {
	t.Helper()
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	if err := run(ctx, "mkfs.ext4", "-q", "-F", "-U", dayUUID, "-d", tree, file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, "losetup", "-f", "--show", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := run(context.Background(), "losetup", "-d", loop); err != nil {
			t.Error(err)
		}
	})
	return loop
}

func (d *day) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *day) logs() {
	if d.double != nil {
		d.t.Logf("the agent's log ends with:\n%s", d.double.Console.Tail(3000))
	}
	if d.daemon != nil {
		d.t.Logf("the daemon's log ends with:\n%s", d.daemon.Console.Tail(6000))
	}
}

// doppel runs a command that must succeed.
func (d *day) doppel(args ...string) string {
	d.t.Helper()
	var out, said bytes.Buffer
	cmd := d.Doppel(d.ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("doppel %s: %v\n%s%s", strings.Join(args, " "), err, out.String(), said.String())
	}
	return out.String()
}

// serve starts the daemon.
func (d *day) serve() {
	d.t.Helper()
	daemon, err := d.StartDaemon(d.ctx)
	d.check(err)
	d.daemon = daemon
}

func (d *day) killDaemon() {
	if d.daemon != nil {
		d.daemon.Kill()
		d.daemon = nil
	}
}

// node is what the inventory says of the standby.
func (d *day) node() (n struct {
	Runs   string
	Update *struct{ Image, Failed string }
}) {
	d.t.Helper()
	d.check(json.Unmarshal([]byte(d.doppel("node", "show", "standby", "--json")), &n))
	return n
}

// round has the source captured, and gives the version.
func (d *day) round() string {
	d.t.Helper()
	out := d.doppel("sync", "now", "head")
	m := regexp.MustCompile(`new version (head@\d+)`).FindStringSubmatch(out)
	if m == nil {
		d.t.Fatalf("no new version: %s", out)
	}
	return m[1]
}

// becomes waits until the standby has become a version.
func (d *day) becomes(version string) {
	d.t.Helper()
	follow := d.Doppel(d.ctx, "events", "-f", "--node", "standby", "--json")
	d.check(awaitLine(follow, regexp.MustCompile(`"kind":"updated".*`+version+`\b`)))
	if n := d.node(); n.Runs != version {
		d.t.Fatalf("the standby runs %s, not %s", n.Runs, version)
	}
}

// equals insists that the standby is a version exactly, by its own word, and by
// a comparison of its disk while it is off.
func (d *day) equals(version string) {
	d.t.Helper()
	d.doppel("sync", "drift", "standby", "--full")
	d.double.Kill()
	d.onDisk(func(root string) {
		out, err := d.Doppel(d.ctx, "image", "compare", version, root, "--role", "head").CombinedOutput()
		if err != nil {
			d.t.Errorf("the standby's disk is not %s: %v\n%s", version, err, out)
		}
	})
	d.check(d.double.Start(d.ctx))
}

// apart runs functions, one at a time, on a thread with a mount namespace of
// its own. The thread never ends: children of its own, which Go may have had it
// start before, would end with it (Pdeathsig goes by thread).
var apart = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil { // the namespaces of hosts to come are mounts, which it is to see
			err = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
		}
		if err != nil {
			panic(fmt.Sprintf("making a mount namespace: %v", err))
		}
		for do := range work {
			do()
		}
	}()
	return work
})

// TestApart has the thread of others see a host that is made after it.
func TestApart(t *testing.T) {
	t.Parallel()
	l, err := New(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	apart() <- func() {}
	h, err := l.Host(t.Context(), "late", dayServer, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	apart() <- func() { done <- h.Command(t.Context(), "true").Run() }
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// onDisk gives a function the standby's tree, while it is off, on a thread apart
// from others: the mount is that thread's own, so that no other process keeps
// it. The function may start no goroutines, and not end its own.
func (d *day) onDisk(look func(root string)) {
	d.t.Helper()
	d.awaitUnused()
	var errs error
	done := make(chan struct{})
	apart() <- func() {
		defer close(done)
		at := d.double.Mount
		if errs = unix.Mount(d.double.Root, at, "ext4", 0, ""); errs != nil {
			return
		}
		look(at)
		// Other goroutines may be starting processes, which have what is open
		// here until they are programs of their own.
		errs = unix.Unmount(at, unix.MNT_DETACH)
	}
	<-done
	if errs != nil {
		d.t.Fatalf("the standby's disk: %v", errs)
	}
	d.awaitUnused()
}

// noise is bytes that do not compress.
func noise(seed, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(b)
	return b
}

// kernelOf is the release of a generation's kernel: there are two, in turn.
func kernelOf(generation int) string { return fmt.Sprintf("6.1.0-%d-amd64", 1+generation%2) }

// changing are the files of a generation that are not in every one, or not with
// the same content. But for srv/generation, there are two kinds of generations.
func changing(generation int) map[string][]byte {
	kind := generation % 2
	release := kernelOf(generation)
	files := map[string][]byte{
		"boot/vmlinuz-" + release:                       noise(10+kind, 300_000),
		"boot/initrd.img-" + release:                    noise(20+kind, 1_500_000),
		"usr/lib/modules/" + release + "/modules.dep":   fmt.Appendf(nil, "%d\n", kind),
		"usr/lib/modules/" + release + "/kernel/net.ko": noise(30+kind, 200_000),
		"etc/app.conf":                                  fmt.Appendf(nil, "kind = %d\n", kind),
		"usr/lib/grub/i386-pc/moddep.lst":               fmt.Appendf(nil, "kind %d\n", kind),
		"srv/generation":                                generationFile(generation),
	}
	big := noise(40, 12<<20)
	copy(big[6<<20:], fmt.Sprintf("kind %d", kind))
	copy(big[11<<20:], noise(41+kind, 1<<20))
	files["srv/big"] = big
	for i := range 120 {
		files[fmt.Sprintf("srv/%s/file%03d", []string{"tree", "renamed"}[kind], i)] = noise(100+i, 1000+i*20)
		files[fmt.Sprintf("opt/app/file%03d", i)] = noise(300+200*kind+i, 2000+i*kind)
	}
	for i := range 40 {
		files[fmt.Sprintf("opt/only%d/file%02d", kind, i)] = noise(800+40*kind+i, 3000)
	}
	return files
}

// generationFile is the content of srv/generation, of which each has its own.
func generationFile(generation int) []byte {
	return append(fmt.Appendf(nil, "%08d\n", generation), noise(1000+generation, 2_000_000)...)
}

// write makes the source what it is in a generation. Nobody captures it
// meanwhile.
func (d *day) write(generation int) {
	d.t.Helper()
	if _, err := os.Stat(d.source); errors.Is(err, fs.ErrNotExist) {
		d.check(makeSystem(d.source))
	}
	files := changing(generation)
	for name := range changing(generation + 1) {
		if files[name] == nil {
			d.check(os.RemoveAll(filepath.Join(d.source, name)))
		}
	}
	for name, b := range files {
		at := filepath.Join(d.source, name)
		d.check(os.MkdirAll(filepath.Dir(at), 0o755))
		if have, err := os.ReadFile(at); err == nil && bytes.Equal(have, b) {
			continue
		}
		d.check(errors.Join(os.WriteFile(at+".new", b, 0o644), os.Rename(at+".new", at)))
	}
	link := filepath.Join(d.source, "srv/link")
	d.check(os.RemoveAll(link))
	if generation%2 == 0 {
		d.check(os.Link(filepath.Join(d.source, "srv/big"), link))
	} else {
		d.check(os.Symlink("generation", link))
	}
	for dir := range dirsOf(changing(generation + 1)) {
		_ = os.Remove(filepath.Join(d.source, dir)) // if nothing is left in it
	}
}

// dirsOf are the directories of files.
func dirsOf(files map[string][]byte) map[string]bool {
	dirs := map[string]bool{}
	for name := range files {
		dirs[filepath.Dir(name)] = true
	}
	return dirs
}

// grubMkconfig makes a menu as Debian's does: the newest kernel first, which is
// what GRUB starts; beside its place, and then copied there, here line by line.
const grubMkconfig = `#!/bin/sh
set -e
list=
for k in /boot/vmlinuz-*; do
	test -f "$k" || continue
	list="${k#/boot/vmlinuz-} $list"
done
{
	for r in $list; do
		echo "menuentry $r {"
		echo "search --fs-uuid --set=root ` + dayUUID + `"
		echo "linux /boot/vmlinuz-$r root=UUID=` + dayUUID + `"
		echo "initrd /boot/initrd.img-$r"
		echo "}"
	done
} >"$2.new"
while read -r line; do echo "$line"; done <"$2.new" >"$2"
rm -f "$2.new"
`

// makeSystem makes a tree that an image of a machine with BIOS can be taken of,
// and in which a shell runs.
func makeSystem(root string) error {
	files := map[string]string{
		"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "etc/hostname": "head\n", "etc/hosts": "127.0.0.1 localhost\n",
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/fstab": "", "usr/sbin/grub-install": "#!/bin/sh\n", "usr/sbin/grub-mkconfig": grubMkconfig,
		"usr/lib/grub/i386-pc/kernel.img": "", "usr/lib/grub/i386-pc/normal.mod": "", "usr/lib/grub/i386-pc/boot.img": "",
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "boot/grub", "bin", "srv"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range files {
		at := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o755)); err != nil {
			return err
		}
	}
	menu := strings.NewReplacer("R", kernelOf(1), "U", dayUUID).Replace("menuentry R {\nsearch --fs-uuid --set=root U\nlinux /boot/vmlinuz-R root=UUID=U\ninitrd /boot/initrd.img-R\n}\n")
	if err := os.WriteFile(filepath.Join(root, "boot/grub/grub.cfg"), []byte(menu), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"sh", "rm", "mv", "cat"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	out, err := exec.Command("ldd", busybox).Output()
	if err != nil {
		out = nil // it is static
	}
	copies := map[string]string{busybox: "/bin/busybox"}
	for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(out), -1) {
		copies[lib] = lib
	}
	for from, to := range copies {
		b, err := os.ReadFile(from)
		at := filepath.Join(root, to)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, b, 0o755)); err != nil {
			return err
		}
	}
	return nil
}

// dayKinds are the files of the two kinds of generations.
var dayKinds = sync.OnceValue(func() [2]map[string][]byte { return [2]map[string][]byte{changing(0), changing(1)} })

// wholeTree insists that every file of a tree is one of what it was in some
// generation, and none a mixture, and that the tree could start: that what the
// boot menu starts by itself is there.
func wholeTree(t *testing.T, root string) {
	t.Helper()
	kinds := dayKinds()
	is := func(name string, b []byte) bool {
		if name == "srv/generation" {
			var generation int
			_, err := fmt.Sscanf(string(b[:min(9, len(b))]), "%d", &generation)
			return err == nil && bytes.Equal(b, generationFile(generation))
		}
		return slices.ContainsFunc(kinds[:], func(files map[string][]byte) bool { return files[name] != nil && bytes.Equal(b, files[name]) })
	}
	for kind, files := range kinds {
		for name := range files {
			b, err := os.ReadFile(filepath.Join(root, name))
			switch {
			case errors.Is(err, fs.ErrNotExist) && kinds[1-kind][name] == nil:
			case err != nil:
				t.Error(err)
			case !is(name, b):
				t.Errorf("%s is of no version, with %d bytes", name, len(b))
			}
		}
	}
	menu, err := os.ReadFile(filepath.Join(root, "boot/grub/grub.cfg"))
	if err != nil {
		t.Error(err)
		return
	}
	m := regexp.MustCompile(`(?s)^menuentry (\S+) \{\nsearch .*?\nlinux /boot/vmlinuz-(\S+) .*?\ninitrd /boot/initrd.img-(\S+)\n\}\n`).FindSubmatch(menu)
	if m == nil {
		t.Errorf("the boot menu is %q", menu)
		return
	}
	for _, name := range []string{"boot/vmlinuz-" + string(m[2]), "boot/initrd.img-" + string(m[3]), "usr/lib/modules/" + string(m[2]) + "/kernel/net.ko"} {
		if b, err := os.ReadFile(filepath.Join(root, name)); err != nil || !is(name, b) {
			t.Errorf("the machine starts %s by itself, and %s is not whole: %v", m[1], name, err)
		}
	}
}
