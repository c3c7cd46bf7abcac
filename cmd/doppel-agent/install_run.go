package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"doppel/clone"
	"doppel/imaging"
	"doppel/imaging/store"
)

const (
	caFile  = "/etc/doppel/ca.crt"
	workDir = "/run/doppel"
	// diskPatience is how long a machine without any disk is waited for: RAID
	// controllers take their time to show theirs.
	diskPatience = 30 * time.Second
	// lastWordPatience is how long a failure is told to a head that does not
	// answer, before the machine starts again and tries anew.
	lastWordPatience = 5 * time.Minute
)

// installer is one boot's attempt at an install.
type installer struct {
	screen *consoles
	head   *head // from when there is one
	plan   *clone.Plan
}

// run goes through all of it, and tells what the plan wants afterwards.
func (in *installer) run(ctx context.Context) (after string, err error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	boot, err := parseCmdline(string(text))
	if err != nil {
		return "", err
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return "", fmt.Errorf("reading whom to trust: %w", err)
	}
	in.screen.say("the installer of %s begins", boot.server)
	devices, err := in.devices(ctx)
	if err != nil {
		return "", err
	}
	defer devices.close()
	n := &network{mac: boot.mac, server: serverAddr(boot.server), say: in.screen.say}
	if err := n.up(ctx); err != nil {
		return "", err
	}
	h, err := newHead(boot.server, ca, time.Now, in.screen.say)
	if err != nil {
		return "", err
	}
	key, err := in.enrol(ctx, h, boot.boot)
	if err != nil {
		return "", err
	}
	in.head = h
	devices.settle(ctx, time.Second, 15*time.Second)
	orders, err := in.orders(ctx, devices)
	if err != nil {
		return "", err
	}
	if err := in.install(ctx, orders, key); err != nil {
		return "", err
	}
	return in.plan.After, nil
}

// devices loads the drivers, and mounts UEFI's variables once there is the
// module that shows them.
func (in *installer) devices(ctx context.Context) (*uevents, error) {
	l, err := readModules(in.screen.say)
	if err != nil {
		return nil, err
	}
	u, err := listenUevents(l)
	if err != nil {
		return nil, err
	}
	l.loadAlways()
	if err := l.serveAll(); err != nil {
		u.close()
		return nil, fmt.Errorf("looking for devices: %w", err)
	}
	u.settle(ctx, 200*time.Millisecond, 5*time.Second)
	if sysfs("/sys").firmware() == clone.UEFI {
		const dir = "/sys/firmware/efi/efivars"
		err := unix.Mount("efivarfs", dir, "efivarfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			// The fallback loader on the ESP boots without an entry.
			in.screen.say("no access to UEFI's variables: %v", err)
		}
	}
	return u, nil
}

// enrol gets this boot's certificate. A head that is not there yet is waited
// for without end.
func (in *installer) enrol(ctx context.Context, h *head, nonce string) (*ecdsa.PrivateKey, error) {
	key, csr, err := newKey()
	if err != nil {
		return nil, err
	}
	in.screen.say("trying the head %s", h.base)
	var answer clone.Enrolled
	date, err := h.ask(ctx, "/v1/enrol", clone.Enrol{Boot: nonce, CSR: csr}, &answer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clone.StageEnrol, err)
	}
	if err := h.wear(answer.Certificate, key); err != nil {
		return nil, fmt.Errorf("%s: %w", clone.StageEnrol, err)
	}
	in.screen.say("this machine is %s", answer.Node)
	if h.clockIsWrong() && !date.IsZero() {
		// The head has just proved who it is. What is written from here on gets
		// times of this century.
		tv := unix.NsecToTimeval(date.UnixNano())
		if err := unix.Settimeofday(&tv); err != nil {
			in.screen.say("the clock stays wrong: %v", err)
		}
	}
	return key, nil
}

// orders tells the head what this machine is, and gets what to become.
func (in *installer) orders(ctx context.Context, devices *uevents) (*clone.Orders, error) {
	m := clone.NewLinux()
	hw, err := sysfs("/sys").hardware(gptGUID(ctx, m))
	for start := time.Now(); err == nil && len(hw.Disks) == 0 && time.Since(start) < diskPatience && ctx.Err() == nil; {
		in.screen.say("waiting for a disk")
		devices.settle(ctx, 3*time.Second, 5*time.Second)
		hw, err = sysfs("/sys").hardware(gptGUID(ctx, m))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clone.StagePlan, err)
	}
	var o clone.Orders
	if _, err := in.head.ask(ctx, "/v1/orders", hw, &o); err != nil {
		return nil, fmt.Errorf("%s: %w", clone.StagePlan, err)
	}
	switch {
	case o.Refused != "":
		return nil, &refusal{message: o.Refused} // the head has failed the node itself
	case o.Plan == nil:
		return nil, fmt.Errorf("%s: the head gave no plan", clone.StagePlan)
	}
	in.plan = o.Plan
	in.screen.say("becomes %s from %s on %s (%s)", o.Plan.Node, o.Plan.Image, o.Plan.Disk.Path, o.Plan.DiskRule)
	return &o, nil
}

