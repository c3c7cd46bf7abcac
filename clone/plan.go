package clone

import (
	"net/netip"

	"doppel/imaging"
)

// Firmware is how a machine starts.
type Firmware string

const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Disk is a whole disk of a machine, as its kernel shows it.
type Disk struct {
	Path      string   `json:"path"` // /dev/vda
	Size      int64    `json:"size"` // bytes
	Sector    int      `json:"sector"`
	Model     string   `json:"model,omitempty"`
	Serial    string   `json:"serial,omitempty"`
	WWN       string   `json:"wwn,omitempty"`
	Removable bool     `json:"removable,omitempty"`
	ReadOnly  bool     `json:"read_only,omitempty"`
	Bus       string   `json:"bus,omitempty"`   // virtio, nvme, sata, usb, …
	GUID      string   `json:"guid,omitempty"`  // of its GPT, when it has one
	Links     []string `json:"links,omitempty"` // names below /dev/disk
}

// Hardware is what a machine says about itself when it asks for its plan.
type Hardware struct {
	MACs     []string `json:"macs"`
	UUID     string   `json:"uuid,omitempty"`
	Arch     string   `json:"arch"` // as uname -m
	Firmware Firmware `json:"firmware"`
	Memory   int64    `json:"memory"` // bytes
	Disks    []Disk   `json:"disks"`
}

// Target is what the inventory says a node is to be.
type Target struct {
	Install   string       // id of the install, a UUID in upper case
	Node      string       // the node's name and host name
	Domain    string       //
	Role      string       // compute or head
	MAC       string       // of the NIC that carries Addr
	Addr      netip.Prefix // address and prefix length
	Gateway   netip.Addr   // invalid: none
	DNS       []netip.Addr //
	Disk      string       // as the operator named it: a path, a /dev/disk link, a serial; empty: the only candidate
	After     string       // reboot, poweroff or shell
	Server    string       // base URL of the TLS service: https://ADDR:PORT
	Image     string       // NAME@VERSION
	ImageHead imaging.Head // what the image says of itself
}

// Plan is what one machine is to become. It is made once for an install and
// named by it; carrying it out twice comes to the same.
type Plan struct {
	ID         string       `json:"id"` // becomes the GPT disk GUID
	Node       string       `json:"node"`
	Domain     string       `json:"domain,omitempty"`
	Role       string       `json:"role"`
	Image      string       `json:"image"`
	Arch       string       `json:"arch"` // as uname -m
	Firmware   Firmware     `json:"firmware"`
	Disk       Disk         `json:"disk"`
	DiskRule   string       `json:"disk_rule"` // why this disk, in words
	Partitions []Partition  `json:"partitions"`
	MAC        string       `json:"mac"`
	Addr       netip.Prefix `json:"addr"`
	Gateway    netip.Addr   `json:"gateway,omitzero"`
	DNS        []netip.Addr `json:"dns,omitempty"`
	After      string       `json:"after"`
	Server     string       `json:"server"`
	Notes      []string     `json:"notes,omitempty"` // where the partitions are not the head's, and why

	Found *FoundMachine `json:"found,omitempty"` // the machine is as it was found; nil: doppel laid it out
}

// Partition is one partition of a plan.
type Partition struct {
	Number     int                 `json:"number"`
	Start      int64               `json:"start"` // bytes
	Size       int64               `json:"size"`  // bytes
	Type       string              `json:"type"`  // GPT type GUID
	GUID       string              `json:"guid"`
	Name       string              `json:"name,omitempty"`
	Attributes uint64              `json:"attributes,omitempty"`
	FS         *imaging.FileSystem `json:"fs,omitempty"` // Mount tells where it belongs
}
