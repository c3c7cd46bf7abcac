package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"

	"doppel/imaging"
	"doppel/pxe"
	"doppel/tftpd"
)

// installers makes installers from images, each once.
type installers struct {
	catalog *imaging.Catalog
	agent   string
	ca      []byte // PEM
	dir     string

	mu   sync.Mutex
	made map[string]pxe.Boot // by the version's digest
}

// Installer finds or makes the installer of a version. Machines that ask
// while it is being made wait for it; it is made to its end also when the one
// that asked first has gone.
func (i *installers) Installer(ctx context.Context, ref, digest string) (pxe.Boot, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if b, ok := i.made[digest]; ok && exists(b.Kernel) && exists(b.Initrd) { // the cache may be cleared at any time
		return b, nil
	}
	b, err := i.build(context.WithoutCancel(ctx), ref, digest)
	if err != nil {
		if h := hint(err); h != "" { // it is read in the node's reason, where nothing else says it
			err = fmt.Errorf("%w (%s)", err, h)
		}
		return b, err
	}
	if i.made == nil {
		i.made = map[string]pxe.Boot{}
	}
	i.made[digest] = b
	return b, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func (i *installers) build(ctx context.Context, ref, digest string) (pxe.Boot, error) {
	release, err := i.catalog.Reading(ctx)
	if err != nil {
		return pxe.Boot{}, fmt.Errorf("the installer for %s: %w", ref, err)
	}
	defer release()
	v, err := i.catalog.Resolve(ctx, digest)
	if err != nil {
		return pxe.Boot{}, fmt.Errorf("the installer for %s: %w", ref, err)
	}
	m, err := i.catalog.Manifest(ctx, v)
	if err != nil {
		return pxe.Boot{}, fmt.Errorf("the installer for %s: %w", ref, err)
	}
	vault, err := i.catalog.Vault(ctx)
	if err != nil {
		return pxe.Boot{}, fmt.Errorf("the installer for %s: %w", ref, err)
	}
	return pxe.BuildBoot(ctx, m, vault, i.agent, i.ca, i.dir)
}

// loaders are the configured loaders that are there.
func loaders(paths map[string]string) pxe.Loaders {
	l := pxe.Loaders{}
	for _, a := range []pxe.Arch{pxe.ArchBIOS, pxe.ArchX8664, pxe.ArchARM64} {
		if p := paths[a.String()]; p != "" {
			if _, err := os.Stat(p); err == nil {
				l[a] = p
			}
		}
	}
	return l
}

// tftpFiles reads the loaders into memory: the fixed map of what TFTP serves.
func tftpFiles(l pxe.Loaders) (tftpd.Files, error) {
	files := tftpd.Files{}
	for name, path := range l.TFTP() {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading the loader for TFTP: %w", err)
		}
		files[name] = tftpd.File{Content: bytes.NewReader(b), Size: int64(len(b))}
	}
	return files, nil
}
