package remote

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"doppel/imaging"
	"doppel/imaging/store"
)

// agentBinary is the real agent, built once for all tests.
var agentBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		// Those that are killed in the end have nothing of their own to leave.
		if os.Getenv(deliverTo) != "" || slices.Contains(os.Args, "-test.fuzzworker") {
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "doppel-remote-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		agentBinary = filepath.Join(dir, "doppel-agent")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", agentBinary, "doppel/cmd/doppel-agent")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the agent: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test runs sshd in a mount namespace of its own: run it as root")
	}
}

// password opens bob's account, by the hash in shadow.
const (
	password = "correct horse"
	shadow   = "$6$doppeltest$321KyfK8FCjWqS6KpfRAuUdY5vJrLFIKXVGEvjTWf1g4r7Rm9gedSFBMLGxoHRohYj3QKqaWN9mx.neeKU9sf0"
)

// headServer is a real sshd whose mounts and accounts are its own: a
// namespace in which /srv holds its configuration, /mnt the tree to capture,
// and the usual places for temporary files are new and empty.
type headServer struct {
	t    *testing.T
	dir  string // /srv
	tree string // /mnt
	port int
	cmd  *exec.Cmd
	key  ssh.Signer // the host's

	mu     sync.Mutex
	log    bytes.Buffer
	logged *sync.Cond
}

// headSpec says how a head differs from the usual.
type headSpec struct {
	config []string // lines of sshd_config, which come first
	mounts []string // commands before sshd starts, in the namespace
	noSFTP bool
	rsa    bool              // the host's key, in place of Ed25519
	files  map[string]string // to copy into /srv
}

func newKey(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, private
}

func writeFile(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeKey writes a private key, encrypted if there is a passphrase.
func writeKey(t testing.TB, name string, key ed25519.PrivateKey, passphrase string) string {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, name, string(pem.EncodeToMemory(block)), 0o600)
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func startHead(t *testing.T, spec headSpec, authorized ...ssh.PublicKey) *headServer {
	t.Helper()
	needRoot(t)
	h := &headServer{t: t, dir: t.TempDir(), tree: t.TempDir(), port: freePort(t)}
	h.logged = sync.NewCond(&h.mu)
	// sshd looks at what leads to the keys of those who are not root.
	for dir := h.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if spec.rsa {
		h.key = newRSA(t, filepath.Join(h.dir, "host_key"))
	} else {
		signer, private := newKey(t)
		h.key = signer
		writeKey(t, filepath.Join(h.dir, "host_key"), private, "")
	}
	var keys strings.Builder
	for _, k := range authorized {
		keys.Write(ssh.MarshalAuthorizedKey(k))
	}
	writeFile(t, filepath.Join(h.dir, "authorized_keys"), keys.String(), 0o644)
	h.accounts()
	for name, from := range spec.files {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(h.dir, name), string(text), 0o755)
	}
	config := append(spec.config,
		"ListenAddress 127.0.0.1", "Port "+strconv.Itoa(h.port), "HostKey /srv/host_key", "PidFile none",
		"AuthorizedKeysFile /srv/authorized_keys", "StrictModes no", "UsePAM no", "UseDNS no", "PermitRootLogin yes", "LogLevel VERBOSE")
	if !spec.noSFTP {
		config = append(config, "Subsystem sftp internal-sftp")
	}
	writeFile(t, filepath.Join(h.dir, "sshd_config"), strings.Join(config, "\n")+"\n", 0o600)
	script := append([]string{
		"set -e", "mkdir -p /run/sshd",
		"mount --bind " + h.dir + " /srv", "mount --bind " + h.tree + " /mnt",
		"mount --bind /srv/passwd /etc/passwd", "mount --bind /srv/shadow /etc/shadow", "mount --bind /srv/sudoers /etc/sudoers",
		"mount -t tmpfs -o mode=1777 none /var/tmp", "mount -t tmpfs -o mode=1777 none /dev/shm", "mount -t tmpfs -o mode=1777 none /tmp",
	}, spec.mounts...)
	script = append(script, "exec /usr/sbin/sshd -D -e -f /srv/sshd_config")
	h.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", strings.Join(script, "\n"))
	h.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL} // a test that times out runs no cleanup
	stderr, err := h.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			h.mu.Lock()
			h.log.WriteString(lines.Text() + "\n")
			h.logged.Broadcast()
			h.mu.Unlock()
		}
		h.mu.Lock()
		h.log.WriteString("(end of log)\n")
		h.logged.Broadcast()
		h.mu.Unlock()
	}()
	t.Cleanup(func() {
		sessions := h.sessions()
		h.cmd.Process.Signal(unix.SIGTERM)
		for _, pid := range sessions {
			unix.Kill(pid, unix.SIGKILL) // of a test that failed in the middle
		}
		<-read
		h.cmd.Wait()
		if t.Failed() {
			t.Logf("sshd said:\n%s", h.log.String())
		}
	})
	h.waitLog("Server listening on")
	return h
}

