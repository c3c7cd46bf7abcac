package imaging

// Head is what a manifest says of the whole tree, without its entries.
type Head struct {
	Facts   Facts
	Layout  *Layout
	Boot    Boot
	Entries int64 // count
	Bytes   int64 // of regular files, hard links counted once
}

// Boot is what the tree holds to start a machine with. It is found in the
// entries when the manifest is made.
type Boot struct {
	Kernels []Kernel `json:"kernels"` // newest first
	Loaders []string `json:"loaders"` // "grub-bios", "grub-uefi": what can be installed from the tree's own files
	Tools   []string `json:"tools"`   // paths of programs an install needs: mkfs.*, mkswap, grub-install, update-grub, …
	Network string   `json:"network"` // netplan, networkmanager, systemd-networkd, ifupdown: the style the tree is set up with
}

// Kernel is one bootable kernel of the tree.
type Kernel struct {
	Release string `json:"release"` // 6.1.0-37-cloud-amd64
	Path    string `json:"path"`    // boot/vmlinuz-…
	Initrd  string `json:"initrd,omitempty"`
	Modules string `json:"modules,omitempty"` // usr/lib/modules/RELEASE
}

// Manifest is one version of an image: every entry of a tree.
type Manifest struct {
	Head
	List Entries
}
