package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Double is a node that is no machine of its own: a disk, or a directory, in
// which doppel's agent runs in namespaces whose root that is. What the agent
// does to / it does there, and there alone.
type Double struct {
	Name string
	Role string       // head or compute
	Addr netip.Prefix // its own
	MAC  string
	Runs string // NAME@VERSION that its tree is equal to at first
	UUID string // of its root's file system

	Root    string  // the disk (a block device with an ext4) or the directory
	Mount   string  // where it is mounted, in its own mount namespace alone: an empty directory
	Host    *Host   // whose network it has; nil: this process's own
	Console Console // what its agent said

	cmd   *exec.Cmd
	ended chan struct{}
}

// Enrol gives a double what an install leaves on a node, in the tree at dir: the
// agent, and credentials by the authority of the daemon with that state. It
// gives the inventory that doppel node import takes the node in with.
func (d *Double) Enrol(dir, agent, state, server string) (inventory []byte, err error) {
	keys := filepath.Join(state, "keys")
	authority, err := tls.LoadX509KeyPair(filepath.Join(keys, "ca.crt"), filepath.Join(keys, "ca.key"))
	if err != nil {
		return nil, fmt.Errorf("reading the authority of the daemon's cluster: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := authority.Leaf
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: d.Name}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "doppel", Opaque: "node:" + d.Name}},
	}, ca, key.Public(), authority.PrivateKey)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		return nil, err
	}
	type object map[string]any
	text := func(v any) []byte {
		var b []byte
		b, jerr := json.MarshalIndent(v, "", "  ")
		err = errors.Join(err, jerr)
		return b
	}
	about := text(object{"server": server, "node": d.Name, "install": "I"})
	plan := text(object{
		"id": "I", "node": d.Name, "role": d.Role, "firmware": "bios", "mac": d.MAC, "addr": d.Addr.String(), "server": server,
		"partitions": []object{{"number": 1, "guid": "G", "fs": object{"type": "ext4", "uuid": d.UUID, "mount": "/"}}},
	})
	sum := sha256.Sum256(public)
	inventory = text(object{"doppel_nodes": 1, "nodes": []object{{
		"name": d.Name, "role": d.Role, "mac": d.MAC, "addr": d.Addr.Addr().String(), "netmask": d.Addr.Bits(), "state": "Installed",
		"runs": d.Runs, "key": hex.EncodeToString(sum[:]), "added": "2026-01-01T00:00:00Z",
	}}})
	for _, f := range []struct {
		name string
		b    []byte
		mode os.FileMode
	}{
		{"usr/lib/doppel/doppel-agent", program, 0o755}, {"etc/doppel/node/node.json", about, 0o600}, {"etc/doppel/node/plan.json", plan, 0o600},
		{"etc/doppel/node/ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600},
		{"etc/doppel/node/node.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600},
		{"etc/doppel/node/node.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600},
	} {
		at := filepath.Join(dir, f.name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, f.b, f.mode))
	}
	return inventory, err
}

//go:embed double.sh
var doubleScript string

// Start starts the agent.
func (d *Double) Start(ctx context.Context) error {
	args := []string{"--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-euc", doubleScript, "double.sh", d.Root, d.Mount, d.Name}
	ctx = context.WithoutCancel(ctx)
	if d.Host != nil {
		d.cmd = d.Host.Command(ctx, "unshare", args...)
	} else {
		d.cmd = exec.CommandContext(ctx, "unshare", args...)
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	if d.Console.log == nil {
		d.Console.log = io.Discard
	}
	d.cmd.Stdout, d.cmd.Stderr = &d.Console, &d.Console
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("starting the agent of %s: %w", d.Name, err)
	}
	d.ended = make(chan struct{})
	go func() {
		defer close(d.ended)
		_ = d.cmd.Wait() // it is killed
	}()
	return nil
}

// first is the process whose end ends every other one of the double; 0: it has
// not begun yet.
func (d *Double) first() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", d.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	return pid
}

// Kill ends the agent and all that it has started with SIGKILL, and waits until
// none is left. Of one that does not run it is nothing.
func (d *Double) Kill() {
	if d.ended == nil {
		return
	}
	if pid := d.first(); pid > 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // unshare ends with it, when the namespace is empty
	} else {
		_ = d.cmd.Process.Kill()
	}
	<-d.ended
	d.ended = nil
}
