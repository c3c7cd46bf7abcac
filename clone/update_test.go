package clone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// upgraded is the image of debianFiles after its head was upgraded to another
// kernel, and changed here and there.
func upgraded() *memoryImage {
	head := debianHead()
	head.Boot.Kernels = []imaging.Kernel{{Release: "6.1.0-2-amd64", Path: "boot/vmlinuz-6.1.0-2-amd64", Initrd: "boot/initrd.img-6.1.0-2-amd64", Modules: "usr/lib/modules/6.1.0-2-amd64"}}
	files := debianFiles()
	for _, gone := range []string{"boot/vmlinuz-6.1.0-1-amd64", "boot/initrd.img-6.1.0-1-amd64", "usr/lib/modules/6.1.0-1-amd64/kernel"} {
		delete(files, gone)
	}
	maps.Copy(files, map[string]string{
		"boot/vmlinuz-6.1.0-2-amd64":           "kernel 2",
		"boot/initrd.img-6.1.0-2-amd64":        "initramfs 2",
		"usr/lib/modules/6.1.0-2-amd64/kernel": "module 2",
		"etc/hosts":                            "127.0.0.1 localhost\n127.0.1.1 head.cluster head\n10.77.0.1 head.cluster head\n10.77.0.50 storage\n",
		"etc/shadow":                           "root:$y$other:19500:0:99999:7:::\nalice:$y$hash:19500:0:99999:7:::\n",
		"etc/nginx/nginx.conf":                 "worker_processes 1;\n",
		"etc/systemd/system/nginx.service":     "[Service]\n",
		"var/log/nginx/":                       "",
		"var/log/nginx/access.log":             "the head's\n",
		"home/user/notes":                      "other text",
	})
	return newImage(head, files)
}

// menu does to a tree what grub-mkconfig does: it lists the kernels that it
// finds, the newest first.
func menu(plan *Plan) func(Command) error {
	return func(c Command) error {
		if path.Base(c.Args[0]) != "grub-mkconfig" {
			return nil
		}
		kernels, err := filepath.Glob(filepath.Join(c.Root, "boot/vmlinuz-*"))
		if err != nil {
			return err
		}
		text := fmt.Sprintf("search --fs-uuid %s\n", plan.FileSystemAt("/").FS.UUID)
		for _, k := range slices.Backward(kernels) {
			if name := filepath.Base(k); !slices.Contains(c.Hide, "boot/"+name) {
				text += "linux /boot/" + name + "\n"
			}
		}
		return os.WriteFile(filepath.Join(c.Root, c.Args[2]), []byte(text), 0o600)
	}
}

