package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// packedSize is how many bytes of the agent cross the wire.
func packedSize(t testing.TB) int64 {
	t.Helper()
	binary, err := os.ReadFile(agentBinary)
	if err != nil {
		t.Fatal(err)
	}
	return int64(len(gzipped(binary)))
}

func agentSize(t testing.TB) int64 {
	t.Helper()
	info, err := os.Stat(agentBinary)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// cutter is a proxy to a head that breaks the connection off when limit bytes
// have gone to the head: with a reset, as a client does whose machine is gone.
func cutter(t *testing.T, h *headServer, limit int64) Target {
	target := listen(t, func(near net.Conn) {
		far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
		if err != nil {
			return
		}
		defer far.Close()
		go io.Copy(near, far)
		io.CopyN(far, near, limit)
		far.(*net.TCPConn).SetLinger(0)
	})
	return target
}

// known names the head as the proxy at target.
func (h *headServer) knownAt(t testing.TB, target Target) string {
	text, err := os.ReadFile(h.known(t))
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Replace(string(text), fmt.Sprintf("]:%d ", h.port), fmt.Sprintf("]:%d ", target.Port), 1)
	return writeFile(t, filepath.Join(t.TempDir(), "known_hosts"), at, 0o600)
}

// Wherever the connection breaks off, before, during and after the agent is
// sent, nothing is left on the head.
func TestCutDelivery(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(4, 100_000)
	size := packedSize(t)
	var limits []int64
	for at := int64(1000); at < 9000; at += 700 {
		limits = append(limits, at) // key exchange, login, the script
	}
	for part := range int64(12) {
		limits = append(limits, 9000+size*part/12+part)
	}
	whole := size + size/32768*50 // with what SSH puts around it
	for at := whole - 4000; at < whole+24_000; at += 2000 {
		limits = append(limits, at) // the end, the start, the greeting
	}
	delivered := 0
	for _, limit := range limits {
		target := cutter(t, h, limit)
		o := options(t, h, key)
		o.KnownHosts = h.knownAt(t, target)
		conn, err := Dial(t.Context(), target, o)
		if err != nil {
			continue // it broke off before the login
		}
		if src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary}); err == nil {
			delivered++
			src.Close()
		}
		conn.Close()
		h.mustBeClean()
	}
	if delivered == 0 || delivered > len(limits)/2 {
		t.Errorf("%d of %d cuts came after the delivery", delivered, len(limits))
	}
}

// deliverTo names the variable that makes a test a client to be killed.
const deliverTo = "DOPPEL_TEST_DELIVER_TO"

// A client that is killed leaves nothing either.
func TestKilledClient(t *testing.T) {
	if target := os.Getenv(deliverTo); target != "" {
		deliverAsChild(t, target)
		return
	}
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	o := options(t, h, key)
	size := packedSize(t)
	for _, limit := range []int64{5000, size / 3, size - 1, size + 6000} {
		reached := make(chan struct{})
		target := listen(t, func(near net.Conn) {
			far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
			if err != nil {
				return
			}
			defer far.Close()
			go io.Copy(near, far)
			io.CopyN(far, near, limit)
			close(reached)
			io.Copy(io.Discard, near) // until the client is gone
		})
		child := exec.Command(os.Args[0], "-test.run=^TestKilledClient$")
		child.Env = append(os.Environ(), fmt.Sprintf(deliverTo+"=%d %s %s %s", target.Port, h.knownAt(t, target), o.Keys[0], agentBinary))
		child.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		<-reached
		child.Process.Kill()
		child.Wait()
		h.mustBeClean()
	}
}

// deliverAsChild delivers the agent and stays until it is killed.
func deliverAsChild(t *testing.T, where string) {
	var port int
	var known, key, binary string
	if _, err := fmt.Sscan(where, &port, &known, &key, &binary); err != nil {
		t.Fatal(err)
	}
	conn, err := Dial(t.Context(), Target{User: "root", Host: "127.0.0.1", Port: port},
		Options{Home: filepath.Dir(key), Config: "none", AgentSocket: "none", KnownHosts: known, Keys: []string{key}})
	if err == nil {
		_, err = Agent(context.Background(), conn, AgentOptions{Path: binary})
	}
	if err == nil {
		<-conn.Done()
	}
}

// The agent crosses the wire packed where the head can unpack it, and as it is
// where it cannot.
func TestDeliveryIsPacked(t *testing.T) {
	signer, key := newKey(t)
	whole, packed := agentSize(t), packedSize(t)
	for name, c := range map[string]struct {
		mounts []string
		least  int64
	}{
		"usual":      {nil, packed},
		"no gzip":    {[]string{gzipIs("exit 127")}, whole},
		"no head -c": {[]string{loginShell("/bin/sh"), `printf "#!/bin/sh\nexit 1\n" >/srv/head; chmod 755 /srv/head; mount --bind /srv/head /usr/bin/head`}, whole},
	} {
		t.Run(name, func(t *testing.T) {
			h := startHead(t, headSpec{mounts: c.mounts}, signer.PublicKey())
			sent := make(chan int64, 1)
			target := listen(t, func(near net.Conn) {
				far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
				if err != nil {
					return
				}
				defer far.Close()
				go io.Copy(near, far)
				n, _ := io.Copy(far, near)
				sent <- n
			})
			o := options(t, h, key)
			o.KnownHosts = h.knownAt(t, target)
			conn, err := Dial(t.Context(), target, o)
			if err != nil {
				t.Fatal(err)
			}
			src, err := Agent(t.Context(), conn, AgentOptions{Path: agentBinary})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(src.Close(), conn.Close()); err != nil {
				t.Error(err)
			}
			h.mustBeClean()
			if n := <-sent; n < c.least || n > c.least+c.least/50+20_000 {
				t.Errorf("%d bytes went to the head, for an agent of %d, and %d when it is packed", n, whole, packed)
			}
		})
	}
	if packed > whole/2 {
		t.Errorf("packing makes %d bytes of %d", packed, whole)
	}
}

// An agent that is unpacked in part is not run.
func TestHalfUnpacked(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{files: map[string]string{"gz": "/usr/bin/gzip"}, mounts: []string{gzipIs("/srv/gz -dc | head -c 1000000")}}, signer.PublicKey())
	_, err := Agent(t.Context(), dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{Path: agentBinary})
	mustHint(t, err, "has no place to run the agent from", installedAgent)
	h.mustBeClean()
}
