package pxe

import (
	"context"
	"errors"

	"doppel/imaging"
)

// Names of the files below a digest's directory.
const (
	kernelFile = "vmlinuz"
	initrdFile = "initrd"
)

// BuildBoot makes the installer for an image from the image itself: its newest
// kernel, and an initramfs of the agent (as /init), the CA's certificate and
// the kernel's modules for disks, networks and file systems. It is cached in
// cacheDir by its inputs, and laid there by digest: DIGEST/vmlinuz and
// DIGEST/initrd.
func BuildBoot(ctx context.Context, m *imaging.Manifest, chunks Chunks, agentPath string, ca []byte, cacheDir string) (Boot, error) {
	return Boot{}, errors.New("not yet")
}