// node installs an image for a node and gives the root of its tree.
func node(t *testing.T, image *memoryImage, role string) (root string, plan *Plan) {
	t.Helper()
	needRoot(t)
	target := testTarget()
	target.ImageHead, target.Role = image.Head, role
	plan = mustPlan(t, target, testHardware(BIOS, vda(20*gib)))
	work := t.TempDir()
	if err := Install(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &image.Manifest, image, testOptions(work, nil)); err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(work, "target")
	for name, text := range map[string]string{
		"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\n", "var/log/syslog": "the node's own", "var/log/own.log": "the node's own",
		"srv/added": "by hand", "home/user/drifted": "by hand", "var/lib/doppel/cluster.db": "state",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return root, plan
}

func readFile(t *testing.T, parts ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestUpdate(t *testing.T) {
	old := newImage(debianHead(), debianFiles())
	root, plan := node(t, old, roleCompute)
	identity := map[string]string{}
	for _, name := range []string{"etc/hostname", "etc/machine-id", "etc/network/interfaces", "etc/ssh/ssh_host_ed25519_key", "etc/fstab", "etc/doppel/node/node.key", "var/log/syslog", "var/log/own.log", "var/lib/doppel/cluster.db"} {
		if identity[name] = readFile(t, root, name); identity[name] == "" {
			t.Fatalf("the node has no %s", name)
		}
	}
	image := upgraded()
	var steps []string
	var both bool
	rec := &Recorder{Out: io.Discard, Before: func(s string) error { steps = append(steps, strings.ReplaceAll(s, root, "/")); return nil }}
	rec.Ran = func(c Command) error {
		if path.Base(c.Args[0]) == "grub-mkconfig" && !both {
			// The first menu is made while both kernels are there.
			both = readFile(t, root, "boot/vmlinuz-6.1.0-1-amd64") != "" && readFile(t, root, "boot/vmlinuz-6.1.0-2-amd64") != ""
			if !both {
				t.Error("the old kernel was removed before the new one was in the menu")
			}
		}
		return menu(plan)(c)
	}
	if err := os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{ID: "U", Image: "head@4", Keep: []string{"srv/**"}, Pre: "echo before", Post: "echo after"}}
	var stages []Stage
	o.Report = func(r Report) {
		if r.Install != "U" {
			t.Errorf("a report on %q", r.Install)
		}
		if len(stages) == 0 || stages[len(stages)-1] != r.Stage {
			stages = append(stages, r.Stage)
		}
	}
	r, err := Update(t.Context(), rec, plan, &image.Manifest, image, o)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Stage{StageCheck, StagePre, StageApply, StageIdentity, StageBootloader, StageSettle, StagePost}; !slices.Equal(stages, want) {
		t.Errorf("stages %v", stages)
	}
	if want := []string{
		"run in /: /bin/sh -c echo before",
		"run in /: /usr/sbin/grub-mkconfig -o /boot/grub/grub.cfg.doppel, without boot/initrd.img-6.1.0-1-amd64, boot/vmlinuz-6.1.0-1-amd64",
		"run in /: /usr/sbin/grub-mkconfig -o /boot/grub/grub.cfg.doppel",
		"run in /: /bin/systemctl daemon-reload", "run in /: /bin/sh -c echo after",
	}; !slices.Equal(steps, want) {
		t.Errorf("it ran %q", steps)
	}
	for name, want := range identity {
		if have := readFile(t, root, name); have != want {
			t.Errorf("%s was %q, and is %q", name, want, have)
		}
	}
	for name, want := range map[string]string{
		"home/user/notes": "other text", "etc/nginx/nginx.conf": "worker_processes 1;\n", "boot/vmlinuz-6.1.0-2-amd64": "kernel 2",
		"boot/vmlinuz-6.1.0-1-amd64": "", "home/user/drifted": "", "srv/added": "by hand", "var/log/nginx/access.log": "",
		"etc/shadow": "root:*:19500:0:99999:7:::\nalice:*:19500:0:99999:7:::\n",
	} {
		if have := readFile(t, root, name); have != want {
			t.Errorf("%s is %q, not %q", name, have, want)
		}
	}
	hosts := readFile(t, root, "etc/hosts")
	if !strings.Contains(hosts, "10.77.0.50 storage\n") || !strings.Contains(hosts, "10.77.0.11\tnode001.cluster node001\n") || strings.Contains(hosts, "127.0.1.1") {
		t.Errorf("/etc/hosts is %q", hosts)
	}
	if fi, err := os.Stat(filepath.Join(root, "var/log/nginx")); err != nil || !fi.IsDir() {
		t.Errorf("the directory for a new service's logs: %v", err)
	}
	if cfg := readFile(t, root, "boot/grub/grub.cfg"); strings.Contains(cfg, "6.1.0-1") || !strings.Contains(cfg, "6.1.0-2") {
		t.Errorf("the boot menu is %q", cfg)
	}
	if !r.Boot || r.Image != "head@4" || !slices.Equal(r.Derived, []string{"etc/hosts", "etc/shadow"}) || r.Apply.Written == 0 {
		t.Errorf("report %+v", r)
	}

	// Again, and nothing is left to be done.
	steps, stages = nil, nil
	o.Orders.Pre, o.Orders.Post = "", ""
	r, err = Update(t.Context(), rec, plan, &image.Manifest, image, o)
	if err != nil || len(steps) > 0 || r.Apply.Written+r.Apply.Fixed+r.Apply.Deleted != 0 || len(r.Derived) > 0 || r.Boot {
		t.Errorf("a second update did something: %q, %+v, %v", steps, r, err)
	}

	// And back.
	if _, err = Update(t.Context(), rec, plan, &old.Manifest, old, o); err != nil {
		t.Fatal(err)
	}
	if readFile(t, root, "home/user/notes") != "text" || readFile(t, root, "boot/vmlinuz-6.1.0-2-amd64") != "" || !strings.Contains(readFile(t, root, "boot/grub/grub.cfg"), "6.1.0-1") {
		t.Error("the node did not come back to the earlier version")
	}
}

// A standby keeps what makes it a head: its passwords are the image's.
func TestUpdateHead(t *testing.T) {
	root, plan := node(t, newImage(debianHead(), debianFiles()), roleHead)
	image := upgraded()
	_, err := Update(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &image.Manifest, image, UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda"})
	if err != nil {
		t.Fatal(err)
	}
	if have := readFile(t, root, "etc/shadow"); !strings.HasPrefix(have, "root:$y$other:") {
		t.Errorf("/etc/shadow is %q", have)
	}
}

// What is refused, and what fails before the apply, leaves the node as it was.
func TestUpdateRefused(t *testing.T) {
	root, plan := node(t, newImage(debianHead(), debianFiles()), roleCompute)
	before := contents(t, root)
	failing := errors.New("exit status 1")
	for _, c := range []struct {
		name   string
		alter  func(*memoryImage, *UpdateOptions)
		refuse string // in the refusal; empty: another error
	}{
		{"another distribution", func(m *memoryImage, _ *UpdateOptions) {
			m.Facts.OSRelease = map[string]string{"ID": "rocky", "VERSION_ID": "9"}
		}, "rocky 9"},
		{"another release", func(m *memoryImage, _ *UpdateOptions) {
			m.Facts.OSRelease = map[string]string{"ID": "debian", "VERSION_ID": "13"}
		}, "debian 13"},
		{"another kind of machine", func(m *memoryImage, o *UpdateOptions) { m.Facts.Arch, o.Orders.Force = "aarch64", true }, "aarch64"},
		{"no kernel", func(m *memoryImage, _ *UpdateOptions) { m.Boot.Kernels = nil }, "kernel"},
		{"a command before that fails", func(_ *memoryImage, o *UpdateOptions) { o.Orders.Pre = "false" }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := upgraded()
			o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda"}
			c.alter(image, &o)
			rec := &Recorder{Out: io.Discard, Ran: func(Command) error { return failing }}
			_, err := Update(t.Context(), rec, plan, &image.Manifest, image, o)
			var refused *RefusedError
			var where *StageError
			switch {
			case !errors.As(err, &where):
				t.Errorf("it did not fail as a stage: %v", err)
			case c.refuse == "" && !errors.Is(err, failing):
				t.Errorf("%v", err)
			case c.refuse != "" && (!errors.As(err, &refused) || !strings.Contains(refused.What, c.refuse) || refused.Hint == ""):
				t.Errorf("%v", err)
			}
			if after := contents(t, root); !slices.Equal(before, after) {
				t.Errorf("the node was touched:\n%q\n%q", before, after)
			}
		})
	}
	image := upgraded()
	image.Facts.OSRelease = map[string]string{"ID": "rocky"}
	o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{Force: true}}
	if _, err := Update(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &image.Manifest, image, o); err != nil {
		t.Errorf("forced: %v", err)
	}
}

