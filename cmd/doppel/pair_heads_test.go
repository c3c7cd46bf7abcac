package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rig is two heads and the machine that serves, on one LAN of namespaces. Each
// head has a disk with a partition table, an sshd, and a tree of its own that it
// runs in.
type rig struct {
	t      *testing.T
	dir    string
	bin    string // with doppel and doppel-agent
	id     string
	key    string
	server *exec.Cmd
	heads  map[string]*testHeadMachine
}

// testHeadMachine is one head.
type testHeadMachine struct {
	name, ns, addr string
	root           string // its tree, seen in its mount namespace alone
	holder         *exec.Cmd
	agent          *exec.Cmd
	sshd           *exec.Cmd
}

func newRig(t *testing.T) *rig {
	t.Helper()
	needRoot(t)
	r := &rig{t: t, dir: t.TempDir(), id: strings.ToLower(rand.Text()[:6]), heads: map[string]*testHeadMachine{}}
	r.bin = os.Getenv("DOPPEL_BIN")
	if r.bin == "" {
		r.bin = t.TempDir()
		cmd := exec.Command("go", "build", "-o", r.bin, "doppel/cmd/doppel", "doppel/cmd/doppel-agent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building: %v\n%s", err, out)
		}
	}
	lan := r.namespace("lan")
	r.must("ip", "-n", lan, "link", "add", "br0", "type", "bridge")
	r.must("ip", "-n", lan, "link", "set", "br0", "up")
	r.plug(lan, r.namespace("server"), "52:54:00:bb:00:01", "10.99.0.1/24")
	r.key = filepath.Join(r.dir, "key")
	r.must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", r.key)
	r.must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(r.dir, "hostkey"))
	for i, name := range []string{"head1", "head2"} {
		h := &testHeadMachine{name: name, ns: r.namespace(name), addr: fmt.Sprintf("10.99.0.%d", 11+i)}
		r.plug(lan, h.ns, fmt.Sprintf("52:54:00:bb:00:%d", 11+i), h.addr+"/24")
		r.heads[name] = h
		r.build(h)
	}
	return r
}

func (r *rig) must(name string, args ...string) string {
	r.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r *rig) namespace(what string) string {
	r.t.Helper()
	ns := "doppel-" + what + "-" + r.id
	r.must("ip", "netns", "add", ns)
	r.t.Cleanup(func() { r.must("ip", "netns", "del", ns) })
	r.must("ip", "-n", ns, "link", "set", "lo", "up")
	return ns
}

// plug joins a namespace to the LAN.
func (r *rig) plug(lan, ns, mac, addr string) {
	r.t.Helper()
	port := "p" + strings.ToLower(rand.Text()[:8])
	r.must("ip", "-n", ns, "link", "add", "eth0", "address", mac, "type", "veth", "peer", "name", port, "netns", lan)
	r.must("ip", "-n", lan, "link", "set", port, "master", "br0", "up")
	r.must("ip", "-n", ns, "addr", "add", addr, "dev", "eth0")
	r.must("ip", "-n", ns, "link", "set", "eth0", "up")
}

// makeTree is a small system: a shell, a kernel by its name, and what is taken
// for GRUB, whose grub-mkconfig names the root and the kernels.
const makeTree = `set -e
cd "$1"
mkdir -p bin usr/bin usr/sbin lib64 etc/systemd/system root tmp proc sys dev run var/lib var/log boot/grub usr/lib/modules/6.1.0-1-amd64 usr/lib/grub/i386-pc srv opt home
chmod 1777 tmp
b=$(command -v busybox)
cp -L "$b" usr/bin/busybox
for lib in $(ldd "$b" | grep -o '/[^ ]*'); do mkdir -p ".${lib%/*}"; cp -L "$lib" ".$lib"; done
for c in $(busybox --list); do test $c = busybox || ln -s /usr/bin/busybox bin/$c; done
echo kernel >boot/vmlinuz-6.1.0-1-amd64; echo initramfs >boot/initrd.img-6.1.0-1-amd64; : >usr/lib/modules/6.1.0-1-amd64/modules.dep
for f in kernel.img moddep.lst normal.mod boot.img; do : >usr/lib/grub/i386-pc/$f; done
printf '#!/bin/sh\nexit 0\n' >usr/sbin/grub-install
printf '#!/bin/sh\n{ cut -d" " -f1 /etc/fstab; ls /boot; } >$2\n' >usr/sbin/grub-mkconfig
chmod 755 usr/sbin/grub-*
printf '#!/bin/sh\nexec /bin/sh "$@"\n' >bin/bash; chmod 755 bin/bash
printf 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Test 12"\n' >etc/os-release
printf 'root:x:0:0:root:/root:/bin/sh\n' >etc/passwd; printf 'root:x:0:\n' >etc/group
echo "UUID=$2 / ext4 defaults 0 1" >etc/fstab
echo "$3" >etc/hostname; printf '127.0.0.1\tlocalhost\n' >etc/hosts
mkdir etc/app; for i in 1 2 3 4 5 6; do echo base >etc/app/$i; done
`

