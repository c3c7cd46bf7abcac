package imaging_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"doppel/imaging"
	"doppel/imaging/remote"
)

// rebooting is a head that can lose its power: a real sshd, with all that it
// starts, in PID and mount namespaces of its own. Killing the first process
// ends every other one with it, and what lies in memory goes too.
type rebooting struct {
	t    *testing.T
	dir  string // its /srv
	tree string // its /mnt, the disk that survives
	host ssh.Signer
	cmd  *exec.Cmd
}

const rebootPort = 2222 // in the test's own network namespace

func (h *rebooting) on() {
	h.t.Helper()
	script := strings.Join([]string{
		"set -e", "mount -t tmpfs none /run", "mkdir /run/sshd",
		"mount --bind " + h.dir + " /srv", "mount --bind " + h.tree + " /mnt",
		"mount -t tmpfs -o mode=1777 none /var/tmp", "mount -t tmpfs -o mode=1777 none /tmp",
		"exec /usr/sbin/sshd -D -e -f /srv/sshd_config",
	}, "\n")
	h.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script)
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := h.cmd.StderrPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	said := ""
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		said += lines.Text() + "\n"
		if strings.Contains(said, "Server listening on") {
			return
		}
	}
	h.t.Fatalf("sshd does not listen: %v\n%s", h.cmd.Wait(), said)
}

// off takes the power: no process says goodbye, and no packet that the
// sockets' end would send reaches anyone.
func (h *rebooting) off() error {
	if err := nft(fmt.Sprintf("add table ip dark; add chain ip dark c { type filter hook output priority 0; }; add rule ip dark c tcp sport %d drop", rebootPort)); err != nil {
		return err
	}
	if err := h.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = h.cmd.Wait() // it was killed
	return nil
}

func nft(rules string) error {
	out, err := exec.Command("nft", rules).CombinedOutput()
	if err != nil {
		return fmt.Errorf("nft %s: %w: %s", rules, err, out)
	}
	return nil
}

func newSigner(t *testing.T, file string) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

func newRebooting(t *testing.T) (h *rebooting, o remote.Options) {
	t.Helper()
	h = &rebooting{t: t, dir: t.TempDir(), tree: t.TempDir()}
	h.host = newSigner(t, filepath.Join(h.dir, "host_key"))
	user := filepath.Join(t.TempDir(), "id")
	key := newSigner(t, user)
	config := fmt.Sprintf("ListenAddress 127.0.0.1\nPort %d\nHostKey /srv/host_key\nPidFile none\nAuthorizedKeysFile /srv/keys\nStrictModes no\nUsePAM no\nUseDNS no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n", rebootPort)
	known := filepath.Join(t.TempDir(), "known_hosts")
	for name, text := range map[string]string{
		filepath.Join(h.dir, "sshd_config"): config,
		filepath.Join(h.dir, "keys"):        string(ssh.MarshalAuthorizedKey(key.PublicKey())),
		known:                               fmt.Sprintf("[127.0.0.1]:%d %s", rebootPort, ssh.MarshalAuthorizedKey(h.host.PublicKey())),
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.on()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	})
	return h, remote.Options{
		Config: "none", KnownHosts: known, Keys: []string{user}, AgentSocket: "none", Home: t.TempDir(),
		Timeout: 10 * time.Second, KeepAlive: 2 * time.Second,
	}
}

// noise fills files of the head with what neither repeats nor compresses.
func (h *rebooting) noise(first, n, size int) {
	h.t.Helper()
	for i := first; i < first+n; i++ {
		b := make([]byte, size)
		mathrand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b)
		if err := os.WriteFile(fmt.Sprintf("%s/%03d", h.tree, i), b, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
}

// ownNetwork runs a test in network and mount namespaces of its own, by
// starting this program again for it alone, and tells whether this is that run.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	const mark = "DOPPEL_TEST_OWN_NETWORK"
	if os.Geteuid() != 0 {
		t.Fatal("this test makes namespaces: run it as root")
	}
	if os.Getenv(mark) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Fatalf("ip: %v\n%s", err, out)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), mark+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// The head loses its power in the middle of a capture, without a word to
// anybody, and comes up again: the capture says that the head is gone, the
// version there was is whole and no other has a name; the next capture knows
// the head by its key and sends what was missing.
func TestHeadReboots(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	agent := filepath.Join(t.TempDir(), "doppel-agent")
	build := exec.Command("go", "build", "-o", agent, "doppel/cmd/doppel-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h, o := newRebooting(t)
	h.noise(0, 3, 1<<20)
	catalog, err := imaging.OpenCatalog(filepath.Join(t.TempDir(), "state"), imaging.CatalogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	target := remote.Target{User: "root", Host: "127.0.0.1", Port: rebootPort}
	capture := func(progress func(imaging.CaptureProgress)) (*imaging.CaptureReport, error) {
		t.Helper()
		conn, err := remote.Dial(t.Context(), target, o)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		src, err := remote.Agent(t.Context(), conn, remote.AgentOptions{Path: agent})
		if err != nil {
			return nil, err
		}
		defer src.Close()
		return imaging.Capture(t.Context(), catalog, src, imaging.CaptureOptions{Name: "head", Root: "/mnt", Progress: progress})
	}
	if r, err := capture(nil); err != nil || r.Version != 1 {
		t.Fatalf("%+v, %v", r, err)
	}

	const files = 60
	h.noise(3, files, 1<<20)
	var sent int64
	cut := sync.OnceValue(h.off)
	_, err = capture(func(p imaging.CaptureProgress) {
		if p.BytesSent < files<<20/3 {
			return
		}
		sent = p.BytesSent
		if err := cut(); err != nil {
			t.Error(err)
		}
	})
	var lost *remote.LostError
	if !errors.As(err, &lost) || !strings.Contains(lost.Hint(), "again") {
		t.Fatalf("the head lost its power: %T %v", err, err)
	}
	check := func(versions int) {
		t.Helper()
		list, err := catalog.List(t.Context())
		if err != nil || len(list) != versions {
			t.Errorf("versions %v, %v; want %d", list, err, versions)
		}
		if err := catalog.Verify(t.Context(), nil, true, func(f imaging.ImageFault) { t.Errorf("fault: %v", f) }); err != nil {
			t.Error(err)
		}
	}
	check(1)

	// While it is down: its network first, then a kernel without an sshd.
	o.Timeout = 300 * time.Millisecond
	var dial *remote.DialError
	if _, err := capture(nil); !errors.As(err, &dial) || !dial.Timeout() {
		t.Errorf("the head is off: %T %v", err, err)
	}
	if err := nft("delete table ip dark"); err != nil {
		t.Fatal(err)
	}
	if _, err := capture(nil); !errors.As(err, &dial) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the head has no sshd yet: %T %v", err, err)
	}
	o.Timeout = 10 * time.Second
	h.on()
	r, err := capture(nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != 2 || r.Partial() || r.BytesSent > files<<20-sent+16<<20 || r.BytesSent == 0 {
		t.Errorf("after the reboot: %+v; %d bytes had been sent before", r, sent)
	}
	check(2)
	if again, err := capture(nil); err != nil || !again.Unchanged {
		t.Errorf("once more: %+v, %v", again, err)
	}
}