// accounts makes those of the namespace: alice may use sudo without a
// password, bob with, carol not at all.
func (h *headServer) accounts() {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		h.t.Fatal(err)
	}
	text, hashes := string(passwd), "root:"+shadow+":19000:0:99999:7:::\n"
	for i, name := range []string{"alice", "bob", "carol"} {
		id := 4242 + i
		home := filepath.Join(h.dir, "home", name)
		if err := os.MkdirAll(home, 0o700); err != nil {
			h.t.Fatal(err)
		}
		if err := os.Chown(home, id, id); err != nil {
			h.t.Fatal(err)
		}
		text += fmt.Sprintf("%s:x:%d:%d::/srv/home/%s:/bin/sh\n", name, id, id, name)
		hashes += fmt.Sprintf("%s:%s:19000:0:99999:7:::\n", name, shadow)
	}
	writeFile(h.t, filepath.Join(h.dir, "passwd"), text, 0o644)
	writeFile(h.t, filepath.Join(h.dir, "shadow"), hashes, 0o640)
	writeFile(h.t, filepath.Join(h.dir, "sudoers"), "Defaults env_reset, use_pty\nroot ALL=(ALL) ALL\nalice ALL=(ALL) NOPASSWD: ALL\nbob ALL=(ALL) ALL\n", 0o440)
}

// waitLog waits until sshd's log holds the text.
func (h *headServer) waitLog(text string) { h.waitLogs(text, 1) }

// waitLogs waits until sshd's log holds the text n times.
func (h *headServer) waitLogs(text string, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for strings.Count(h.log.String(), text) < n {
		if strings.Contains(h.log.String(), "(end of log)") {
			h.t.Errorf("sshd ended before it said %q %d times", text, n)
			return
		}
		h.logged.Wait()
	}
}

// forgetLog forgets what sshd said.
func (h *headServer) forgetLog() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log.Reset()
}

func (h *headServer) target(user string) Target {
	return Target{User: user, Host: "127.0.0.1", Port: h.port}
}

// known is a known_hosts that knows the head.
func (h *headServer) known(t testing.TB) string {
	return writeFile(t, filepath.Join(t.TempDir(), "known_hosts"),
		fmt.Sprintf("[127.0.0.1]:%d %s", h.port, ssh.MarshalAuthorizedKey(h.key.PublicKey())), 0o600)
}

// inside is where a path of the head's namespace is.
func (h *headServer) inside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", h.cmd.Process.Pid, path)
}

// mustBeClean fails when a capture left anything on the head: files where it
// puts them, or a process.
func (h *headServer) mustBeClean() {
	h.t.Helper()
	for _, pid := range h.strays() {
		h.waitGone(pid)
	}
	for _, dir := range []string{"/tmp", "/var/tmp", "/dev/shm", "/srv/home/alice", "/srv/home/bob", "/root"} {
		list, err := os.ReadDir(h.inside(dir))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, e := range list {
			if strings.HasPrefix(e.Name(), dirPrefix) {
				h.t.Errorf("%s/%s was left on the head", dir, e.Name())
			}
		}
	}
}