// build makes a head's disk and starts its sshd, whose sessions see that disk
// alone.
func (r *rig) build(h *testHeadMachine) {
	r.t.Helper()
	image := filepath.Join(r.dir, h.name+".img")
	f, err := os.Create(image)
	if err = errors.Join(err, f.Truncate(160<<20), f.Close()); err != nil {
		r.t.Fatal(err)
	}
	r.must("sgdisk", "-n1:1M:+1M", "-t1:ef02", "-n2:2M:+150M", image)
	loop := r.must("losetup", "-P", "-f", "--show", image)
	r.t.Cleanup(func() { r.must("losetup", "-d", loop) })
	// The kernel may not know GPT; BLKPG works all the same.
	r.must("addpart", loop, "1", "2048", "2048")
	r.must("addpart", loop, "2", "4096", "307200")
	r.must("mkfs.ext4", "-q", loop+"p2")
	uuid := r.must("blkid", "-p", "-s", "UUID", "-o", "value", loop+"p2")
	// What GRUB's boot.img says at that place.
	r.must("sh", "-c", "printf 'GRUB ' | dd of="+loop+" bs=1 seek=384 conv=notrunc")
	h.root = filepath.Join(r.dir, h.name)
	script := filepath.Join(r.dir, "tree.sh")
	if err := errors.Join(os.MkdirAll(h.root, 0o755), os.WriteFile(script, []byte(makeTree), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	h.holder = r.start("ip", "netns", "exec", h.ns, "unshare", "-m", "--propagation", "private", "sh", "-ec",
		fmt.Sprintf(`mount %sp2 %s && sh %s %s %s %s && mount -t proc proc %s/proc && mount --rbind /sys %s/sys && mount --rbind /dev %s/dev && touch %s/ready; exec sleep infinity`,
			loop, h.root, script, h.root, uuid, h.name, h.root, h.root, h.root, r.dir))
	r.await("the tree of "+h.name, func() bool {
		_, err := os.Stat(filepath.Join(r.dir, "ready"))
		return err == nil
	})
	if err := os.Remove(filepath.Join(r.dir, "ready")); err != nil {
		r.t.Fatal(err)
	}
	config := filepath.Join(r.dir, h.name+".sshd")
	text := fmt.Sprintf("ListenAddress %s\nHostKey %s/hostkey\nPidFile none\nAuthorizedKeysFile %s.pub\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nChrootDirectory %s\nUsePAM no\nPermitRootLogin yes\n", h.addr, r.dir, r.key, h.root)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	for d := r.dir; d != "/"; d = filepath.Dir(d) { // sshd is strict about what it changes its root to
		if err := os.Chmod(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		r.t.Fatal(err)
	}
	h.sshd = r.start(r.inside(h, "/usr/sbin/sshd", "-D", "-e", "-f", config)...)
	r.await("sshd of "+h.name, func() bool {
		return strings.Contains(r.said(), "Server listening on "+h.addr)
	})
}

// inside is a command line in a head's namespaces.
func (r *rig) inside(h *testHeadMachine, args ...string) []string {
	pid := fmt.Sprint(h.holder.Process.Pid)
	return append([]string{"nsenter", "-t", pid, "-m", "-n", "--"}, args...)
}

// start runs a process until the test ends.
func (r *rig) start(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	log, err := os.OpenFile(filepath.Join(r.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.kill(cmd) })
	return cmd
}

// kill ends a process and its children at once, as a power cut would.
func (r *rig) kill(cmd *exec.Cmd) {
	if cmd == nil || cmd.ProcessState != nil {
		return
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	_ = cmd.Wait()
}

// await waits for something to become so of which other processes tell only when
// they are asked.
func (r *rig) await(what string, so func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !so(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("never came: %s\n%s\n%s", what, r.said(), r.doppel("sync", "status"))
		}
	}
}

// said is the end of what all processes said.
func (r *rig) said() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "log"))
	return string(b[max(0, len(b)-6000):])
}

