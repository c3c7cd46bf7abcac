package pxe

import (
	"context"
	"net/netip"
	"time"

	"doppel/cluster"
	"doppel/imaging/store"
)

// State is what pxe needs to know and to change of the cluster.
type State interface {
	Now() time.Time
	// NodeByMAC finds the node that a machine is assigned to.
	NodeByMAC(mac cluster.MAC) (cluster.Node, bool)
	// NodeByAddr finds the node that an address is reserved for.
	NodeByAddr(addr netip.Addr) (cluster.Node, bool)
	// Lease finds who was given an address.
	Lease(addr netip.Addr) (cluster.Lease, bool)
	// Collecting tells whether the collection window is open.
	Collecting() bool
	// Sight records that a machine asked to boot; with automatic collection it
	// assigns the machine.
	Sight(ctx context.Context, s cluster.Sighting) error
	// Commit makes changes.
	Commit(ctx context.Context, changes ...cluster.Change) error
}

var _ State = (*cluster.Cluster)(nil)

// Chunks reads an image's content. *store.Vault is one.
type Chunks interface {
	Chunk(ctx context.Context, ref store.Ref) ([]byte, error)
}

// Boot is an installer that is ready to be served.
type Boot struct {
	Release      string   `json:"release"` // of the kernel
	Machine      string   `json:"machine"` // that the kernel runs on, as uname -m
	Kernel       string   `json:"-"`       // path of the file
	Initrd       string   `json:"-"`       // path of the file
	KernelDigest store.ID `json:"kernel"`  // of the file's bytes
	InitrdDigest store.ID `json:"initrd"`  // of the file's bytes
}

// Installers finds (and if need be makes) the installer for an image version.
type Installers interface {
	// Installer takes NAME@VERSION and the version's digest.
	Installer(ctx context.Context, ref, digest string) (Boot, error)
}