// A boot menu that cannot be made ends the update before a kernel is removed.
func TestUpdateKeepsTheOldKernel(t *testing.T) {
	root, plan := node(t, newImage(debianHead(), debianFiles()), roleCompute)
	image := upgraded()
	o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda"}
	failing := errors.New("no space left on the device")
	_, err := Update(t.Context(), &Recorder{Out: io.Discard, Ran: func(Command) error { return failing }}, plan, &image.Manifest, image, o)
	if !errors.Is(err, failing) {
		t.Fatal(err)
	}
	if readFile(t, root, "boot/vmlinuz-6.1.0-1-amd64") == "" || !strings.Contains(readFile(t, root, "boot/grub/grub.cfg"), "6.1.0-1") {
		t.Error("the node starts no more")
	}
	// The next one has nothing to write any more, and knows all the same what
	// is to be done before it removes anything.
	both := false
	_, err = Update(t.Context(), &Recorder{Out: io.Discard, Ran: func(c Command) error {
		both = both || path.Base(c.Args[0]) == "grub-mkconfig" && readFile(t, root, "boot/vmlinuz-6.1.0-1-amd64") != ""
		return menu(plan)(c)
	}}, plan, &image.Manifest, image, o)
	if err != nil || !both {
		t.Fatalf("a menu was made before the old kernel was removed: %v; %v", both, err)
	}
	if readFile(t, root, "boot/vmlinuz-6.1.0-1-amd64") != "" || !strings.Contains(readFile(t, root, "boot/grub/grub.cfg"), "6.1.0-2") {
		t.Error("the update was not finished")
	}
}