func (r *rig) environment(state string) []string {
	return append(os.Environ(), "PATH="+r.bin+":"+os.Getenv("PATH"), "HOME="+r.dir, "DOPPEL_STATE="+state)
}

func (r *rig) args(args ...string) []string {
	return append([]string{"ip", "netns", "exec", "doppel-server-" + r.id, filepath.Join(r.bin, "doppel"), "--config", filepath.Join(r.dir, "doppel.toml"), "--state", filepath.Join(r.dir, "state")}, args...)
}

// doppel runs the command, and gives all that it says.
func (r *rig) doppel(args ...string) string {
	out, _ := r.try(args...)
	return regexp.MustCompile(" +").ReplaceAllString(out, " ")
}

func (r *rig) try(args ...string) (string, int) {
	line := r.args(args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = r.environment("")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		r.t.Error(err)
	}
	return string(out), 0
}

// does insists on an exit code and on words in what is said.
func (r *rig) does(code int, words []string, args ...string) string {
	r.t.Helper()
	out, got := r.try(args...)
	if got != code {
		r.t.Fatalf("doppel %s: exit code %d, not %d:\n%s\n%s", strings.Join(args, " "), got, code, out, r.said())
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			r.t.Errorf("doppel %s does not say %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out
}

// serve starts the daemon, and waits until it serves.
func (r *rig) serve() {
	r.t.Helper()
	log := filepath.Join(r.dir, "log")
	before, _ := os.ReadFile(log)
	r.server = r.start(r.args("serve")...)
	r.await("serving", func() bool {
		b, _ := os.ReadFile(log)
		return bytes.Contains(b[len(before):], []byte("msg=serving "))
	})
}

// runAgent starts a head's agent as its unit would.
func (r *rig) runAgent(name string) {
	r.t.Helper()
	h := r.heads[name]
	h.agent = r.start(r.inside(h, "chroot", h.root, "/usr/lib/doppel/doppel-agent", "node")...)
}

// on runs a shell line on a head.
func (r *rig) on(name, line string) string {
	r.t.Helper()
	h := r.heads[name]
	args := r.inside(h, "chroot", h.root, "/bin/sh", "-ec", line)
	return r.must(args[0], args[1:]...)
}

// has insists on a file's content on a head; empty: there is none.
func (r *rig) has(name string, files map[string]string) {
	r.t.Helper()
	for f, want := range files {
		if have := r.on(name, "cat "+f+" 2>/dev/null || true"); have != want {
			r.t.Errorf("%s on %s is %q, not %q", f, name, have, want)
		}
	}
}

// status waits until sync status says something.
func (r *rig) status(words ...string) {
	r.t.Helper()
	for _, w := range words {
		r.await(w, func() bool { return strings.Contains(r.doppel("sync", "status"), w) })
	}
}

func (r *rig) ssh(args ...string) []string {
	return append(args, "-i", r.key, "--known-hosts", filepath.Join(r.dir, "known"), "--accept-new")
}

func mustNotExist(t *testing.T, r *rig, head string, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if out := r.on(head, "ls -d "+p+" 2>/dev/null || true"); out != "" {
			t.Errorf("%s is on %s", p, head)
		}
	}
}

// copyState copies the daemon's state, which nobody may be writing.
func (r *rig) copyState(from, to string) {
	r.t.Helper()
	if err := os.RemoveAll(filepath.Join(r.dir, to)); err != nil {
		r.t.Fatal(err)
	}
	r.must("cp", "-a", filepath.Join(r.dir, from), filepath.Join(r.dir, to))
}

// stop ends the daemon as systemd would.
func (r *rig) stop() {
	r.t.Helper()
	if err := syscall.Kill(-r.server.Process.Pid, unix.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
	_ = r.server.Wait()
}