// install carries the plan out and tells the head.
func (in *installer) install(ctx context.Context, o *clone.Orders, key *ecdsa.PrivateKey) error {
	manifest, vault, err := openImage(ctx, &o.Access, "") // nothing lasts here
	if err != nil {
		return err
	}
	agent, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("reading the agent: %w", err)
	}
	if err := mountWork(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := startReporter(ctx, in.head, "/v1/report", cancel)
	err = clone.Install(ctx, clone.NewLinux(), o.Plan, manifest, vault, clone.InstallOptions{
		Work: workDir, Agent: agent,
		Certificate: func(ctx context.Context) (clone.Credentials, error) { return in.certificate(ctx) },
		Permit:      r.confirm,
		Report:      r.report,
		Log:         slog.New(slog.NewTextHandler(lineWriter{in.screen}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	cause := context.Cause(ctx)
	cancel(nil)
	<-r.ended
	var no *refusal
	if errors.As(cause, &no) {
		return no
	}
	if err != nil {
		return err
	}
	// All is durable: these are the words that disarm, and they must arrive.
	for _, w := range append(r.take(), clone.Report{Install: o.Plan.ID, Stage: clone.StageFinish}) {
		if _, err := in.head.ask(context.WithoutCancel(ctx), "/v1/report", w, nil); err != nil {
			return fmt.Errorf("%s: %w", w.Stage, err)
		}
	}
	in.screen.say("installed")
	return nil
}

// openImage reads the manifest and makes sure that it is the version that was
// deployed, and opens the packs. Tables, if not empty, is a directory that keeps
// their tables for the next time.
func openImage(ctx context.Context, o *clone.Access, tables string) (*imaging.Manifest, *store.Vault, error) {
	keys, err := keysOf(o)
	if err != nil {
		return nil, nil, err
	}
	st := blobsOf(o)
	manifest, err := readManifest(ctx, st, keys, o)
	if err != nil {
		return nil, nil, err
	}
	var packs store.Store = st
	if tables != "" {
		kept := store.NewTableCache(st, tables)
		if err := kept.Keep(ctx, o.Packs); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", clone.StagePlan, err)
		}
		packs = kept
	}
	vault, err := store.OpenVault(ctx, packs, keys, o.Packs)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", clone.StagePlan, err)
	}
	return manifest, vault, nil
}

// openManifest is openImage for whoever needs no content.
func openManifest(ctx context.Context, o *clone.Access) (*imaging.Manifest, error) {
	keys, err := keysOf(o)
	if err != nil {
		return nil, err
	}
	return readManifest(ctx, blobsOf(o), keys, o)
}

func keysOf(o *clone.Access) (keys store.Keys, err error) {
	for _, k := range []struct {
		bytes []byte
		into  **store.Key
	}{{o.Cluster, &keys.Cluster}, {o.Head, &keys.Head}} {
		if len(k.bytes) == 0 {
			continue
		}
		key := new(store.Key)
		if copy(key[:], k.bytes) != len(key) || len(k.bytes) != len(key) {
			return keys, fmt.Errorf("%s: a key from the head has %d bytes", clone.StagePlan, len(k.bytes))
		}
		*k.into = key
	}
	return keys, nil
}

func blobsOf(o *clone.Access) *store.HTTP {
	st := store.NewHTTP(o.Store, nil)
	st.Tries = 100 // a head may have to be started again meanwhile
	return st
}

func readManifest(ctx context.Context, st store.Store, keys store.Keys, o *clone.Access) (*imaging.Manifest, error) {
	manifest, digest, err := imaging.ReadManifest(ctx, st, keys, o.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clone.StagePlan, err)
	}
	if digest.String() != o.Digest {
		return nil, fmt.Errorf("%s: the manifest is that of %s, but %s was deployed", clone.StagePlan, digest, o.Digest)
	}
	return manifest, nil
}

// mountWork makes the directory for the tools, in memory. Three quarters leave
// the rest for this program and the page cache; what does not fit is an error
// that says so, and not a machine that kills processes.
func mountWork() error {
	if err := os.MkdirAll(workDir, 0o700); err != nil {
		return fmt.Errorf("making room for the tools: %w", err)
	}
	err := unix.Mount("tmpfs", workDir, "tmpfs", unix.MS_NOSUID, "mode=0700,size=75%")
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("making room for the tools: %w", err)
	}
	return nil
}

// certificate gets the node's own.
func (in *installer) certificate(ctx context.Context) (clone.Credentials, error) {
	key, csr, err := newKey()
	if err != nil {
		return clone.Credentials{}, err
	}
	var answer clone.Enrolled
	if _, err := in.head.ask(ctx, "/v1/certificate", clone.Enrol{CSR: csr}, &answer); err != nil {
		return clone.Credentials{}, err
	}
	leaf, err := x509.ParseCertificate(answer.Certificate)
	if err != nil {
		return clone.Credentials{}, fmt.Errorf("reading the certificate that the head gave: %w", err)
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(&key.PublicKey) {
		return clone.Credentials{}, errors.New("the certificate that the head gave is for another key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return clone.Credentials{}, fmt.Errorf("writing the node's key: %w", err)
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return clone.Credentials{}, err
	}
	return clone.Credentials{
		Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: answer.Certificate}),
		Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		CA:          ca,
	}, nil
}

// giveUp tells the head why, if there is one and it knows this machine. A
// refusal is the head's own word, and it needs not be told.
func (in *installer) giveUp(ctx context.Context, why error) {
	var no *refusal
	if in.head == nil || errors.As(why, &no) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWordPatience)
	defer cancel()
	w := clone.Report{Stage: clone.StageFailed, Detail: clip(why.Error())}
	if in.plan != nil {
		w.Install = in.plan.ID
	}
	if _, err := in.head.ask(ctx, "/v1/report", w, nil); err != nil {
		in.screen.say("the head does not know that it failed: %v", err)
	}
}

// lineWriter has a log go to the consoles.
type lineWriter struct{ screen *consoles }

func (w lineWriter) Write(p []byte) (int, error) {
	w.screen.say("%s", p)
	return len(p), nil
}