// starts tells whether the first kernel in a tree's boot menu, which is started
// when nobody chooses, is there, with its initramfs and its modules.
func starts(t *testing.T, root string) bool {
	t.Helper()
	for line := range strings.Lines(readFile(t, root, "boot/grub/grub.cfg")) {
		release, ok := strings.CutPrefix(strings.TrimSpace(line), "linux /boot/vmlinuz-")
		if !ok {
			continue
		}
		if readFile(t, root, "boot/vmlinuz-"+release) != "" && readFile(t, root, "boot/initrd.img-"+release) != "" && readFile(t, root, "usr/lib/modules", release, "kernel") != "" {
			return true
		}
		return false
	}
	return false
}

// TestUpdateCut ends an update at each of its steps and after each of its
// changes: the node can start at any of these instants, and the next update, to
// the same version or back to the one before, comes to what one that was not
// cut comes to.
func TestUpdateCut(t *testing.T) {
	old, image := newImage(debianHead(), debianFiles()), upgraded()
	work := t.TempDir()
	o := UpdateOptions{Work: work, Disk: "/dev/vda"}
	// run updates a node and ends that after so many steps and changes; it
	// tells how many there were.
	run := func(root string, plan *Plan, to *memoryImage, cut int) (n int, err error) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		step := func() error {
			if n++; n == cut {
				cancel(errCut)
				return errCut
			}
			return nil
		}
		o := o
		o.Root = root
		o.Change = func(imaging.ApplyChange) { _ = step() }
		o.Report = func(Report) { _ = step() }
		rec := &Recorder{Out: io.Discard, Ran: menu(plan), Before: func(string) error { return step() }}
		_, err = Update(ctx, rec, plan, &to.Manifest, to, o)
		return n, err
	}
	root, plan := node(t, old, roleCompute)
	if !starts(t, root) {
		t.Fatal("the node does not start as it was installed")
	}
	steps, err := run(root, plan, image, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantNew := contents(t, root)
	if _, err := run(root, plan, old, 0); err != nil {
		t.Fatal(err)
	}
	wantOld := contents(t, root)
	if steps < 15 {
		t.Fatalf("an update has %d steps", steps)
	}
	for cut := 1; cut <= steps; cut++ {
		if _, err := run(root, plan, image, cut); err != nil && !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		if !starts(t, root) {
			t.Errorf("cut %d: the node cannot start: %q", cut, readFile(t, root, "boot/grub/grub.cfg"))
		}
		to, want := image, wantNew
		if cut%2 == 0 {
			to, want = old, wantOld
		}
		if _, err := run(root, plan, to, 0); err != nil {
			t.Fatalf("cut %d, and again: %v", cut, err)
		}
		if have := contents(t, root); !slices.Equal(have, want) {
			t.Errorf("cut %d, and again:\n%q\nwant\n%q", cut, have, want)
		}
		// The way back removes the newest kernel.
		if _, err := run(root, plan, image, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := run(root, plan, old, cut); err != nil && !errors.Is(err, errCut) {
			t.Fatalf("cut %d of the way back: %v", cut, err)
		}
		if !starts(t, root) {
			t.Errorf("cut %d of the way back: the node cannot start: %q", cut, readFile(t, root, "boot/grub/grub.cfg"))
		}
		if _, err := run(root, plan, old, 0); err != nil {
			t.Fatal(err)
		}
		if have := contents(t, root); !slices.Equal(have, wantOld) {
			t.Errorf("cut %d of the way back, and again:\n%q\nwant\n%q", cut, have, wantOld)
		}
	}
}

// Of named paths what was changed is undone, and nothing else is touched.
func TestUpdatePaths(t *testing.T) {
	image := newImage(debianHead(), debianFiles())
	root, plan := node(t, image, roleCompute)
	for name, text := range map[string]string{"home/user/notes": "changed", "etc/default/grub": "changed", "opt/trial/bin/tool": "by hand", "usr/sbin/trial": "by hand"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", filepath.Join(root, "opt/out")); err != nil {
		t.Fatal(err)
	}
	update := func(paths ...string) (*UpdateReport, error) {
		o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{Image: "head@3", Paths: paths, Keep: []string{"srv/**"}}}
		return Update(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &image.Manifest, image, o)
	}
	before := contents(t, root)
	for _, own := range []string{"/etc/hostname", "srv/added", "etc/hosts", "var/log/own.log"} {
		var refused *RefusedError
		if _, err := update("home/user", own); !errors.As(err, &refused) || !strings.Contains(refused.What, "node001's own") {
			t.Errorf("%s: %v", own, err)
		}
	}
	if after := contents(t, root); !slices.Equal(before, after) {
		t.Error("what was refused was touched")
	}
	r, err := update("/home/user/", "opt/trial", "opt/out", "usr/sbin/trial")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"home/user/notes": "text", "home/user/drifted": "", "opt/trial/bin/tool": "", "etc/default/grub": "changed", "srv/added": "by hand"} {
		if have := readFile(t, root, name); have != want {
			t.Errorf("%s is %q, not %q", name, have, want)
		}
	}
	if fi, err := os.Stat(filepath.Join(root, "usr/sbin")); err != nil || fi.ModTime().Unix() != image.List.Get("usr/sbin").MTime.Sec {
		t.Errorf("the time of a directory in which something was undone: %v, %v", fi, err)
	}
	if !slices.Equal(r.Removed, []string{"opt/out", "opt/trial", "usr/sbin/trial"}) || r.Boot || len(r.Derived) > 0 {
		t.Errorf("report %+v", r)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
	if _, err := update("opt"); err != nil || readFile(t, root, "opt") != "" {
		t.Errorf("only what the image lacks: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(root, "opt")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Of a named path that the image lacks, what the node keeps stays: what the
// orders keep, what the table has, what is mounted, and what a link leads to.
func TestUpdatePathsKeep(t *testing.T) {
	files := debianFiles()
	files["opt/turned"] = "-> ../etc"
	image := newImage(debianHead(), files)
	root, plan := node(t, image, roleCompute)
	for name, text := range map[string]string{
		"srv/site/own/data": "precious", "srv/site/page": "by hand", "srv/site/old/page": "by hand", "srv/site/own2": "by hand",
		"opt/trial/lost+found/piece": "fsck's", "opt/trial/tool": "by hand",
		"data/disk/file": "another disk's", "data/file": "by hand",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../etc", filepath.Join(root, "opt/link")); err != nil {
		t.Fatal(err)
	}
	hostname := readFile(t, root, "etc/hostname")
	update := func(paths ...string) (*UpdateReport, error) {
		o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{Image: "head@3", Paths: paths, Keep: []string{"srv/site/own/**"}}}
		return Update(t.Context(), &Recorder{Out: io.Discard, Ran: menu(plan)}, plan, &image.Manifest, image, o)
	}
	r, err := update("/srv/site", "opt/trial", "opt/link/hostname")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Removed, []string{"opt/trial", "srv/site"}) {
		t.Errorf("it removed %q", r.Removed)
	}
	for name, want := range map[string]string{
		"srv/site/own/data": "precious", "srv/site/page": "", "srv/site/own2": "", "opt/trial/lost+found/piece": "fsck's", "opt/trial/tool": "", "etc/hostname": hostname,
	} {
		if have := readFile(t, root, name); have != want {
			t.Errorf("%s is %q, not %q", name, have, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "srv/site/old")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory with nothing that is kept: %v", err)
	}

	// A directory that becomes a link again, with what is in it.
	turned := filepath.Join(root, "opt/turned")
	if err := errors.Join(os.Remove(turned), os.Mkdir(turned, 0o755), os.WriteFile(filepath.Join(turned, "hostname"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := update("opt/turned", "opt/turned/hostname"); err != nil || readFile(t, root, "opt/turned/hostname") != hostname {
		t.Errorf("/etc/hostname is %q, %v", readFile(t, root, "etc/hostname"), err)
	}

	// A file system of the plan's at a place that the image lacks, and one that
	// is none of the plan's.
	disk := filepath.Join(root, "data/disk")
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(disk, "precious"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err := update("data"); !errors.As(err, &refused) || !strings.Contains(refused.What, "on /data/disk there is a file system") || readFile(t, root, "data/file") == "" {
		t.Errorf("%v", err)
	}
	plan.Partitions = append(plan.Partitions, Partition{Number: 9, FS: &imaging.FileSystem{Type: "tmpfs", UUID: "9", Mount: "/data/disk"}})
	if _, err := update("data"); err != nil || readFile(t, disk, "precious") == "" || readFile(t, root, "data/file") != "" {
		t.Errorf("what is on a disk of the plan's: %q, and beside it: %q, %v", readFile(t, disk, "precious"), readFile(t, root, "data/file"), err)
	}
}

// TestUpdateRevertCut undoes a kernel that somebody has put on the node, by its
// files or with all of /boot, and with all of the tree, and ends that at each of
// its steps: the node can start at any of these instants.
func TestUpdateRevertCut(t *testing.T) {
	image := newImage(debianHead(), debianFiles())
	root, plan := node(t, image, roleCompute)
	newer := map[string]string{"boot/vmlinuz-6.1.0-9-amd64": "kernel 9", "boot/initrd.img-6.1.0-9-amd64": "initramfs 9", "usr/lib/modules/6.1.0-9-amd64/kernel": "module 9"}
	run := func(paths []string, cut int) (n int, err error) {
		for name, text := range newer {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := menu(plan)(Command{Root: root, Args: []string{"grub-mkconfig", "-o", "boot/grub/grub.cfg"}}); err != nil {
			t.Fatal(err)
		}
		if !starts(t, root) {
			t.Fatal("the node does not start with the kernel that was put on it")
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		step := func() error {
			if n++; n == cut {
				cancel(errCut)
				return errCut
			}
			return nil
		}
		o := UpdateOptions{Root: root, Work: t.TempDir(), Disk: "/dev/vda", Orders: UpdateOrders{Image: "head@3", Paths: paths, Keep: []string{"srv/**", "home/**"}}}
		o.Change = func(imaging.ApplyChange) { _ = step() }
		o.Report = func(Report) { _ = step() }
		_, err = Update(ctx, &Recorder{Out: io.Discard, Ran: menu(plan), Before: func(string) error { return step() }}, plan, &image.Manifest, image, o)
		return n, err
	}
	for _, paths := range [][]string{
		{"usr/lib/modules/6.1.0-9-amd64", "boot/vmlinuz-6.1.0-9-amd64", "boot/initrd.img-6.1.0-9-amd64"},
		{"boot/vmlinuz-6.1.0-9-amd64", "etc/nginx"}, {"boot"}, nil,
	} {
		steps, err := run(paths, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !starts(t, root) || readFile(t, root, "boot/vmlinuz-6.1.0-9-amd64") != "" || strings.Contains(readFile(t, root, "boot/grub/grub.cfg"), "6.1.0-9") {
			t.Errorf("%q: the menu is %q", paths, readFile(t, root, "boot/grub/grub.cfg"))
		}
		for cut := 1; cut <= steps; cut++ {
			if _, err := run(paths, cut); err != nil && !errors.Is(err, errCut) {
				t.Fatalf("%q, cut %d: %v", paths, cut, err)
			}
			if !starts(t, root) {
				t.Errorf("%q, cut %d: the node cannot start: %q", paths, cut, readFile(t, root, "boot/grub/grub.cfg"))
			}
		}
	}

	// The only kernel that the node has left is not removed.
	if err := os.Remove(filepath.Join(root, "boot/vmlinuz-6.1.0-1-amd64")); err != nil {
		t.Fatal(err)
	}
	if _, err := run([]string{"boot/vmlinuz-6.1.0-9-amd64"}, 0); err == nil || !strings.Contains(err.Error(), "none of the image's kernels") || !starts(t, root) {
		t.Errorf("%v; the menu is %q", err, readFile(t, root, "boot/grub/grub.cfg"))
	}
}

func FuzzDecodePlan(f *testing.F) {
	target := testTarget()
	plan, err := MakePlan(target, testHardware(BIOS, vda(20*gib)))
	if err != nil {
		f.Fatal(err)
	}
	b, err := EncodePlan(plan)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":"I","node":"n","role":"head","firmware":"bios"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodePlan(b)
		if err != nil {
			return
		}
		if p.FileSystemAt("/") == nil {
			t.Error("a plan without a root")
		}
		if _, err := EncodePlan(p); err != nil {
			t.Error(err)
		}
	})
}
