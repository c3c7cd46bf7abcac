package pxe

import (
	"context"
	"net/netip"

	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
)

// State is what pxe needs to know and to change of the cluster.
type State interface {
	// NodeByMAC finds the node that a machine is assigned to.
	NodeByMAC(ctx context.Context, mac cluster.MAC) (cluster.Node, bool, error)
	// Collection is the collection window; it is open while Until is ahead.
	Collection(ctx context.Context) (cluster.Collection, error)
	// Sight records that a machine asked to boot. Only MAC, Arch, UUID,
	// VendorClass, Interface and Last are set; with Auto collection it may
	// assign the machine.
	Sight(ctx context.Context, s cluster.Sighting) error
	// LeaseByAddr finds who holds an address.
	LeaseByAddr(ctx context.Context, addr netip.Addr) (cluster.Lease, bool, error)
	// BeginBoot makes a nonce for one boot of an Armed or Installing node and
	// records it; the first caller who shows it may enrol. It replaces the
	// nonce of any boot before.
	BeginBoot(ctx context.Context, node string) (nonce string, err error)
}

// Chunks reads an image's content. *store.Vault is one.
type Chunks interface {
	Chunk(ctx context.Context, ref store.Ref) ([]byte, error)
}

// Boot is an installer that is ready to be served.
type Boot struct {
	Release      string   // of the kernel
	Kernel       string   // path of the file
	Initrd       string   // path of the file
	KernelDigest store.ID // of the file's bytes
	InitrdDigest store.ID // of the file's bytes
}

// Installers finds (and if need be makes) the installer for an image version.
type Installers interface {
	// Installer takes NAME@VERSION and the version's digest.
	Installer(ctx context.Context, ref, digest string) (Boot, error)
}

var _ = imaging.Manifest{}