// strays finds what runs in the head's namespace besides sshd.
func (h *headServer) strays() (pids []int) {
	for _, pid := range h.members() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if exe != "" && !strings.Contains(exe, "/sshd") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// agents finds the agents that run in the head's namespace.
func (h *headServer) agents() (pids []int) {
	for _, pid := range h.members() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if strings.Contains(exe, agentFile) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// members are the processes in the head's namespace.
func (h *headServer) members() (pids []int) {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, pid := range processes(h.t) {
		ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if ns == own {
			pids = append(pids, pid)
		}
	}
	return pids
}

func processes(t testing.TB) (pids []int) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sessions are the processes of sshd that serve connections.
func (h *headServer) sessions() (pids []int) {
	children := map[int][]int{}
	for _, pid := range processes(h.t) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		after := string(stat[bytes.LastIndexByte(stat, ')')+1:])
		parent, _ := strconv.Atoi(strings.Fields(after)[1])
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if strings.HasSuffix(exe, "/sshd") {
			children[parent] = append(children[parent], pid)
		}
	}
	var descend func(pid int)
	descend = func(pid int) {
		for _, child := range children[pid] {
			pids = append(pids, child)
			descend(child)
		}
	}
	descend(h.cmd.Process.Pid)
	return pids
}

// waitGone waits for the end of a process that is not a child of ours.
func (h *headServer) waitGone(pid int) {
	h.t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			h.t.Errorf("the agent, process %d, still runs", pid)
		}
		return
	}
}

// treeSink is a store in memory.
type treeSink struct {
	mu      sync.Mutex
	have    map[store.Ref]bool
	entries map[string]imaging.Entry
	notes   []imaging.Note
	sent    int64
	onBlock func() // when one arrives
}

func newTreeSink() *treeSink {
	return &treeSink{have: map[store.Ref]bool{}, entries: map[string]imaging.Entry{}}
}

func (s *treeSink) Cached(_ context.Context, _ []imaging.Class, files []imaging.Stamp) ([]*imaging.Content, error) {
	return make([]*imaging.Content, len(files)), nil
}

func (s *treeSink) Missing(_ context.Context, refs []store.Ref) ([]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]bool, len(refs))
	for i, r := range refs {
		out[i] = !s.have[r]
	}
	return out, nil
}

func (s *treeSink) Block(_ context.Context, b store.Block) error {
	plain, err := store.DecodeBlock(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, c := range b.Chunks {
		if store.Sum(plain[:c.Size]) != c.ID {
			return errors.New("a chunk is not what it says")
		}
		plain = plain[c.Size:]
		s.have[store.Ref{Audience: b.Audience, ID: c.ID}] = true
	}
	s.sent += int64(len(b.Data))
	on := s.onBlock
	s.mu.Unlock()
	if on != nil {
		on()
	}
	return nil
}

func (s *treeSink) Entries(_ context.Context, entries []imaging.Entry, _ []imaging.Stamp) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		s.entries[e.Path] = e
	}
	return nil
}

func (s *treeSink) Same(context.Context, string) error { return errors.New("the same as what?") }

func (s *treeSink) Note(_ context.Context, n imaging.Note) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, n)
	return nil
}

func (s *treeSink) Progress(imaging.ScanProgress) {}

// fill puts files of random bytes into the head's tree.
func (h *headServer) fill(files, size int) {
	h.t.Helper()
	for i := range files {
		b := make([]byte, size)
		rand.Read(b)
		writeFile(h.t, filepath.Join(h.tree, fmt.Sprintf("d%d", i%3), fmt.Sprintf("f%d", i)), string(b), 0o640)
	}
}

// options are those of a user with one key and a known_hosts, and nothing
// else around.
func options(t testing.TB, h *headServer, key ed25519.PrivateKey) Options {
	t.Helper()
	home := t.TempDir()
	return Options{
		Home: home, Config: "none", AgentSocket: "none", KnownHosts: h.known(t), Timeout: 15 * time.Second,
		Keys: []string{writeKey(t, filepath.Join(home, "key"), key, "")},
	}
}

// dialHead connects and sees to the end of it.
func dialHead(t testing.TB, target Target, o Options) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), target, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mnt() imaging.ScanRequest { return imaging.ScanRequest{Root: "/mnt"} }

// scan captures the head's tree once, through a new agent.
func scan(t *testing.T, c *Conn, o AgentOptions, sink imaging.Sink) error {
	t.Helper()
	o.Path = agentBinary
	src, err := Agent(t.Context(), c, o)
	if err != nil {
		return err
	}
	return errors.Join(src.Scan(t.Context(), mnt(), sink), src.Close())
}
